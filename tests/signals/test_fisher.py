"""Sampled targets and Kronecker factors against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import CANONICAL, problem
from tests.signals.oracles import one_by_one, signals_of

forward = jax.jit(dp.forward)
kfac_factors = jax.jit(dp.kfac_factors)


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_sampled_targets_make_the_fisher(output):
    """Over draws, dZ[L] has mean 0 and covariance H: within 5 standard errors, entry by entry."""
    params, X, Y, _ = problem(61, [3, 4, 3], 4, "tanh", output)
    _, cache = forward(params, X)
    draws = jax.random.split(jax.random.key(2), 20_000)

    @jax.jit
    @jax.vmap
    def drawn(key):
        return dp.error_signals(cache, dp.sampled_targets(key, cache))[-1]

    dZ = np.asarray(drawn(draws))  # (draws, n_L, m)
    squares = np.einsum("sim,sjm->smij", dZ, dZ)
    loss = params[-1].activation.loss
    hessian = jax.hessian(lambda z, y: loss(z[:, None], y[:, None])[0])
    H = jax.jit(jax.vmap(hessian, (1, 1)))(cache.Z[-1], Y)
    for values, expected in ((dZ, 0), (squares, np.asarray(H))):
        error = values.std(axis=0) / np.sqrt(len(draws))
        assert (abs(values.mean(axis=0) - expected) <= 5 * error + 1e-12).all()


def test_counts_above_what_an_integer_holds_are_drawn():
    layer = dp.Layer(jnp.zeros((1, 1)), jnp.full((1, 1), 25.0), dp.output("exp"))
    A, cache = dp.forward((layer,), jnp.zeros((1, 1000)))
    drawn = np.asarray(dp.sampled_targets(jax.random.key(0), cache), np.float64)
    # 7.2e10, with a deviation of 2.7e5; 1,000 draws, and float32 rounds them by 4096
    assert abs(drawn.mean() - float(A[0, 0])) < 5 * 2.7e5 / np.sqrt(1000) + 4096
    assert drawn.std() == pytest.approx(2.7e5, rel=0.15)


@pytest.mark.usefixtures("x64")
def test_squared_gradients_of_sampled_targets_estimate_the_gauss_newton_diagonal():
    params, X, _, _ = problem(67, [3, 4, 3], 5, "tanh", "softmax")
    _, cache = forward(params, X)

    @jax.jit
    @jax.vmap
    def drawn(key):
        dZ = dp.error_signals(cache, dp.sampled_targets(key, cache))
        return dp.squared_gradients(cache, dZ)

    samples = drawn(jax.random.split(jax.random.key(3), 4_000))
    exact = jax.jit(dp.gauss_newton_diagonal)(cache)
    for got, expected in zip(jax.tree.leaves(samples), jax.tree.leaves(exact), strict=True):
        error = np.asarray(got).std(axis=0) / np.sqrt(len(got))
        assert (abs(np.asarray(got).mean(axis=0) - np.asarray(expected)) <= 5 * error).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighted", [False, True])
def test_kfac_factors(weighted):
    """For one example a block is the factors' Kronecker product, exactly; for more, their means."""
    params, X, Y, w = problem(71, [3, 4, 2], 6, "tanh", "softmax", weighted)
    cache, dZ = signals_of(params, X, Y)
    each = one_by_one(params, X, Y)
    for i in range(6):
        alone = signals_of(params, X[:, i : i + 1], Y[:, i : i + 1])
        for l, (A, G) in enumerate(kfac_factors(*alone)):
            g = np.concatenate([each[l].W[i], each[l].b[i]], axis=1).T.ravel()  # column by column
            np.testing.assert_allclose(np.kron(A, G), np.outer(g, g), atol=1e-12)
    share = (np.ones(6) if w is None else w) / (6 if w is None else w.sum())
    for l, (A, G) in enumerate(kfac_factors(cache, dZ, w)):
        a = np.concatenate([cache.A[l], np.ones((1, 6))])
        np.testing.assert_allclose(A, (a * share) @ a.T, atol=1e-12)
        np.testing.assert_allclose(G, (np.asarray(dZ[l]) * share) @ np.asarray(dZ[l]).T, atol=1e-12)


def test_an_output_that_tells_no_distribution_is_refused():
    params, X, _, _ = problem(0, [3, 4, 2], 5, output="tanh+huber", dtype=np.float32)
    _, cache = forward(params, X)
    with pytest.raises(
        ValueError, match="for sampled targets the network must have output softmax"
    ):
        dp.sampled_targets(jax.random.key(0), cache)
    with pytest.raises(
        ValueError, match="for the Gauss-Newton diagonal the network must have output"
    ):
        dp.gauss_newton_diagonal(cache)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.sampled_targets(0, cache)
