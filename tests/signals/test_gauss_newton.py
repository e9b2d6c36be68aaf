"""The Gauss-Newton diagonal and product against jax.jacobian and jax.hessian, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.signals.gauss_newton import gauss_newton_form
from tests.problems import CANONICAL, problem
from tests.signals.oracles import flat, gauss_newton

forward = jax.jit(dp.forward)


@pytest.mark.ordinary(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_gauss_newton_diagonal(output):
    params, X, Y, w = problem(59, [3, 4, 4, 3], 5, ["tanh", "gelu"], output, True)
    _, cache = forward(params, X)
    for weights in (None, w):
        share = np.ones(5) if weights is None else weights
        expected = np.diag(gauss_newton(params, X, Y, share))
        got = jax.jit(dp.gauss_newton_diagonal)(cache, weights)
        np.testing.assert_allclose(flat(got), expected, rtol=1e-10, atol=1e-14)


def test_gauss_newton_of_a_certain_network_is_not_lost_in_rounding():
    """softmax at A = (1 - 1e-9, 1e-9): A - (A - s) would have lost what s is."""
    layer = dp.Layer(jnp.zeros((2, 1)), jnp.array([[0.0], [-20.7232658]]), dp.output("softmax"))
    _, cache = dp.forward((layer,), jnp.ones((1, 1)))
    (diagonal,) = dp.gauss_newton_diagonal(cache)
    np.testing.assert_allclose(diagonal.b[1], 1e-9, rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_gauss_newton_product(output):
    params, X, Y, w = problem(107, [3, 4, 4, 3], 5, ["tanh", "gelu"], output, True)
    U, V = (problem(seed, [3, 4, 4, 3], 5, ["tanh", "gelu"], output)[0] for seed in (109, 113))
    _, cache = forward(params, X)
    for weights in (None, w):
        G = gauss_newton(params, X, Y, np.ones(5) if weights is None else weights)
        got = jax.jit(dp.gauss_newton_product)(cache, V, weights)
        np.testing.assert_allclose(flat(got), G @ flat(V), rtol=1e-10, atol=1e-12)
        form = jax.jit(gauss_newton_form)(cache, (U, V), weights)
        both = np.stack([flat(U), flat(V)])
        np.testing.assert_allclose(form, both @ G @ both.T, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_gauss_newton_of_residual_layers():
    """The direction passes through a residual layer on both ways, above and beside g."""
    params, X, Y, w = problem(59, [3, 4, 4, 4, 3], 5, "tanh", "softmax", True)
    params = tuple(replace(p, residual=l in (1, 2)) for l, p in enumerate(params))
    V = problem(61, [3, 4, 4, 4, 3], 5, "tanh", "softmax")[0]
    G, (_, cache) = gauss_newton(params, X, Y, w), forward(params, X)
    got = jax.jit(dp.gauss_newton_product)(cache, V, w)
    np.testing.assert_allclose(flat(got), G @ flat(V), rtol=1e-10, atol=1e-12)
    diagonal = jax.jit(dp.gauss_newton_diagonal)(cache, w)
    np.testing.assert_allclose(flat(diagonal), np.diag(G), rtol=1e-10, atol=1e-14)


def test_a_direction_of_another_network_is_refused():
    params, X, _, _ = problem(0, [3, 4, 2], 5, dtype=np.float32)
    _, cache = forward(params, X)
    with pytest.raises(ValueError, match="V must hold W of shapes"):
        dp.gauss_newton_product(cache, params[:1])
    with pytest.raises(TypeError, match="V must be layers like params, got tuple"):
        dp.gauss_newton_product(cache, (1, 2))
