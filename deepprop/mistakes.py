"""The page once more, line by line, and the mistakes that people make in it.

Each equation is a function of the passes so far, `p`, and of the layer l. A mistake replaces one or
two of them by what people write instead. `passes` then computes what a backward pass with that
mistake gives, so that gradients can be compared with those of every known mistake: see
backward_check.py.

This is not the page that trains (equations.py): it keeps every quantity, and it is as plain as a
student writes it. It takes arrays of NumPy or JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepprop.activations import Activation
from deepprop.costs import Output, softmax

Arrays = dict[int, Any]
Equation = Callable[["Passes", int], Any]


@dataclass(frozen=True)
class Problem:
    """A network and its examples; the layers are numbered from 1.

    Attributes:
        W, b: of each layer, (n_l, n_{l-1}) and (n_l, 1).
        X, Y: (n_0, m) and the targets.
        hidden: the activations of layers 1 to L - 1.
        output: the output layer with its cost.
    """

    W: Arrays
    b: Arrays
    X: Any
    Y: Any
    hidden: Sequence[Activation]
    output: Output

    @property
    def L(self) -> int:
        """Return the number of layers."""
        return len(self.W)

    @property
    def m(self) -> int:
        """Return the number of examples."""
        return int(self.X.shape[1])


@dataclass
class Passes:
    """Every quantity of a forward and a backward pass, by layer.

    Attributes:
        problem: the network and its examples.
        previous: the passes of the step before, with other weights and examples, or None.
        rate: a number that some mistakes need, such as a learning rate.
        Z, A, dA, dZ, dW, db: the quantities, as far as they are computed.
    """

    problem: Problem
    previous: "Passes | None" = None
    rate: float = 0.0
    Z: Arrays = field(default_factory=dict)
    A: Arrays = field(default_factory=dict)
    dA: Arrays = field(default_factory=dict)
    dZ: Arrays = field(default_factory=dict)
    dW: Arrays = field(default_factory=dict)
    db: Arrays = field(default_factory=dict)

    @property
    def W(self) -> Arrays:
        """Return the weights."""
        return self.problem.W

    @property
    def m(self) -> int:
        """Return the number of examples."""
        return self.problem.m

    @property
    def L(self) -> int:
        """Return the number of layers."""
        return self.problem.L

    def slope(self, l: int, Z: Any, A: Any) -> Any:
        """Return g[l]'(Z), for A = g[l](Z)."""
        return apply(self.problem.hidden[l - 1].g_prime, Z, A)


def apply(f: Callable[..., Any], *arrays: Any) -> Any:
    """Return f of arrays, for a function of JAX arrays: of NumPy's in NumPy, otherwise in JAX."""
    made = f(*map(jnp.asarray, arrays))
    return made if any(isinstance(P, jax.Array) for P in arrays) else np.asarray(made)


def _g(p: Passes, l: int) -> Any:
    return apply(p.problem.hidden[l - 1].g, p.Z[l])


def _output(p: Passes, l: int) -> Any:
    return apply(p.problem.output.g, p.Z[l])


def _output_signal(p: Passes, l: int) -> Any:
    return apply(p.problem.output.dZ, p.Z[l], p.A[l], p.problem.Y)


def _g_prime(p: Passes, l: int) -> Any:
    return p.slope(l, p.Z[l], p.A[l])


PAGE: Mapping[str, Equation] = {
    "Z": lambda p, l: p.W[l] @ p.A[l - 1] + p.problem.b[l],
    "A": _g,
    "A[L]": _output,
    "dZ[L]": _output_signal,
    "dA": lambda p, l: p.W[l + 1].T @ p.dZ[l + 1],
    "dZ": lambda p, l: p.dA[l] * _g_prime(p, l),
    "dW": lambda p, l: p.dZ[l] @ p.A[l - 1].T / p.m,
    "db": lambda p, l: p.dZ[l].sum(axis=1, keepdims=True) / p.m,
}
LINES = {
    "Z": "Z[l] = W[l] A[l-1] + b[l]",
    "A": "A[l] = g[l](Z[l])",
    "A[L]": "A[L] = g[L](Z[L])",
    "dZ[L]": "dZ[L] = dA[L] * g[L]'(Z[L])",
    "dA": "dA[l] = W[l+1]^T dZ[l+1]",
    "dZ": "dZ[l] = dA[l] * g[l]'(Z[l])",
    "dW": "dW[l] = 1/m dZ[l] A[l-1]^T",
    "db": "db[l] = 1/m sum_i dZ[l](i)",
}


@dataclass(frozen=True)
class Mistake:
    """A mistake: its name, the equations that it replaces, and the lines as made and as right.

    Attributes:
        name: what is wrong, such as "1/m is missing".
        yours: the line as it is made.
        right: the line as it should be.
        equations: what replaces equations of `PAGE`, by their names.
        fitted: whether the equations use `Passes.rate`, a number that has to be found.
    """

    name: str
    yours: str
    right: str
    equations: Mapping[str, Equation]
    fitted: bool = False


def passes(
    problem: Problem,
    mistake: Mistake | None = None,
    *,
    only: int | None = None,
    previous: Passes | None = None,
    rate: float = 0.0,
) -> Passes:
    """Compute the forward and the backward pass, right or with a mistake.

    Args:
        problem: the network and its examples.
        mistake: what is done wrong, or None.
        only: the layer in which it is done wrong; None for all layers.
        previous: the passes of the step before, for mistakes that read them.
        rate: the number that a fitted mistake needs.
    """
    p, L = Passes(problem, previous, rate), problem.L

    def equation(name: str, l: int) -> Any:
        wrong = mistake is not None and name in mistake.equations and only in (None, l)
        made = mistake.equations if wrong and mistake is not None else PAGE
        return made[name](p, l)

    p.A[0] = problem.X
    for l in range(1, L + 1):
        p.Z[l] = equation("Z", l)
        p.A[l] = equation("A" if l < L else "A[L]", l)
    for l in range(L, 0, -1):
        if l == L:
            p.dZ[l] = equation("dZ[L]", l)
        else:
            p.dA[l] = equation("dA", l)
            p.dZ[l] = equation("dZ", l)
        p.dW[l], p.db[l] = equation("dW", l), equation("db", l)
    return p


def _scaled(name: str, by: Callable[[Passes], float]) -> Equation:
    """Return that equation of the page, multiplied by a number."""
    return lambda p, l: PAGE[name](p, l) * by(p)


def _saturated_dA(p: Passes, l: int) -> Any:
    """dA[L] = -Y / A[L] + (1 - Y) / (1 - A[L]) of the sigmoid, and -Y / A[L] of softmax."""
    A, Y = p.A[l], p.problem.Y
    positive = -Y / A
    return positive if p.problem.output.name == "softmax" else positive + (1 - Y) / (1 - A)


def _through_A(p: Passes, l: int) -> Any:
    """dZ[L] = dA[L] * A[L] (1 - A[L]), which is 0/0 where A[L] is 0 or 1."""
    A, dA = p.A[l], _saturated_dA(p, l)
    if p.problem.output.name == "softmax":
        return A * (dA - (A * dA).sum(axis=0, keepdims=True))
    return dA * A * (1 - A)


def _output_slope(p: Passes, l: int) -> Any:
    """g[L]'(Z[L]) entry by entry, which for softmax is the diagonal of its Jacobian."""
    Z, A, output = p.Z[l], p.A[l], p.problem.output
    if output.name.partition("+")[0] == "softmax":
        return A * (1 - A)
    return apply(output.dZ_from_dA, Z, A, 0 * A + 1)


def _without_output_slope(p: Passes, l: int) -> Any:
    """dZ[L] = dA[L]."""
    if p.problem.output.name in ("softmax", "sigmoid"):
        return _saturated_dA(p, l)
    return PAGE["dZ[L]"](p, l) / _output_slope(p, l)


def _softmax_along_examples(p: Passes, l: int) -> Any:
    return apply(softmax, p.Z[l].T).T


def _slope_at_A(p: Passes, l: int) -> Any:
    return p.dA[l] * p.slope(l, p.A[l], apply(p.problem.hidden[l - 1].g, p.A[l]))


def _of_layer_below(p: Passes, l: int) -> Any:
    return p.dA[l] * (p.slope(l, p.Z[l - 1], p.A[l - 1]) if l > 1 else _g_prime(p, l))


def _of_layer_above(p: Passes, l: int) -> Any:
    Z = p.Z[l + 1]
    return p.dA[l] * p.slope(l, Z, apply(p.problem.hidden[l - 1].g, Z))


def _earlier(name: str) -> Equation:
    """Return Z[l] or A[l] of the step before; in the first step, that of this one."""

    def equation(p: Passes, l: int) -> Any:
        if p.previous is None:
            return PAGE[name](p, l)
        return getattr(p.previous, name[0])[l]

    return equation


def _gradient_of_earlier_A(p: Passes, l: int) -> Any:
    return p.dZ[l] @ (p.previous or p).A[l - 1].T / p.m


ROW, COLUMN, DOWN, SLOPE = (LINES[name] for name in ("dW", "db", "dA", "dZ"))

CATALOGUE: Sequence[Mistake] = (
    # 1/m.
    Mistake("1/m is missing", "dW[l] = dZ[l] A[l-1]^T, db[l] = sum_i dZ[l](i)", f"{ROW}, {COLUMN}",
        {"dW": _scaled("dW", lambda p: p.m), "db": _scaled("db", lambda p: p.m)}),
    Mistake("1/m is there twice", "dZ[L] = 1/m (A[L] - Y), and 1/m again in dW[l] and db[l]",
        "dZ[L] = A[L] - Y; 1/m belongs into dW[l] and db[l] alone",
        {"dZ[L]": _scaled("dZ[L]", lambda p: 1 / p.m)}),
    Mistake("1/m is there once per layer", "dA[l] = 1/m W[l+1]^T dZ[l+1]", DOWN,
        {"dA": _scaled("dA", lambda p: 1 / p.m)}),
    Mistake("1/m is missing in dW", "dW[l] = dZ[l] A[l-1]^T", ROW,
        {"dW": _scaled("dW", lambda p: p.m)}),
    Mistake("1/m is missing in db", "db[l] = sum_i dZ[l](i)", COLUMN,
        {"db": _scaled("db", lambda p: p.m)}),
    # db.
    Mistake("db is summed over the wrong axis: the units instead of the examples",
        "db = np.sum(dZ, axis=0) / m", "db = np.sum(dZ, axis=1, keepdims=True) / m",
        {"db": lambda p, l: p.dZ[l].sum(axis=0) / p.m}),
    Mistake("db is summed over everything: the units as well as the examples",
        "db = np.sum(dZ) / m", "db = np.sum(dZ, axis=1, keepdims=True) / m",
        {"db": lambda p, l: p.dZ[l].sum() / p.m}),
    Mistake("db is the mean over everything: the units as well as the examples",
        "db = np.mean(dZ)", "db = np.mean(dZ, axis=1, keepdims=True)",
        {"db": lambda p, l: p.dZ[l].mean()}),
    # g'.
    Mistake("g' is left out", "dZ[l] = W[l+1]^T dZ[l+1]", f"{DOWN}, {SLOPE}",
        {"dZ": lambda p, l: p.dA[l]}),
    Mistake("g' is taken at A instead of Z", "dZ[l] = dA[l] * g'(A[l])", SLOPE,
        {"dZ": _slope_at_A}),
    Mistake("Z is put into the formula for g' that takes A", "dZ[l] = dA[l] * g', such as 1 - Z^2",
        "dZ[l] = dA[l] * g', such as 1 - A^2 for tanh and A (1 - A) for sigmoid",
        {"dZ": lambda p, l: p.dA[l] * p.slope(l, p.Z[l], p.Z[l])}),
    Mistake("g' is of the layer below", "dZ[l] = dA[l] * g'(Z[l-1])", SLOPE,
        {"dZ": _of_layer_below}),
    Mistake("g' is of the layer above", "dZ[l] = dA[l] * g'(Z[l+1])", SLOPE,
        {"dZ": _of_layer_above}),
    Mistake("g takes the place of g'", "dZ[l] = dA[l] * g(Z[l])", SLOPE,
        {"dZ": lambda p, l: p.dA[l] * p.A[l]}),
    # W.
    Mistake("W is not transposed", "dA[l] = W[l+1] dZ[l+1]", DOWN,
        {"dA": lambda p, l: p.W[l + 1] @ p.dZ[l + 1]}),
    Mistake("W is of the wrong layer", "dA[l] = W[l]^T dZ[l+1]", DOWN,
        {"dA": lambda p, l: p.W[l].T @ p.dZ[l + 1]}),
    Mistake("W is updated before it is used to go down",
        "W[l+1] = W[l+1] - rate dW[l+1], then dA[l] = W[l+1]^T dZ[l+1]",
        "dA[l] = W[l+1]^T dZ[l+1] with the W of the forward pass; update all W afterwards",
        {"dA": lambda p, l: (p.W[l + 1] - p.rate * p.dW[l + 1]).T @ p.dZ[l + 1]}, fitted=True),
    # A.
    Mistake("A[l] stands where A[l-1] belongs", "dW[l] = 1/m dZ[l] A[l]^T", ROW,
        {"dW": lambda p, l: p.dZ[l] @ p.A[l].T / p.m}),
    Mistake("dW is transposed", "dW[l] = 1/m A[l-1] dZ[l]^T", ROW,
        {"dW": lambda p, l: p.A[l - 1] @ p.dZ[l].T / p.m}),
    Mistake("Z[l-1] stands where A[l-1] belongs", "dW[l] = 1/m dZ[l] Z[l-1]^T", ROW,
        {"dW": lambda p, l: p.dZ[l] @ (p.Z[l - 1] if l > 1 else p.A[0]).T / p.m}),
    # The output.
    Mistake("the output's g' is multiplied in, where A - Y has it already",
        "dZ[L] = (A[L] - Y) * g[L]'(Z[L])", "dZ[L] = A[L] - Y",
        {"dZ[L]": lambda p, l: (p.A[l] - p.problem.Y) * _output_slope(p, l)}),
    Mistake("the output's g' is left out", "dZ[L] = dA[L]", LINES["dZ[L]"],
        {"dZ[L]": _without_output_slope}),
    Mistake("the sign of the output's signal is turned", "dZ[L] = Y - A[L]", "dZ[L] = A[L] - Y",
        {"dZ[L]": _scaled("dZ[L]", lambda p: -1)}),
    Mistake("A - Y stands where this cost needs dA[L] * g[L]'", "dZ[L] = A[L] - Y", LINES["dZ[L]"],
        {"dZ[L]": lambda p, l: p.A[l] - p.problem.Y}),
    Mistake("softmax is taken along the examples instead of the units",
        "A[L] = exp(Z) / np.sum(exp(Z), axis=1, keepdims=True)",
        "A[L] = exp(Z) / np.sum(exp(Z), axis=0, keepdims=True)",
        {"A[L]": _softmax_along_examples, "dZ[L]": lambda p, l: p.A[l] - p.problem.Y}),
    Mistake("the output's g is left out", "dZ[L] = Z[L] - Y", "A[L] = g[L](Z[L]), dZ[L] = A[L] - Y",
        {"dZ[L]": lambda p, l: p.Z[l] - p.problem.Y}),
    Mistake("dZ[L] is twice as large: this cost has 1/2 in it", "dZ[L] = 2 (A[L] - Y)",
        "dZ[L] = A[L] - Y", {"dZ[L]": _scaled("dZ[L]", lambda p: 2)}),
    Mistake("the cost is a mean over the output units as well; here it is their sum",
        "dZ[L] = 1/n_L (A[L] - Y)", "dZ[L] = A[L] - Y",
        {"dZ[L]": _scaled("dZ[L]", lambda p: 1 / len(p.A[p.L]))}),
    Mistake("the cost is a mean over the output units, of a square without 1/2",
        "dZ[L] = 2/n_L (A[L] - Y)", "dZ[L] = A[L] - Y",
        {"dZ[L]": _scaled("dZ[L]", lambda p: 2 / len(p.A[p.L]))}),
    # The forward pass.
    Mistake("b is not added", "Z[l] = W[l] A[l-1]", LINES["Z"],
        {"Z": lambda p, l: p.W[l] @ p.A[l - 1]}),
    Mistake("b, as a vector (n,), is added to the rows instead of the columns",
        "Z = W @ A + b, where b.shape is (n,)", "Z = W @ A + b, where b.shape is (n, 1)",
        {"Z": lambda p, l: p.W[l] @ p.A[l - 1] + p.problem.b[l][:, 0]}),
    Mistake("Y is turned: (n, 1) against (n,), or (m, n) against (n, m)", "dZ[L] = A[L] - Y^T",
        "dZ[L] = A[L] - Y", {"dZ[L]": lambda p, l: p.A[l] - p.problem.Y.T}),
    # Another step.
    Mistake("the cache is of another step", "Z and A of an earlier forward pass",
        "Z and A of the forward pass with these W, b, X",
        {**{name: _earlier(name) for name in ("Z", "A", "A[L]")}, "dW": _gradient_of_earlier_A}),
    Mistake("the weights are of another step",
        "dA[l] = W[l+1]^T dZ[l+1], with the W of an earlier step",
        "dA[l] = W[l+1]^T dZ[l+1], with the W of this forward pass",
        {"dA": lambda p, l: (p.previous or p).W[l + 1].T @ p.dZ[l + 1]}),
    # What belongs to another cost.
    Mistake("L2 regularisation is added, which this cost does not have",
        "dW[l] = 1/m dZ[l] A[l-1]^T + rate W[l]", ROW,
        {"dW": lambda p, l: PAGE["dW"](p, l) + p.rate * p.W[l]}, fitted=True),
)  # fmt: skip
