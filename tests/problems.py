"""Networks with data that fits them, and the oracle: autodiff of the public cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.activations import ACTIVATIONS

HIDDEN = [*ACTIVATIONS, "leaky_relu(0.3)", "elu(0.7)"]
CANONICAL = ["softmax", "sigmoid", "identity", "exp"]
OUTPUTS = [
    *CANONICAL, "tanh+absolute_error", "tanh+huber(0.4)",
    "sigmoid+squared_error", "softplus+huber", "identity+quantile(0.8)", "softmax+squared_error",
    "softmax+smoothed(0.2)", "softmax+focal(1.5)",
]  # fmt: skip


def thorough(*case):
    """A case of a table that the ordinary run leaves out."""
    return pytest.param(*case, marks=pytest.mark.thorough)


def problem(seed, sizes, m, hidden="tanh", output="softmax", weighted=False, dtype=np.float64):
    """params with b that is not 0 (so that no unit sits on a kink), X, Y and weights or None."""
    rng = np.random.default_rng(seed)
    names = [hidden] * (len(sizes) - 2) if isinstance(hidden, str) else hidden
    layers = [*map(dp.activation, names), dp.output(output)]
    params = tuple(
        dp.Layer(
            jnp.asarray(rng.standard_normal((n, n_below)) / np.sqrt(n_below), dtype),
            jnp.asarray(0.3 * rng.standard_normal((n, 1)), dtype),
            layer,
        )
        for n_below, n, layer in zip(sizes, sizes[1:], layers, strict=False)
    )
    X = rng.standard_normal((sizes[0], m)).astype(dtype)
    Y = targets(rng, output, sizes[-1], m).astype(dtype)
    return params, X, Y, rng.uniform(0.1, 3.0, m).astype(dtype) if weighted else None


def targets(rng, output, n, m):
    """Y of the kind that the output takes, soft labels among them."""
    match output:
        case "softmax+focal(1.5)":
            return np.eye(n)[:, rng.integers(n, size=m)]
        case "softmax" | "softmax+smoothed(0.2)" | "softmax+squared_error":
            return rng.dirichlet(np.full(n, 0.5), m).T
        case "sigmoid":
            return rng.uniform(0, 1, (n, m))
        case "exp":
            return rng.poisson(2.0, (n, m)).astype(float)
        case _:
            return rng.standard_normal((n, m))


def public_cost(params, X, Y, weights=None):
    return dp.cost(dp.forward(params, X)[1], Y, weights)


autodiff = jax.grad(public_cost)
exactly = jax.jit(autodiff)  # in one program


def by_hand(params, X, Y, weights=None):
    return dp.manual_backward(dp.forward(params, X)[1], Y, weights)


both = jax.jit(lambda *args: (by_hand(*args), autodiff(*args)))  # one program: compiled sooner


def worst_error(grads, expected):
    """The largest error in an array of the gradient, relative to the largest entry of that array.

    An array that is all but 0 is held against the largest entry of the whole gradient, or against
    1e-5: A and Y are of order 1, so what cancels in A - Y is only known to a few eps.
    """
    trees = (map(np.asarray, jax.tree.leaves(tree)) for tree in (grads, expected))
    pairs = list(zip(*trees, strict=True))
    largest = max(float(abs(e).max()) for _, e in pairs)
    return max(
        float(abs(g - e).max()) / max(float(abs(e).max()), 1e-6 * largest, 1e-5) for g, e in pairs
    )


def grouped(metrics=None, patience=None, record_every=None, checkpoint_every=None, **options):
    """The options of `fit`, with what belongs to a group in it."""
    if metrics is not None or patience is not None:
        given = {"metrics": metrics, "patience": patience}
        given = {name: value for name, value in given.items() if value is not None}
        options["validation"] = dp.Validation(*options["validation"], **given)
    if record_every is not None:
        options["record"] = dp.Record(options["record"], record_every)
    if checkpoint_every is not None:
        folder = options.get("checkpoint")
        checkpoint = dp.Checkpoint("" if folder is None else folder, checkpoint_every)
        options["checkpoint"] = None if folder is None else checkpoint
    return options
