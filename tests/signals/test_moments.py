"""Mean squares, variance and the noise scale of gradients, against those of single examples."""

import jax
import numpy as np
import pytest

import deepprop as dp
from tests.problems import OUTPUTS, problem, worst_error
from tests.signals.oracles import every_activation, mean, one_by_one, rows, signals_of

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("output", OUTPUTS)
def test_mean_of_squares_and_variance(output):
    params, X, Y, w, each = every_activation(output)
    cache, dZ = signals_of(params, X, Y)
    for weights in (None, w):
        share = np.ones(6) if weights is None else weights
        squares = mean(each, share, np.square)
        assert worst_error(dp.squared_gradients(cache, dZ, weights), squares) <= 1e-10
        variance = jax.tree.map(lambda s, g: s - g * g, squares, mean(each, share))
        assert worst_error(dp.gradient_variance(cache, dZ, weights), variance) <= 1e-10


def test_noise_scale_against_its_definition():
    """Unbiased estimates of the covariance's trace and of the gradient's square, from the g_i."""
    params, X, Y, _ = problem(47, [4, 6, 3], 40)
    each = rows(one_by_one(params, X, Y))
    found = jax.jit(dp.gradient_noise_scale)(*signals_of(params, X, Y))
    trace = each.var(axis=0, ddof=1).sum()
    squared = (each.mean(axis=0) ** 2).sum() - trace / 40  # E ||mean||^2 = |G|^2 + tr / m
    np.testing.assert_allclose(found.trace, trace, rtol=1e-10)
    np.testing.assert_allclose(found.squared_norm, squared, rtol=1e-9)
    np.testing.assert_allclose(found.ratio, trace / squared, rtol=1e-9)


def test_noise_scale_where_only_noise_is_left():
    params, _, _, _ = problem(53, [3, 2], 4, output="identity")
    X = np.ones((3, 4))
    A, cache = dp.forward(params, X)
    dZ = dp.error_signals(cache, A + np.array([[1.0, -1, 1, -1]]))  # the mean gradient is 0
    found = jax.jit(dp.gradient_noise_scale)(cache, dZ)
    assert found.squared_norm < 0
    assert np.isinf(found.ratio)
    with pytest.raises(ValueError, match="at least two examples"):
        dp.gradient_noise_scale(*signals_of(params, X[:, :1], A[:, :1]))
