"""The page once more, as plain as a student writes it, with every quantity kept.

Each equation is a function of the passes so far, `p`, and of the layer l. A `Mistake` replaces some
of them, and `passes` computes what a backward pass with that mistake gives. The page that trains is
in equations.py. Here arrays may be of NumPy or JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepprop.activations import Activation
from deepprop.costs import Output

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


def g_prime(p: Passes, l: int) -> Any:
    """Return g[l]'(Z[l])."""
    return p.slope(l, p.Z[l], p.A[l])


PAGE: Mapping[str, Equation] = {
    "Z": lambda p, l: p.W[l] @ p.A[l - 1] + p.problem.b[l],
    "A": lambda p, l: apply(p.problem.hidden[l - 1].g, p.Z[l]),
    "A[L]": lambda p, l: apply(p.problem.output.g, p.Z[l]),
    "dZ[L]": lambda p, l: apply(p.problem.output.dZ, p.Z[l], p.A[l], p.problem.Y),
    "dA": lambda p, l: p.W[l + 1].T @ p.dZ[l + 1],
    "dZ": lambda p, l: p.dA[l] * g_prime(p, l),
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
    """A mistake: its name, its line and the right one, and the equations that it replaces.

    Attributes:
        name: what is wrong, such as "1/m is missing".
        yours: the line as people write it.
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
        changed = mistake.equations if mistake is not None and only in (None, l) else {}
        return changed.get(name, PAGE[name])(p, l)

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
