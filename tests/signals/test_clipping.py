"""Clipping in one pass, against the gradients of single examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import OUTPUTS, problem, worst_error
from tests.signals.oracles import (
    every_activation,
    factors_of,
    mean,
    rows,
    scaled,
    signals_of,
)

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("how", ["clip", "clip each layer", "normalise", "normalise each layer"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_clipped(output, how):
    params, X, Y, w, each = every_activation(output)
    L, gamma = len(params), 0.01 if "normalise" in how else None
    norms = np.linalg.norm(rows(each), axis=1)
    C = np.median(norms)  # so that some examples are clipped and some are not
    if "each layer" in how:
        C = np.linspace(0.5, 1.5, L) * C / np.sqrt(L)
    factors = factors_of(each, C, gamma)
    assert gamma is not None or (factors.min() < 1 == factors.max())
    cache, _ = signals_of(params, X, Y)
    for weights in (None, w):
        expected = mean(scaled(each, factors), np.ones(6) if weights is None else weights)
        got = dp.clipped_backward(cache, Y, C, gamma=gamma, weights=weights)
        assert worst_error(got, expected) <= 1e-10


def test_a_wide_bound_clips_nothing():
    params, X, Y, w = problem(41, [4, 5, 3], 6, weighted=True)
    _, cache = dp.forward(params, X)
    clipped = dp.clipped_backward(cache, Y, 1e6, weights=w)
    assert worst_error(clipped, dp.manual_backward(cache, Y, w)) == 0


def test_an_example_without_a_gradient_is_left_alone():
    params, X, _, _ = problem(43, [4, 5, 3], 6, output="identity")
    A, cache = dp.forward(params, X)
    for gamma in (None, 0.01):
        grads = dp.clipped_backward(cache, A, 1.0, gamma=gamma)  # Y = A: dZ = 0
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads))


def test_lengths_whose_squares_overflow_or_vanish():
    with jax.enable_x64(False):
        layer = dp.Layer(jnp.zeros((1, 1)), jnp.zeros((1, 1)), dp.output("identity"))
        _, cache = dp.forward((layer,), jnp.array([[1e15, 1e-15]]))
        dZ = [jnp.array([[1e10, 1e-15]])]
        np.testing.assert_allclose(dp.per_example_norms(cache, dZ), [1e25, 1e-15], rtol=1e-6)
        clipped = dp.clipped_backward(cache, -dZ[0], 1.0)
        np.testing.assert_allclose(clipped[0].W, 0.5, rtol=1e-6)


BAD = {
    "max_norm must be finite and above 0, got 0.0": {"max_norm": 0.0},
    "max_norm must be finite and above 0, got nan": {"max_norm": float("nan")},
    "max_norm must be one number, or L = 2 numbers, one per layer, got shape": {
        "max_norm": [1.0] * 3
    },
    "gamma must be finite and above 0": {"max_norm": 1.0, "gamma": 0.0},
    "weights must have shape": {"max_norm": 1.0, "weights": [1.0]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_of_clipping(message):
    params, X, Y, _ = problem(0, [4, 5, 3], 6)
    with pytest.raises(ValueError, match=message):
        dp.clipped_backward(dp.forward(params, X)[1], Y, **BAD[message])


def products_in(backward, params, X, Y):
    """How many matrix products both passes have, compiled as `fit` does, and their temporary bytes."""

    def passes(params, X, Y):
        return backward(dp.forward(params, X.T)[1], Y.T)

    program = jax.jit(passes).lower(params, X.T, Y.T).compile()
    return program.as_text().count(" dot("), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("max_norm", [1.0, (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("m", [32, 128])
def test_clipping_takes_no_matrix_product_more_and_one_array_at_most(m, max_norm):
    with jax.enable_x64(False):
        params, X, Y, _ = problem(0, [640, 320, 160, 10], m, "relu", dtype=np.float32)
        plain = products_in(dp.manual_backward, params, X, Y)
        clipped = products_in(partial(dp.clipped_backward, max_norm=max_norm), params, X, Y)
    assert clipped[0] == plain[0] == 8  # Z thrice, dA twice, dW thrice
    # XLA computes dZ[1] twice, for its lengths and for its product, and has dA[1] and Z[1] for it.
    assert clipped[1] <= 1.05 * plain[1] + 4 * 320 * m
