"""Scaling of float16 factors, and numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop import _arithmetic as precision
from tests.problems import by_hand, problem

NARROW = ["bfloat16", "float16"]
# Of both types: the unit roundoff, and half the distance between the numbers next to 0.
U = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def mixed(kind, sizes=(3, 4, 2), m=5, hidden="tanh", output="identity", weighted=False, seed=17):
    """A network with products of that type, and the data."""
    params, X, Y, w = problem(seed, list(sizes), m, hidden, output, weighted, np.float32)
    return dp.with_compute_dtype(params, kind), X, Y, w


backward = jax.jit(by_hand)  # each of them one program
forward = jax.jit(dp.forward)
error_signals = jax.jit(dp.error_signals)
gradients = jax.jit(dp.gradients)


# float16's scaling.


def product_of(kind):
    return jax.jit(lambda P, Q: precision.product(P, Q, jnp.float32, np.dtype(kind)))


@pytest.mark.parametrize("kind", NARROW)
def test_a_power_of_2_more_gives_the_same_bits(kind):
    """dZ and W times 2^k: dW and dA are what they were times 2^k, exactly."""
    params, X, Y, _ = mixed(kind, (5, 7, 3), 8)
    cache = forward(params, X)[1]
    dZ = [np.asarray(d, np.float32) for d in error_signals(cache, Y)]
    W, product = np.asarray(params[1].W).T, product_of(kind)
    expected, grads = product(W, dZ[1]), gradients(cache, dZ)
    for power in (-100, -60, -20, -1, 1, 20, 60, 90):
        times = lambda P, power=power: np.ldexp(np.asarray(P), power)  # noqa: E731
        for g, e in zip(gradients(cache, [times(d) for d in dZ]), grads, strict=True):
            assert np.array_equal(g.W, times(e.W))
            assert np.array_equal(g.b, times(e.b))
        assert np.array_equal(product(W, times(dZ[1])), times(expected))
        assert np.array_equal(product(times(W), dZ[1]), times(expected))
        assert np.array_equal(product(times(W), np.ldexp(dZ[1], -power)), expected)


def test_numbers_at_both_ends_of_float32():
    """float16 from numbers next to 2^-126 and to 2^128; what is subnormal may count as 0."""
    rng = np.random.default_rng(0)
    P, Q = (rng.uniform(0.5, 1, shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
    exact = P.astype(np.float64) @ Q
    product = product_of("float16")
    for p, q in ((-125, 0), (-125, 125), (127, -125), (127, -3), (-40, -80), (60, 60), (127, -127)):
        got = np.asarray(product(np.ldexp(P, p), np.ldexp(Q, q)), np.float64)
        if q == -127:  # subnormal: none of them is larger than 2^-127
            assert (abs(got) <= 1.01 * np.ldexp(exact, p + q)).all()
        else:
            np.testing.assert_allclose(got, np.ldexp(exact, p + q), rtol=2.1 * U["float16"])
    assert np.array_equal(product(np.ldexp(P, -149), Q) > 1e-30, np.zeros((3, 5), bool))
    # Overflow is told, not hidden.
    assert np.isinf(np.asarray(product(np.ldexp(P, 100), np.ldexp(Q, 100)))).all()


def test_small_numbers_beside_large_ones_keep_their_digits_over_28_powers_of_2():
    """The largest is brought above 2^13, and numbers of float16 are whole down to 2^-14."""
    P = np.array([[1.0, 2.0**-26 * (1 + 2.0**-10)]], np.float32)
    got = precision.product(jnp.asarray(P.T), jnp.ones((1, 1)), jnp.float32, jnp.float16)
    assert np.array_equal(got, P.T)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", NARROW)
def test_all_zero_dZ_gives_zero(kind, stacked):
    params, X, _, _ = mixed(kind, (3, 4, 4, 4, 2))
    cache = forward(dp.stack(params) if stacked else params, X)[1]
    grads = jax.jit(dp.manual_backward)(cache, cache.A[-1])
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
    zero = jax.tree.map(jnp.zeros_like, params)
    assert np.array_equal(dp.predict(zero, X), np.zeros((2, 5)))


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", NARROW)
def test_what_is_not_finite_is_not_hidden_and_goes_no_further_than_its_row(kind, wrong):
    params, X, Y, _ = mixed(kind, (5, 7, 3), 8)
    cache = forward(params, X)[1]
    dZ = [np.asarray(d, np.float32) for d in error_signals(cache, Y)]
    expected = gradients(cache, dZ)
    dZ = [d.copy() for d in dZ]  # jax may still be reading the arrays that it was given
    dZ[0][2, 4] = wrong
    dZ[0][1] *= 2**10  # were the inf left to the scale, a row of large numbers would overflow
    first, last = gradients(cache, dZ)
    assert not np.isfinite(first.W[2]).any()
    assert not np.isfinite(first.b[2]).any()
    for i, factor in ((0, 1), (1, 2**10), (3, 1)):
        np.testing.assert_allclose(first.W[i], factor * expected[0].W[i], rtol=2 * U[kind], atol=1e-5 * factor)  # fmt: skip
    assert np.array_equal(last.W, expected[1].W)
    for name in ("W", "b"):
        broken = params[1].__class__(**{**params[1].__dict__, name: getattr(params[1], name).at[1, 0].set(wrong)})  # fmt: skip
        A = np.asarray(dp.predict((params[0], broken), X))
        assert not np.isfinite(A[1]).any()
        assert np.isfinite(A[[0, 2]]).all()
    assert not np.isfinite(backward((params[0], broken), X, Y)[0].W).all()


def flat(tree):
    if isinstance(tree, tuple) and isinstance(tree[0], dp.Layer) and tree[-1].W.ndim == 2:
        tree = dp.unstack(tree)
    leaves = jax.tree.leaves(tree)
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def errors(found, expected):
    """The largest of each array, relative to the largest number of it."""
    pairs = zip(flat(found), flat(expected), strict=True)
    return [abs(f - e).max() / max(abs(e).max(), 1e-30) for f, e in pairs]


# What is compiled.


def passes(params, X, Y, weights):
    A, cache = dp.forward(params, X)
    return A, dp.cost(cache, Y, weights), dp.manual_backward(cache, Y, weights)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("kind", NARROW)
def test_vmap_is_of_each_network_alone(kind):
    """Networks of sizes far apart: each product has its own scale."""
    params, X, Y, w = mixed(kind, (4, 6, 3), 8, "tanh", "identity", True)
    sizes = np.array([1, 2.0**-40, 2.0**30], np.float32)
    grads = jax.jit(jax.vmap(lambda size: passes(params, X, size * Y, w)[2]))(sizes)
    for k, size in enumerate(sizes):
        alone = backward(params, X, size * Y, w)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], grads)
        assert max(errors(one, alone)) <= 4 * U[kind]
