"""Clipping the gradient of every example in one backward pass.

The product dW[l] = 1/m dZ[l] A[l-1]^T sums over the columns of dZ, and g_i is linear in dz_i.
Scaling column i of dZ before this product therefore scales g_i.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import times_each, wide
from deepprop._checks import check_above_zero, real_array
from deepprop.backprop import error_signals, gradients
from deepprop.layers import Cache, Layer, Params, number_of_layers
from deepprop.signals.per_example import per_example_norms
from deepprop.walk import by_entry, layer_map

MaxNorm = ArrayLike | Sequence[float]  # one number, or one per layer


def clipped_backward(
    cache: Cache,
    Y: ArrayLike | None,
    max_norm: MaxNorm,
    *,
    gamma: float | None = None,
    weights: ArrayLike | None = None,
    dA: ArrayLike | None = None,
    dZ: ArrayLike | None = None,
) -> Params:
    """Compute 1/m sum_i min(1, C / ||g_i||) g_i, with C = `max_norm`, in one backward pass.

    With weights: sum_i w_i min(1, C / ||g_i||) g_i / sum_i w_i. This takes the same matrix products
    as `manual_backward`; no g_i is made.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> X, Y = jax.random.normal(jax.random.key(1), (3, 8)), 100 * jnp.ones((2, 8))
    >>> _, cache = dp.forward(params, X)
    >>> grads = dp.clipped_backward(cache, Y, 1.0)
    >>> bool(jnp.linalg.norm(grads[0].W) <= 1 < jnp.linalg.norm(dp.manual_backward(cache, Y)[0].W))
    True
    >>> fit = dp.fit(params, optax.sgd(0.1), X, Y, epochs=1, batch_size=4, key=jax.random.key(2),
    ...              backward=lambda cache, Y, w: dp.clipped_backward(cache, Y, 1.0, weights=w))

    Args:
        cache: the cache returned by `forward`.
        Y: (n_L, m), the targets, one example per column; None with `dA` or `dZ`.
        max_norm: C, the largest norm of a g_i; or L numbers, one per layer, each for that layer's
            part of g_i.
        gamma: None clips. A number scales every g_i by C / (||g_i|| + gamma) instead, so that small
            gradients count as well ("automatic clipping"); 0.01 is usual.
        weights: (m,), one per example; none negative, not all 0. They apply after the clipping.
        dA: (n_L, m), the derivative of each example's own loss by A[L], in the place of Y: see
            `error_signals`.
        dZ: (n_L, m), the same by Z[L].

    Returns:
        Layers like `params`, in their dtype.

    Raises:
        ValueError: the shape of Y or of the weights does not fit the cache, `max_norm` is not above
            0, or not one number or L of them, or `gamma` is not above 0.
        TypeError: an argument is not real numbers, or `cache` is not a cache.

    Source:
        Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133; Bu et al.
        2022, Automatic Clipping, arXiv:2206.07136.
    """
    signals = error_signals(cache, Y, dA=dA, dZ=dZ)
    factors = clip_factors(cache, signals, max_norm, gamma)

    def clipped(_: Layer, factor: Array, dZ: Array) -> Array:
        return times_each(factor, dZ)

    columns = layer_map(clipped, cache.params, by_entry(cache.params, factors), signals)
    return gradients(cache, tuple(columns), weights)


def clip_factors(
    cache: Cache, dZ: Sequence[Array], max_norm: MaxNorm, gamma: float | None = None
) -> Array:
    """Return the factor of each dz_i[l], min(1, C / ||g_i||): (L, m)."""
    L, dtype = number_of_layers(cache.params), wide(cache.params[0].W.dtype)
    C = max_norms(max_norm, L, dtype)
    if gamma is not None:
        check_above_zero("gamma", gamma)
    norms = per_example_norms(cache, dZ, per_layer=C.ndim == 1)  # (m,) or (L, m)
    C = C[..., None]
    factors = C / jnp.maximum(norms, C) if gamma is None else C / (norms + gamma)
    return jnp.broadcast_to(factors, (L, norms.shape[-1]))


def max_norms(max_norm: MaxNorm, L: int, dtype: np.dtype) -> Array:
    """Return `max_norm` as an array: () for one number, or (L,).

    Raises:
        ValueError: it is neither, or not above 0.
        TypeError: it is not real numbers.
    """
    if isinstance(max_norm, Sequence) and any(isinstance(c, jax.core.Tracer) for c in max_norm):
        max_norm = jnp.stack(list(max_norm))
    C = real_array("max_norm", max_norm, dtype)
    if C.shape not in ((), (L,)):
        raise ValueError(
            f"max_norm must be one number, or L = {L} numbers, one per layer, got shape {C.shape}"
        )
    check_above_zero("max_norm", C)
    return C
