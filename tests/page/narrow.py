"""Networks with a narrow compute_dtype, the bounds of their dtypes, and errors."""

import jax
import numpy as np

import deepprop as dp
from tests.problems import by_hand, problem

NARROW = ["bfloat16", "float16"]
U_SUM = 2.0**-24  # the unit roundoff of float32
# Of both types: the unit roundoff, and half the distance between the numbers next to 0.
U = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"bfloat16": 0.0, "float16": 2.0**-25}


def mixed(kind, sizes=(3, 4, 2), m=5, hidden="tanh", output="identity", weighted=False, seed=17):
    """A network with products of that type, and the data."""
    params, X, Y, w = problem(seed, list(sizes), m, hidden, output, weighted, np.float32)
    return dp.with_compute_dtype(params, kind), X, Y, w


def plain(params):
    return dp.with_compute_dtype(params, None)


backward = jax.jit(by_hand)  # each of them one program
forward = jax.jit(dp.forward)
error_signals = jax.jit(dp.error_signals)
gradients = jax.jit(dp.gradients)


def flat(tree):
    if isinstance(tree, tuple) and isinstance(tree[0], dp.Layer) and tree[-1].W.ndim == 2:
        tree = dp.unstack(tree)
    leaves = jax.tree.leaves(tree)
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def errors(found, expected):
    """The largest of each array, relative to the largest number of it."""
    pairs = zip(flat(found), flat(expected), strict=True)
    return [abs(f - e).max() / max(abs(e).max(), 1e-30) for f, e in pairs]
