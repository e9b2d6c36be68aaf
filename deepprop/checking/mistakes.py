"""The catalogue: mistakes that people make in a backward pass, each as the line that they write.

An entry is recognised by its gradients, so each must differ from every other in some network.
"""

from collections.abc import Callable, Sequence
from typing import Any

from deepprop.checking.plain import LINES, PAGE, Equation, Mistake, Passes, apply, g_prime
from deepprop.costs import softmax


def _scaled(name: str, by: Callable[[Passes, int], float]) -> Equation:
    """Return that equation of the page, multiplied by a number."""
    return lambda p, l: PAGE[name](p, l) * by(p, l)


def _saturated_dA(p: Passes, l: int) -> Any:
    """dA[L] = -Y / A[L] + (1 - Y) / (1 - A[L]) of the sigmoid, and -Y / A[L] of softmax."""
    A, Y = p.A[l], p.problem.Y
    positive = -Y / A
    return positive if p.problem.output.name == "softmax" else positive + (1 - Y) / (1 - A)


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


def _softmax_over_everything(p: Passes, l: int) -> Any:
    return apply(softmax, p.Z[l].reshape(-1, 1)).reshape(p.Z[l].shape)


def _softmax_along_examples(p: Passes, l: int) -> Any:
    return apply(softmax, p.Z[l].T).T


def _slope_at_A(p: Passes, l: int) -> Any:
    return p.dA[l] * p.slope(l, p.A[l], apply(p.problem.hidden[l - 1].g, p.A[l]))


# g' of other activations, as formulas that take this layer's Z and A.
FORMULAS: dict[str, tuple[str, Equation]] = {
    "sigmoid": ("A (1 - A)", lambda p, l: p.dA[l] * p.A[l] * (1 - p.A[l])),
    "tanh": ("(1 - A^2)", lambda p, l: p.dA[l] * (1 - p.A[l] ** 2)),
    "relu": ("(Z > 0)", lambda p, l: p.dA[l] * (p.Z[l] > 0)),
}


def _each(p: Passes, l: int, name: str) -> list[Any]:
    """Return dz_i a_i^T, or dz_i, of each example."""
    columns = [slice(i, i + 1) for i in range(p.m)]
    if name == "db":
        return [p.dZ[l][:, i] for i in columns]
    return [p.dZ[l][:, i] @ p.A[l - 1][:, i].T for i in columns]


def _divided_each_time(name: str) -> Equation:
    """Return dW or db of a loop that divides by m in every turn."""

    def equation(p: Passes, l: int) -> Any:
        total: Any = 0.0
        for one in _each(p, l, name):
            total = (total + one) / p.m
        return total

    return equation


def _of_one(name: str, i: int) -> Equation:
    """Return dW or db of one example alone."""
    return lambda p, l: _each(p, l, name)[i] / p.m


def _hidden_slope_of_output(p: Passes, l: int) -> Any:
    """dZ[L] = dA[L] * g'(Z[L]), with the g' of the hidden layers."""
    if not p.problem.hidden:
        return PAGE["dZ[L]"](p, l)
    g = p.problem.hidden[-1]
    return _without_output_slope(p, l) * apply(g.g_prime, p.Z[l], apply(g.g, p.Z[l]))


def _dA_of_dA(p: Passes, l: int) -> Any:
    """dA[l] = W[l+1]^T dA[l+1], from dZ[L] at the top."""
    return p.W[l + 1].T @ (p.dA[l + 1] if l + 1 < p.L else p.dZ[l + 1])


def _of_layer_below(p: Passes, l: int) -> Any:
    return p.dA[l] * (p.slope(l, p.Z[l - 1], p.A[l - 1]) if l > 1 else g_prime(p, l))


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


ROW, COLUMN, DOWN, SLOPE, START = (LINES[name] for name in ("dW", "db", "dA", "dZ", "dZ[L]"))
BOTH = f"{ROW}, {COLUMN}"
SUMMED = "db = np.sum(dZ, axis=1, keepdims=True) / m"


def _both(of: Callable[[str], Equation]) -> dict[str, Equation]:
    return {name: of(name) for name in ("dW", "db")}


CATALOGUE: Sequence[Mistake] = (
    # 1/m.
    Mistake("1/m is missing", "dW[l] = dZ[l] A[l-1]^T, db[l] = sum_i dZ[l](i)", BOTH,
        _both(lambda name: _scaled(name, lambda p, l: p.m))),
    Mistake("1/m is applied twice", "dZ[L] = 1/m (A[L] - Y), and 1/m again in dW[l] and db[l]",
        "1/m in dW[l] and db[l] alone", {"dZ[L]": _scaled("dZ[L]", lambda p, l: 1 / p.m)}),
    Mistake("1/m is applied once per layer", "dA[l] = 1/m W[l+1]^T dZ[l+1]", DOWN,
        {"dA": _scaled("dA", lambda p, l: 1 / p.m)}),
    Mistake("1/m is missing in dW", "dW[l] = dZ[l] A[l-1]^T", ROW,
        {"dW": _scaled("dW", lambda p, l: p.m)}),
    Mistake("1/m is missing in db", "db[l] = sum_i dZ[l](i)", COLUMN,
        {"db": _scaled("db", lambda p, l: p.m)}),
    Mistake("m is X.shape[0], the number of inputs, instead of X.shape[1]", "m = X.shape[0]",
        "m = X.shape[1]", _both(lambda name: _scaled(name, lambda p, l: p.m / len(p.A[0])))),
    Mistake("m is the number of units of the layer below instead of the number of examples",
        "m = A_prev.shape[0]", "m = A_prev.shape[1]",
        _both(lambda name: _scaled(name, lambda p, l: p.m / len(p.A[l - 1])))),
    Mistake("m is the number of units of the layer instead of the number of examples",
        "m = dZ.shape[0]", "m = dZ.shape[1]",
        _both(lambda name: _scaled(name, lambda p, l: p.m / len(p.dZ[l])))),
    Mistake("m is the number of output units instead of the number of examples",
        "m = Y.shape[0]", "m = Y.shape[1]",
        _both(lambda name: _scaled(name, lambda p, l: p.m / len(p.A[p.L])))),
    Mistake("the sum is divided by m after each example, not once at the end",
        "for i in range(m): dW = (dW + dz_i a_i^T) / m, and db likewise", BOTH,
        _both(_divided_each_time)),
    Mistake("only the first example is used, for instance because of a return inside the loop",
        "dW[l] = 1/m dz_1 a_1^T", BOTH, _both(lambda name: _of_one(name, 0))),
    Mistake("only the last example is used, for instance because of = instead of += in the loop",
        "dW[l] = 1/m dz_m a_m^T", BOTH, _both(lambda name: _of_one(name, -1))),
    # db.
    Mistake("db is summed over the wrong axis: units instead of examples",
        "db = np.sum(dZ, axis=0) / m", SUMMED, {"db": lambda p, l: p.dZ[l].sum(axis=0) / p.m}),
    Mistake("db is averaged over the wrong axis: units instead of examples",
        "db = np.mean(dZ, axis=0)", SUMMED, {"db": lambda p, l: p.dZ[l].mean(axis=0)}),
    Mistake("db is summed over everything: units as well as examples",
        "db = np.sum(dZ) / m", SUMMED, {"db": lambda p, l: p.dZ[l].sum() / p.m}),
    Mistake("db is averaged over everything: units as well as examples",
        "db = np.mean(dZ)", SUMMED, {"db": lambda p, l: p.dZ[l].mean()}),
    # g'.
    Mistake("g' is left out", "dZ[l] = W[l+1]^T dZ[l+1]", f"{DOWN}, {SLOPE}",
        {"dZ": lambda p, l: p.dA[l]}),
    Mistake("g' is left out everywhere, also at the output", "dA used as dZ in every layer",
        f"{START}, {SLOPE}", {"dZ": lambda p, l: p.dA[l], "dZ[L]": _without_output_slope}),
    Mistake("g' is taken at A instead of Z, or A has overwritten Z", "dZ[l] = dA[l] * g'(A[l])",
        SLOPE, {"dZ": _slope_at_A}),
    Mistake("Z is put into the formula for g' that takes A", "dZ[l] = dA[l] * g', such as 1 - Z^2",
        "dZ[l] = dA[l] * g', such as 1 - A^2 for tanh and A (1 - A) for sigmoid",
        {"dZ": lambda p, l: p.dA[l] * p.slope(l, p.Z[l], p.Z[l])}),
    Mistake("g' is that of the layer below", "dZ[l] = dA[l] * g'(Z[l-1])", SLOPE,
        {"dZ": _of_layer_below}),
    Mistake("g' is that of the layer above", "dZ[l] = dA[l] * g'(Z[l+1])", SLOPE,
        {"dZ": _of_layer_above}),
    *(Mistake(f"g' is that of {name}", f"dZ[l] = dA[l] * {formula}", SLOPE, {"dZ": equation})
      for name, (formula, equation) in FORMULAS.items()),
    Mistake("g is used instead of g'", "dZ[l] = dA[l] * g(Z[l])", SLOPE,
        {"dZ": lambda p, l: p.dA[l] * p.A[l]}),
    Mistake("g' is applied to dA instead of Z", "dZ[l] = dA[l] * (dA[l] > 0)",
        "dZ[l] = dA[l] * (Z[l] > 0)", {"dZ": lambda p, l: p.dA[l] * (p.dA[l] > 0)}),
    # W.
    Mistake("W is not transposed", "dA[l] = W[l+1] dZ[l+1]", DOWN,
        {"dA": lambda p, l: p.W[l + 1] @ p.dZ[l + 1]}),
    Mistake("W is that of the wrong layer", "dA[l] = W[l]^T dZ[l+1]", DOWN,
        {"dA": lambda p, l: p.W[l].T @ p.dZ[l + 1]}),
    Mistake("dA is passed down where dZ should be", "dA[l] = W[l+1]^T dA[l+1]", DOWN,
        {"dA": _dA_of_dA}),
    Mistake("W is updated before dA is computed",
        "W[l+1] = W[l+1] - rate dW[l+1], then dA[l] = W[l+1]^T dZ[l+1]",
        "dA[l] = W[l+1]^T dZ[l+1] with the W of the forward pass; update all W afterwards",
        {"dA": lambda p, l: (p.W[l + 1] - p.rate * p.dW[l + 1]).T @ p.dZ[l + 1]}, fitted=True),
    # A.
    Mistake("A[l] is used instead of A[l-1]", "dW[l] = 1/m dZ[l] A[l]^T", ROW,
        {"dW": lambda p, l: p.dZ[l] @ p.A[l].T / p.m}),
    Mistake("Z[l-1] is used instead of A[l-1]", "dW[l] = 1/m dZ[l] Z[l-1]^T", ROW,
        {"dW": lambda p, l: p.dZ[l] @ (p.Z[l - 1] if l > 1 else p.A[0]).T / p.m}),
    Mistake("dW is transposed", "dW[l] = 1/m A[l-1] dZ[l]^T", ROW,
        {"dW": lambda p, l: p.A[l - 1] @ p.dZ[l].T / p.m}),
    # The output.
    Mistake("the output's g' is applied again: A - Y already includes it",
        "dZ[L] = (A[L] - Y) * g[L]'(Z[L])", START,
        {"dZ[L]": lambda p, l: PAGE["dZ[L]"](p, l) * _output_slope(p, l)}),
    Mistake("the sigmoid's g' is applied to another output", "dZ[L] = dA[L] * A[L] (1 - A[L])",
        START, {"dZ[L]": lambda p, l: PAGE["dZ[L]"](p, l) * p.A[l] * (1 - p.A[l])}),
    Mistake("the output's g' is left out", "dZ[L] = dA[L]", START,
        {"dZ[L]": _without_output_slope}),
    Mistake("the hidden layers' g' is used for the output", "dZ[L] = dA[L] * g'(Z[L])", START,
        {"dZ[L]": _hidden_slope_of_output}),
    Mistake("the sign of dZ[L] is flipped", "dZ[L] = Y - A[L], or its like", START,
        {"dZ[L]": _scaled("dZ[L]", lambda p, l: -1)}),
    Mistake("A - Y is used, but this cost needs dA[L] * g[L]'", "dZ[L] = A[L] - Y", START,
        {"dZ[L]": lambda p, l: p.A[l] - p.problem.Y}),
    Mistake("softmax is taken along the examples instead of the units",
        "A[L] = exp(Z) / np.sum(exp(Z), axis=1, keepdims=True)",
        "A[L] = exp(Z) / np.sum(exp(Z), axis=0, keepdims=True)",
        {"A[L]": _softmax_along_examples, "dZ[L]": lambda p, l: p.A[l] - p.problem.Y}),
    Mistake("softmax is taken over everything: the sum is over examples as well as units",
        "A[L] = exp(Z) / np.sum(exp(Z))", "A[L] = exp(Z) / np.sum(exp(Z), axis=0, keepdims=True)",
        {"A[L]": _softmax_over_everything, "dZ[L]": lambda p, l: p.A[l] - p.problem.Y}),
    Mistake("the output's g is left out", "dZ[L] = Z[L] - Y", "A[L] = g[L](Z[L]), dZ[L] = A[L] - Y",
        {"dZ[L]": lambda p, l: p.Z[l] - p.problem.Y}),
    Mistake("dZ[L] is twice as large as this cost's", "dZ[L] = 2 (A[L] - Y), or its like",
        "dZ[L] of this cost, which has no factor 2: (A - Y)^2 comes with 1/2",
        {"dZ[L]": _scaled("dZ[L]", lambda p, l: 2)}),
    Mistake("the cost is averaged over the output units as well; here it is their sum",
        "dZ[L] = 1/n_L (A[L] - Y), or its like", START,
        {"dZ[L]": _scaled("dZ[L]", lambda p, l: 1 / len(p.A[p.L]))}),
    Mistake("the cost is a mean of squares over the output units; here it is half their sum",
        "dZ[L] = 2/n_L (A[L] - Y), or its like", START,
        {"dZ[L]": _scaled("dZ[L]", lambda p, l: 2 / len(p.A[p.L]))}),
    Mistake("the cost is a mean of squares over units and examples, and 1/m is applied again",
        "dZ[L] = 2 (A[L] - Y) / Y.size, and 1/m in dW[l] and db[l]", START,
        {"dZ[L]": _scaled("dZ[L]", lambda p, l: 2 / (len(p.A[p.L]) * p.m))}),
    # The forward pass.
    Mistake("b is not added", "Z[l] = W[l] A[l-1]", LINES["Z"],
        {"Z": lambda p, l: p.W[l] @ p.A[l - 1]}),
    Mistake("b, as a vector (n,), is added to the rows instead of the columns",
        "Z = W @ A + b, where b.shape is (n,)", "Z = W @ A + b, where b.shape is (n, 1)",
        {"Z": lambda p, l: p.W[l] @ p.A[l - 1] + p.problem.b[l][:, 0]}),
    Mistake("Y is transposed: (m, n) instead of (n, m)", "dZ[L] = A[L] - Y^T", "dZ[L] = A[L] - Y",
        {"dZ[L]": lambda p, l: p.A[l] - p.problem.Y.T}),
    # Another step.
    Mistake("the cache is from another step", "Z and A of an earlier forward pass",
        "Z and A of the forward pass with these W, b, X",
        {**{name: _earlier(name) for name in ("Z", "A", "A[L]")}, "dW": _gradient_of_earlier_A}),
    Mistake("the weights are from another step",
        "dA[l] = W[l+1]^T dZ[l+1], with the W of an earlier step",
        "dA[l] = W[l+1]^T dZ[l+1], with the W of this forward pass",
        {"dA": lambda p, l: (p.previous or p).W[l + 1].T @ p.dZ[l + 1]}),
    # What is not the gradient of this cost.
    Mistake("L2 regularisation is added, which this cost does not have",
        "dW[l] = 1/m dZ[l] A[l-1]^T + lambda W[l]", ROW,
        {"dW": lambda p, l: PAGE["dW"](p, l) + p.rate * p.W[l]}, fitted=True),
    Mistake("the updated parameters are returned instead of the gradients",
        "dW[l] = W[l] - rate dW[l], db[l] = b[l] - rate db[l]", BOTH,
        {"dW": lambda p, l: p.W[l] - p.rate * PAGE["dW"](p, l),
         "db": lambda p, l: p.problem.b[l] - p.rate * PAGE["db"](p, l)}, fitted=True),
)  # fmt: skip
