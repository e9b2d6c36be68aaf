"""A small run with a folder of checkpoints, and whether two runs are the same, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from tests.problems import grouped, problem

PARAMS, X, Y, _ = problem(0, [4, 8, 3], 24, "relu", dtype=np.float32)
ADAM = optax.adam(0.01)


def run(folder=None, params=PARAMS, optimizer=ADAM, X=X, Y=Y, **options):
    options = {"epochs": 3, "batch_size": 8, "key": jax.random.key(1), **options}
    return dp.fit(params, optimizer, X, Y, **grouped(checkpoint=folder, **options))


def assert_same(a, b):
    assert a.stopped == b.stopped
    assert list(a.history) == list(b.history)
    for name, column in a.history.items():
        np.testing.assert_array_equal(column, b.history[name])
    for p, q in zip(*(jax.tree.leaves((fit.params, fit.state)) for fit in (a, b)), strict=True):
        assert p.dtype == q.dtype
        if jnp.issubdtype(p.dtype, jax.dtypes.prng_key):
            p, q = jax.random.key_data(p), jax.random.key_data(q)
        np.testing.assert_array_equal(p, q)
