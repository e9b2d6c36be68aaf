"""Numbers at the ends of a type's range: lengths without squares, weights of which ratios matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop._arithmetic import root_of_squares
from tests.problems import problem

EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (8, 1), (8, 5)])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_root_of_squares_is_right_where_squares_are_not(axis, shape, compiled):
    root = jax.jit(root_of_squares, static_argnums=1) if compiled else root_of_squares
    unit = np.random.default_rng(0).uniform(0.5, 1, shape)
    for size in (2e-37, 1e-30, 1e-20, 1e-12, 0.0, 1.0, 1e12, 2e19, 1e30, 1e37):
        P = (size * unit).astype(np.float32)
        due = np.sqrt(np.sum(P.astype(np.float64) ** 2, axis=axis, keepdims=True))
        # 40 squares are added up, each rounded; the root halves the error.
        np.testing.assert_allclose(root(jnp.asarray(P), axis), due, rtol=40 * EPS)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("numbers", "length"),
    [([0, 0], 0), ([np.inf, 1], np.inf), ([np.nan, 1], np.nan), ([1e19, 1e-30], 1e19),
     ([1e5, 1e-36], 1e5), ([-3e19, 4e19], 5e19), ([3e-30, 4e-30], 5e-30), ([3e38, 3e38], np.inf),
     ([3e38, 0], 3e38), ([-np.inf], np.inf)],
)  # fmt: skip
def test_a_root_of_squares_of_unlike_numbers(numbers, length, compiled):
    root = jax.jit(root_of_squares, static_argnums=1) if compiled else root_of_squares
    found = root(jnp.asarray(numbers, jnp.float32), 0)
    np.testing.assert_allclose(found, [length], rtol=4 * EPS)


def test_a_root_of_squares_in_float64(x64):
    for size in (1e-300, 1e-160, 1e-80, 1.0, 1e80, 1e160, 1e300):
        found = jax.jit(root_of_squares, static_argnums=1)(jnp.full((3, 1), size), 0)
        np.testing.assert_allclose(found, [[3**0.5 * size]], rtol=1e-15)


# Sizes of dZ, one per example, whose squares float32 can't hold; A is of order 1.
SIZES = np.array([2e19, 1e-20, 1.0, 1e30, 1e-27, 0.0, 1e-3], np.float32)


def extreme():
    """A cache, and error signals of the sizes above, beside the same in float64."""
    params, X, _, _ = problem(3, [4, 5, 5, 5, 3], len(SIZES), "tanh", "identity", dtype=np.float32)
    rng = np.random.default_rng(1)
    dZ = [rng.uniform(0.5, 1, (len(p.W), len(SIZES))).astype(np.float32) * SIZES for p in params]
    _, cache = jax.jit(dp.forward)(params, X)
    wide = [np.asarray(d, np.float64) for d in dZ], [np.asarray(a, np.float64) for a in cache.A]
    return cache, dZ, wide


def lengths(dZ, A):
    """(L, m): the norm of each example's gradient in each layer, from its definition."""
    return np.stack(
        [
            np.sqrt(np.einsum("im,jm->m", d**2, a**2) + np.sum(d**2, 0))
            for d, a in zip(dZ, A[:-1], strict=True)
        ]
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_per_example_norms_at_the_ends_of_the_range(compiled):
    cache, dZ, wide = extreme()
    norms = jax.jit(dp.per_example_norms, static_argnames="per_layer") if compiled else None
    norms = norms or dp.per_example_norms
    due = lengths(*wide)
    np.testing.assert_allclose(norms(cache, dZ, per_layer=True), due, rtol=50 * EPS)
    np.testing.assert_allclose(norms(cache, dZ), np.sqrt(np.sum(due**2, 0)), rtol=50 * EPS)


@pytest.mark.parametrize("max_norm", [1.0, (1.0, 0.5, 2.0, 0.1)])
def test_clipping_counts_a_huge_example_by_its_bound(max_norm):
    """Y makes one example's dZ 3e19, and others' tiny: each counts with at most its bound."""
    params, X, _, _ = problem(3, [4, 5, 5, 5, 3], 4, "identity", "identity", dtype=np.float32)
    A, cache = dp.forward(params, X)
    Y = np.asarray(A) - np.array([3e19, 1e-20, 1.0, 100.0], np.float32)
    grads = jax.jit(partial(dp.clipped_backward, max_norm=max_norm))(cache, Y)
    dZ = [np.asarray(d, np.float64) for d in dp.error_signals(cache, Y)]
    A = [np.asarray(a, np.float64) for a in cache.A]
    norms, C = lengths(dZ, A), np.broadcast_to(max_norm, 4)[:, None]
    norms = norms if isinstance(max_norm, tuple) else np.sqrt(np.sum(norms**2, 0))[None]
    factors = np.broadcast_to(np.minimum(1, C / np.maximum(norms, 1e-300)), (4, 4))
    for l, layer in enumerate(grads):
        due = (factors[l] * dZ[l]) @ A[l].T / 4
        np.testing.assert_allclose(layer.W, due, rtol=1e-4, atol=1e-6 * np.abs(due).max())


def test_an_infinite_norm_leaves_the_others_alone():
    cache, dZ, _ = extreme()
    dZ[0][0, 0] = 3e38  # times A of order 1 in every layer: the norm is beyond float32
    dZ[1][:, 0] = 3e38
    norms = np.asarray(dp.per_example_norms(cache, dZ))
    assert np.isinf(norms[0])
    assert np.isfinite(norms[1:]).all()


@pytest.mark.thorough
def test_diagnose_measures_a_vanished_gradient():
    sizes = [4, *[8] * 40, 1]
    params = dp.init_params(jax.random.key(0), sizes, hidden="sigmoid", output="identity")
    X = jax.random.normal(jax.random.key(1), (4, 50))
    _, cache = jax.jit(dp.forward)(params, X)
    dZ = jax.jit(dp.error_signals)(cache, X[:1])
    diagnosis = jax.jit(dp.diagnose)(cache, dZ)
    due = [np.sqrt(np.mean(np.sum(np.asarray(d, np.float64) ** 2, 0))) for d in dZ]
    assert due[0] < 1e-20
    np.testing.assert_allclose(diagnosis.dZ, due, rtol=100 * EPS)
    dW = [np.linalg.norm(np.asarray(g.W, np.float64)) for g in dp.gradients(cache, dZ)]
    np.testing.assert_allclose(diagnosis.dW, dW, rtol=100 * EPS)


def test_the_noise_scale_of_huge_and_tiny_gradients():
    """The ratio is the same however long the gradients are."""
    params, X, Y, _ = problem(5, [3, 4, 2], 8, "tanh", "identity", dtype=np.float32)
    _, cache = dp.forward(params, X)
    dZ = dp.error_signals(cache, Y)
    due = float(dp.gradient_noise_scale(cache, dZ).ratio)
    for size in (1e-25, 1e25):
        ratio = dp.gradient_noise_scale(cache, [size * d for d in dZ]).ratio
        np.testing.assert_allclose(ratio, due, rtol=1e-4)


def weighted():
    """Everything that takes weights, by name: a function of them that gives arrays."""
    params, X, Y, _ = problem(7, [3, 4, 2], 6, "tanh", "identity", dtype=np.float32)
    _, cache = jax.jit(dp.forward)(params, X)
    dZ = jax.jit(dp.error_signals)(cache, Y)
    mesh = dp.mesh(data=1)
    return {
        "cost": lambda w: dp.cost(cache, Y, w),
        "gradients": lambda w: dp.gradients(cache, dZ, w),
        "manual_backward": lambda w: dp.manual_backward(cache, Y, w),
        "clipped_backward": lambda w: dp.clipped_backward(cache, Y, 0.5, weights=w),
        "squared_gradients": lambda w: dp.squared_gradients(cache, dZ, w),
        "gradient_variance": lambda w: dp.gradient_variance(cache, dZ, w),
        "kfac_factors": lambda w: dp.kfac_factors(cache, dZ, w),
        "gauss_newton_diagonal": lambda w: dp.gauss_newton_diagonal(cache, w),
        "gauss_newton_product": lambda w: dp.gauss_newton_product(cache, params, w),
        "data_parallel": lambda w: dp.data_parallel(mesh)(cache, Y, w),
    }


WEIGHTED = weighted()
WEIGHTS = np.array([1.0, 0.25, 0.0, 2.0, 0.5, 1.5])


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", WEIGHTED)
def test_only_ratios_of_weights_matter(name, compiled):
    f = jax.jit(WEIGHTED[name]) if compiled else WEIGHTED[name]
    due = jax.tree.leaves(f(WEIGHTS.astype(np.float32)))
    sizes = (2.0**-120, 2.0**126) if compiled else (2.0**-120, 2.0**126, 1e-300, 1e300)
    if compiled and name == "data_parallel":  # it would be one exchange more
        sizes = (2.0**-60, 2.0**60)
    for size in sizes:
        weights = (size * WEIGHTS).astype(np.float32) if compiled else size * WEIGHTS
        for found, expected in zip(jax.tree.leaves(f(weights)), due, strict=True):
            # The weights are divided by the largest: one rounding each.
            scale = np.abs(np.asarray(expected)).max()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("name", WEIGHTED)
def test_subnormal_weights_of_jax_count_by_their_ratios(name):
    """XLA's CPU takes a float32 below 1.2e-38 for 0; NumPy does not."""
    tiny = jnp.asarray(1e-38 * WEIGHTS, jnp.float32)
    due = jax.tree.leaves(WEIGHTED[name](np.asarray(tiny, np.float64)))
    for found, expected in zip(jax.tree.leaves(WEIGHTED[name](tiny)), due, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_negative_weight_is_an_error_and_under_jit_nan(name):
    """m times off it is never: where the sum is below 0 the gradient used to be divided by 1."""
    w = np.array([-1.0, -2, -3, 1, -1, -2], np.float32)
    with pytest.raises(ValueError, match=r"weights must be finite and not negative, got weights"):
        WEIGHTED[name](w)
    zero_sum = np.array([1, -1, 1, -1, 1, -1], np.float32)
    of_zeros = -np.array([1, 0, 2, 0, 1, 1], np.float32)  # whose largest is -0.0
    for some in (w, -w, zero_sum, of_zeros, np.array([1, 1, 1, 1, 1, -1e-9], np.float32)):
        leaves = jax.tree.leaves(jax.jit(WEIGHTED[name])(some))
        assert all(np.isnan(np.asarray(leaf)).any() for leaf in leaves)


@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("size", [1e-300, 1e-38, 1e38, 1e300])
def test_fit_with_weights_of_any_size(size):
    params, X, Y, w = problem(8, [3, 4, 1], 10, "tanh", "identity", True, np.float32)
    fit = partial(
        dp.fit, params, optax.sgd(0.1), X, Y, epochs=2, batch_size=4, key=jax.random.key(0)
    )
    w = w.astype(np.float64)
    due, found = fit(weights=w), fit(weights=size * w)
    np.testing.assert_allclose(found.history["cost"], due.history["cost"], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (found.params, due.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
