"""What belongs to one example, against jax.vmap of jax.grad of its own loss, in float64."""

from functools import cache as cached
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import deepprop as dp
from tests.problems import HIDDEN, OUTPUTS, problem, public_cost, worst_error
from tests.page.test_gradients import networks

pytestmark = pytest.mark.usefixtures("x64")


@jax.jit
def one_by_one(params, X, Y):
    """The oracle: the gradient of J of each example alone, which is that of L(i)."""

    def loss(params, x, y):
        return public_cost(params, x[:, None], y[:, None])

    return jax.vmap(jax.grad(loss), in_axes=(None, 1, 1))(params, X, Y)


@jax.jit
def signals_of(params, X, Y):
    _, cache = dp.forward(params, X)
    return cache, dp.error_signals(cache, Y)


@cached
def every_activation(output):
    """A network with each activation in a layer: its parts, and the gradients one by one."""
    params, X, Y, w = problem(23, [4] + [5] * len(HIDDEN) + [3], 6, HIDDEN, output, True)
    return params, X, Y, w, one_by_one(params, X, Y)


def rows(each, l=None):
    """Gradients one by one as a matrix: an example a row, a parameter a column."""
    leaves = jax.tree.leaves(each if l is None else each[l])
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)


def mean(each, w, f=lambda g: g):
    return jax.tree.map(lambda g: np.tensordot(w / w.sum(), f(np.asarray(g)), 1), each)


def scaled(each, factors):
    """Layer l's gradient of example i times factors[l, i]."""
    return tuple(
        jax.tree.map(lambda g, f=f: np.asarray(g) * f[:, None, None], layer)
        for layer, f in zip(each, factors, strict=True)
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_of_single_examples(output):
    params, X, Y, _, each = every_activation(output)
    assert worst_error(jax.jit(dp.per_example_gradients)(*signals_of(params, X, Y)), each) <= 1e-10


@pytest.mark.parametrize("output", OUTPUTS)
def test_norms(output):
    params, X, Y, _, each = every_activation(output)
    cache, dZ = signals_of(params, X, Y)
    norms = dp.per_example_norms(cache, dZ)
    np.testing.assert_allclose(norms, np.linalg.norm(rows(each), axis=1), rtol=1e-10)
    by_layer = [np.linalg.norm(rows(each, l), axis=1) for l in range(len(params))]
    np.testing.assert_allclose(dp.per_example_norms(cache, dZ, per_layer=True), by_layer, 1e-10)


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


def factors_of(each, C, gamma):
    """The factor of each layer and example, from the gradients one by one."""
    L, C = len(each), np.asarray(C)
    whole = np.linalg.norm(rows(each), axis=1)
    norms = np.array([np.linalg.norm(rows(each, l), axis=1) if C.ndim else whole for l in range(L)])
    C = C.reshape(-1, 1)
    return np.minimum(1, C / norms) if gamma is None else C / (norms + gamma)


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


def test_noise_scale_against_its_definition():
    """Unbiased estimates of the covariance's trace and of the gradient's square, from the g_i."""
    params, X, Y, _ = problem(47, [4, 6, 3], 40)
    each = rows(one_by_one(params, X, Y))
    found = dp.gradient_noise_scale(*signals_of(params, X, Y))
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
    found = dp.gradient_noise_scale(cache, dZ)
    assert found.squared_norm < 0
    assert np.isinf(found.ratio)
    with pytest.raises(ValueError, match="at least two examples"):
        dp.gradient_noise_scale(*signals_of(params, X[:, :1], A[:, :1]))


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
    "max_norm must be one number, or L = 2 numbers, one a layer, got shape": {
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


def test_bad_input():
    params, X, Y, _ = problem(0, [4, 5, 3], 6)
    cache, dZ = signals_of(params, X, Y)
    with pytest.raises(TypeError, match="max_norm must be an array of real numbers"):
        dp.clipped_backward(cache, Y, "1")
    for f in (dp.per_example_norms, dp.per_example_gradients, dp.squared_gradients,
              dp.gradient_variance, dp.gradient_noise_scale, dp.kfac_factors):  # fmt: skip
        with pytest.raises(ValueError, match="dZ must hold one array a layer, 2 for this cache"):
            f(cache, dZ[:1])
        with pytest.raises(TypeError, match=r"cache must be the dp\.Cache"):
            f(params, dZ)
    others = signals_of(*problem(0, [4, 6, 3], 6)[:3])
    with pytest.raises(ValueError, match="cache_2 must be of a network with W of shapes"):
        dp.per_example_products(cache, dZ, *others)


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
