"""What belongs to one example, against jax.vmap of jax.grad of its own loss, in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import deepprop as dp
from tests.problems import OUTPUTS, problem, worst_error
from tests.random_networks import networks
from tests.readers import READERS
from tests.signals.oracles import (
    every_activation,
    factors_of,
    mean,
    one_by_one,
    rows,
    scaled,
    signals_of,
)

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_of_single_examples(output):
    params, X, Y, _, each = every_activation(output)
    assert worst_error(jax.jit(dp.per_example_gradients)(*signals_of(params, X, Y)), each) <= 1e-10


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("output", OUTPUTS)
def test_norms(output):
    params, X, Y, _, each = every_activation(output)
    cache, dZ = signals_of(params, X, Y)
    norms = dp.per_example_norms(cache, dZ)
    np.testing.assert_allclose(norms, np.linalg.norm(rows(each), axis=1), rtol=1e-10)
    by_layer = [np.linalg.norm(rows(each, l), axis=1) for l in range(len(params))]
    np.testing.assert_allclose(dp.per_example_norms(cache, dZ, per_layer=True), by_layer, 1e-10)


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("output", OUTPUTS)
def test_products_between_two_batches(output):
    params, X, Y, _, each = every_activation(output)
    one, other = signals_of(params, X, Y), signals_of(params, X[:, :2], Y[:, :2])
    G = rows(each) @ rows(each).T
    np.testing.assert_allclose(
        dp.per_example_products(*one, *other), G[:, :2], atol=1e-10 * G.max()
    )


def test_products_with_a_network_of_other_parameters():
    """As along a training path: g_i at one moment, g'_j at another."""
    args, others = problem(29, [3, 4, 2], 5)[:3], problem(31, [3, 4, 2], 7)[:3]
    G = rows(one_by_one(*args)) @ rows(one_by_one(*others)).T
    np.testing.assert_allclose(
        dp.per_example_products(*signals_of(*args), *signals_of(*others)), G, rtol=1e-10
    )


def test_one_output_whose_signal_is_one_gives_the_neural_tangent_kernel():
    params, X, _, _ = problem(37, [3, 6, 6, 1], 5, "tanh", "identity")
    cache, dZ = signals_of(params, X, dp.predict(params, X) - 1)
    gradient = jax.grad(lambda p, x: dp.predict(p, x[:, None])[0, 0])
    J = jax.jit(jax.vmap(gradient, (None, 1)))(params, X)
    kernel = rows(J) @ rows(J).T
    np.testing.assert_allclose(dp.per_example_products(cache, dZ, cache, dZ), kernel, rtol=1e-10)


@pytest.mark.thorough
@settings(max_examples=settings.default.max_examples // 5)  # each is compiled anew, twice
@given(networks())
def test_random_networks(drawn):
    with jax.enable_x64(True):
        params, X, Y, w = problem(*drawn)
        each = one_by_one(params, X, Y)
        w = np.ones(X.shape[1]) if w is None else w
        norms = np.linalg.norm(rows(each), axis=1)
        C = float(np.median(norms)) or 1.0
        clipped = mean(scaled(each, factors_of(each, C, None)), w) if norms.all() else None

        @jax.jit
        def ours(params, X, Y, w):
            cache, dZ = signals_of(params, X, Y)
            return (
                dp.per_example_norms(cache, dZ),
                dp.per_example_gradients(cache, dZ),
                dp.clipped_backward(cache, Y, C, weights=w),
                dp.squared_gradients(cache, dZ, w),
            )

        got = ours(params, X, Y, w)
        np.testing.assert_allclose(got[0], norms, rtol=1e-9, atol=1e-12)
        assert worst_error(got[1], each) <= 1e-10
        assert clipped is None or worst_error(got[2], clipped) <= 1e-10
        assert worst_error(got[3], mean(each, w, np.square)) <= 1e-10


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_types_are_squared_in_a_wide_one(dtype):
    """300^2 is above float16's largest number, and 1e-4^2 below its smallest."""
    for size in (300, 1e-4):
        layer = dp.Layer(jnp.zeros((1, 1), dtype), jnp.zeros((1, 1), dtype), dp.output("identity"))
        _, cache = dp.forward((layer,), jnp.zeros((1, 2), dtype))
        dZ = [jnp.array([[size, -size]], dtype)]
        exact = float(dZ[0][0, 0])
        assert dp.per_example_norms(cache, dZ).dtype == jnp.float32
        np.testing.assert_allclose(dp.per_example_norms(cache, dZ), exact, rtol=1e-6)
        (squares,) = dp.squared_gradients(cache, dZ)
        np.testing.assert_allclose(squares.b, exact**2, rtol=1e-6)
        clipped = dp.clipped_backward(cache, -dZ[0], 1.0)
        assert clipped[0].b.dtype == dtype


def test_bad_input():
    params, X, Y, _ = problem(0, [4, 5, 3], 6)
    cache, dZ = signals_of(params, X, Y)
    with pytest.raises(TypeError, match="max_norm must be an array of real numbers"):
        dp.clipped_backward(cache, Y, "1")
    for name in dp.signals.__all__:
        if name not in READERS:
            continue
        read = READERS[name]
        if "dZ" in list(inspect.signature(getattr(dp, name)).parameters)[:2]:
            with pytest.raises(ValueError, match="dZ must hold one array per layer, 2 for this"):
                read(cache, dZ[:1], Y, None, params)
        with pytest.raises(TypeError, match=r"cache(_2)? must be the dp\.Cache"):
            read(params, dZ, Y, None, params)
    others = signals_of(*problem(0, [4, 6, 3], 6)[:3])
    with pytest.raises(ValueError, match="cache_2 must be of a network with W of shapes"):
        dp.per_example_products(cache, dZ, *others)
