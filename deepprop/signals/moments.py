"""How much the gradients of single examples differ: squares, variance, the gradient noise scale."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache
from deepprop._arithmetic import wide
from deepprop.backprop import gradient_of, gradients, weights_of
from deepprop.layers import Cache, Layer, Params, like
from deepprop.mixed_precision import with_compute_dtype
from deepprop.signals.per_example import per_example_norms
from deepprop.walk import each_layer, recomputed


def squared_gradients(
    cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None
) -> Params:
    """Compute the mean of the squared gradients of single examples, 1/m dZ[l]^2 (A[l-1]^2)^T.

    The square of an outer product is the outer product of the squares. So the mean of g_i^2, like
    the mean of g_i, is one matrix product per layer. For b it is 1/m sum_i dz_i[l]^2. With weights:
    sum_i w_i g_i^2 / sum_i w_i.

    With dZ of the data's targets this is the diagonal of the empirical Fisher matrix. With dZ of
    `sampled_targets` it estimates the diagonal of the Fisher matrix, which is the Gauss-Newton
    matrix for the four canonical outputs.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 1], output="identity")
    >>> _, cache = dp.forward(params, jnp.array([[0.0, 0.0]]))
    >>> float(dp.squared_gradients(cache, dp.error_signals(cache, [[3.0, -1.0]]))[0].b[0, 0])
    5.0

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.
        weights: (m,), one per example; none negative, not all 0.

    Returns:
        Layers like `params`, in float32 or wider.

    Raises:
        ValueError: dZ belongs to another network or batch, or the weights do not fit.
        TypeError: the weights are not real numbers, or `cache` is not a cache.

    Source:
        Dangel et al. 2020, BackPACK, arXiv:1912.10985.
    """
    widened = _widened(cache)
    gradient = gradient_of(widened, weights_of(widened, weights))

    def of_squares(layer: Layer, dZ: Array, A: Array) -> Layer:
        return gradient(layer, jnp.square(dZ), jnp.square(A))

    return like(cache.params, each_layer(of_squares, widened, dZ))


def gradient_variance(
    cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None
) -> Params:
    """Compute the variance of the gradients of single examples, parameter by parameter.

    It is 1/m sum_i g_i^2 - (1/m sum_i g_i)^2 of these m examples, divided by m rather than m - 1. A
    variance far below the square of the mean is lost to rounding; it is never negative.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 1], output="identity")
    >>> _, cache = dp.forward(params, jnp.array([[0.0, 0.0]]))
    >>> float(dp.gradient_variance(cache, dp.error_signals(cache, [[3.0, -1.0]]))[0].b[0, 0])
    4.0

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.
        weights: (m,), one per example, for means weighted by w_i / sum_i w_i.

    Returns:
        Layers like `params`, in float32 or wider.

    Raises:
        ValueError, TypeError: as `squared_gradients`.
    """
    widened = _widened(cache)
    mean, squares = gradients(widened, dZ, weights), squared_gradients(widened, dZ, weights)
    variance: Params = jax.tree.map(lambda s, g: jnp.maximum(s - g * g, 0), squares, mean)
    return like(cache.params, variance)


class NoiseScale(NamedTuple):
    """The result of `gradient_noise_scale`: three scalars.

    Attributes:
        ratio: B = trace / squared_norm, in examples; infinite if `squared_norm` is not above 0.
        trace: an unbiased estimate of the trace of the covariance of g_i.
        squared_norm: an unbiased estimate of the squared norm of the true gradient; it may be
            below 0.
    """

    ratio: Array
    trace: Array
    squared_norm: Array


def gradient_noise_scale(cache: Cache, dZ: Sequence[Array]) -> NoiseScale:
    """Estimate B = tr(S) / norm(G)^2, the batch size at which noise and gradient are equally large.

    Far below B, a larger batch saves steps in proportion. Far above B, it saves hardly any. With g
    the mean of the m gradients g_i, the unbiased estimates are::

        tr(S) = m / (m - 1) (1/m sum_i ||g_i||^2 - ||g||^2)
        norm(G)^2 = 1 / (m - 1) (m ||g||^2 - 1/m sum_i ||g_i||^2)

    The published method compares batches of two sizes. One batch is enough here, as every ||g_i||
    is known. Over several steps, average `trace` and `squared_norm` first, and divide then.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 1], output="identity")
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 8)))
    >>> float(dp.gradient_noise_scale(cache, dp.error_signals(cache, jnp.ones((1, 8)))).ratio) > 0
    True

    Args:
        cache: the cache returned by `forward`, for at least two examples.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.

    Returns:
        A `NoiseScale`.

    Raises:
        ValueError: dZ belongs to another network or batch, or there is only one example.
        TypeError: dZ is not real numbers, or `cache` is not a cache.

    Source:
        McCandlish et al. 2018, An Empirical Model of Large-Batch Training, appendix A.1,
        arXiv:1812.06162.
    """
    cache = _widened(cache)
    norms = per_example_norms(cache, dZ)
    unit = jnp.max(norms)  # divided by it, squares neither overflow nor underflow
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    mean_square = jnp.mean(jnp.square(norms / unit))  # 1/m sum_i ||g_i||^2
    m = cache.A[0].shape[-1]
    if m < 2:
        raise ValueError(f"cache must hold at least two examples to estimate their noise, got {m}")
    leaves = jax.tree.leaves(gradients(cache, dZ))
    square = sum(jnp.sum(jnp.square(leaf / unit)) for leaf in leaves)  # ||g||^2
    trace = m / (m - 1) * (mean_square - square)
    squared_norm = (m * square - mean_square) / (m - 1)
    positive = squared_norm > 0
    ratio = jnp.where(positive, trace / jnp.where(positive, squared_norm, 1), jnp.inf)
    return NoiseScale(ratio, jnp.square(unit) * trace, jnp.square(unit) * squared_norm)


def _widened(cache: Cache) -> Cache:
    """The same in the dtype in which sums are computed: squares need its range."""
    check_cache(cache)
    cache = recomputed(cache)
    arrays = jax.tree.map(lambda x: x.astype(wide(x.dtype)), replace(cache, kept=()))
    params = with_compute_dtype(arrays.params, None)
    widened: Cache = replace(arrays, params=params, kept=cache.kept)
    return widened
