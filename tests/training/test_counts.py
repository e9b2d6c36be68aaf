"""Counts may be integers of NumPy or JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import grouped, problem

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, _ = problem(0, [4, 8, 3], 24, "relu", dtype=np.float32)
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
SGD = optax.sgd(0.1)
BY_KEY = {"epochs": 2, "batch_size": 8, "key": jax.random.key(1)}


def fit(folder, **options):
    options = {"validation": (X, Y), **BY_KEY, **options}
    return dp.fit(PARAMS, SGD, X, Y, **grouped(record=dp.diagnose, checkpoint=folder, **options))


def fit_batches(folder, **options):
    options = {"epochs": 2, "validation": (X, Y), **options}
    return dp.fit_batches(PARAMS, SGD, [(X, Y)] * 2, **grouped(checkpoint=folder, **options))


def fit_ensemble(folder, **options):
    return dp.fit_ensemble(
        SEVERAL, SGD, X, Y, **grouped(checkpoint=folder, **{**BY_KEY, **options})
    )


def in_words(name):
    group = name.removesuffix("_every")
    return name if group == name else f"every of a {group}"


COUNTS = [
    *((fit, name) for name in ("epochs", "first_epoch", "batch_size", "patience", "record_every", "checkpoint_every", "shards")),
    *((fit_batches, name) for name in ("epochs", "first_epoch", "patience", "checkpoint_every")),
    *((fit_ensemble, name) for name in ("epochs", "first_epoch", "batch_size", "checkpoint_every")),
]  # fmt: skip
TYPES = [np.uint8, np.int64, jnp.int32, jnp.uint8, np.asarray]


@pytest.mark.ordinary(3)
@pytest.mark.parametrize(("train", "name"), COUNTS)
def test_a_count_may_have_any_integer_type(tmp_path, train, name):
    plain = train(None, **{name: 2})
    for i, kind in enumerate(TYPES):
        one = train(tmp_path / str(i) if i < 2 else None, **{name: kind(2)})
        np.testing.assert_array_equal(one.params[0].W, plain.params[0].W)
        assert {k: v.shape for k, v in one.history.items()} == {
            k: v.shape for k, v in plain.history.items()
        }


@pytest.mark.ordinary(500)
@pytest.mark.parametrize(("train", "name"), COUNTS)
@pytest.mark.parametrize(
    "wrong", [2.5, 2.0, "2", True, np.True_, jnp.float32(2), [2], np.array([2, 2])]
)
def test_arguments_that_are_not_counts_are_named(train, name, wrong):
    with pytest.raises(TypeError, match=f"^{in_words(name)} must be a whole number, got"):
        train(None, **{name: wrong})


@pytest.mark.ordinary(500)
@pytest.mark.parametrize(("train", "name"), COUNTS)
@pytest.mark.parametrize("wrong", [0, -1, np.int8(-3), jnp.int32(0)])
def test_a_count_must_be_above_0(train, name, wrong):
    with pytest.raises(ValueError, match=f"^{in_words(name)} must be above 0"):
        train(None, **{name: wrong})
