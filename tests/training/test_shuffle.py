import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deepprop.training.shuffle import gathered, random_order


def orders(m, count):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: random_order(key, m)))(keys))


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 10, 16, 17, 30, 100, 997, 1797])
def test_every_number_occurs_once(m):
    assert (np.sort(orders(m, 20)) == np.arange(m)).all()


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("m", [1, 2, 9, 10, 11, 12, 99, 100, 101, 997])
def test_the_order_does_not_depend_on_the_length_that_is_compiled(m):
    order = np.asarray(random_order(jax.random.key(m), m))
    for length in (m, m + 1, m + 60):
        longer = jax.jit(random_order, static_argnames="length")(
            jax.random.key(m), m, length=length
        )
        np.testing.assert_array_equal(longer[:m], order)
        np.testing.assert_array_equal(longer[m:], np.arange(m, length))


def test_the_order_is_that_of_the_first_release():
    """A run that 0.1.0 began resumes with the same minibatches."""
    order = random_order(jax.random.key(0), 12)
    assert order.tolist() == [5, 0, 8, 7, 10, 9, 1, 2, 11, 6, 3, 4]


def test_a_large_permutation_and_another_key():
    a, b = (np.asarray(random_order(jax.random.key(seed), 60_000)) for seed in (0, 1))
    assert (np.sort(a) == np.arange(60_000)).all()
    assert np.mean(a == b) < 1e-3


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_all_orders_are_equally_likely(m):
    """Chi-square over all m! orders, at a level that a correct program fails once in a thousand."""
    seen = orders(m, 24_000)
    counts = [(seen == order).all(axis=1).sum() for order in itertools.permutations(range(m))]
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("m", [60, 101])
def test_places_and_neighbours_are_uniform(m):
    """Chi-square of where each number goes, and of how far apart neighbours end up."""
    seen = orders(m, 4_000)
    places = np.argsort(seen, axis=1)
    for first in (0, 1, m // 2, m - 1):
        assert stats.chisquare(np.bincount(places[:, first], minlength=m)).pvalue > 1e-4
    for step in (1, 2, 8, 10):  # in a row, or below one another, on the grid
        apart = (places[:, step:] - places[:, :-step]) % m
        assert stats.chisquare(np.bincount(apart.ravel(), minlength=m)[1:]).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_gathering_a_minibatch_widens_nothing_but_its_own_rows(dtype):
    """XLA's CPU backend may gather two-byte numbers as float32; then of the minibatch alone."""
    P = jnp.arange(64 * 6).reshape(64, 6).astype(dtype)
    index = jnp.array([5, 63, 0])
    rows = jax.jit(gathered)(P, index)
    assert rows.dtype == P.dtype
    assert np.array_equal(rows.astype(np.float32), np.asarray(P, np.float32)[index])
    if dtype != jnp.float32:
        text = jax.jit(gathered).lower(P, index).compile().as_text()
        assert "f32[64,6]" not in text
    parts = gathered(P, jnp.array([[1, 0], [31, 2]]))  # two shards of 32 rows
    assert np.array_equal(parts.astype(np.float32), np.asarray(P, np.float32)[[1, 0, 63, 34]])
