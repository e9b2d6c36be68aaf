"""The empirical neural tangent kernel: products of the Jacobians of two batches.

The Jacobian of unit k for example i has the shape of the parameters. In each layer it is the outer
product of dz_i, which follows from dZ[L] = e_k, and a_i followed by a 1 for b. So the inner product
of two Jacobians follows from these columns, and neither Jacobian is formed.
"""

import jax
import jax.numpy as jnp
from jax import Array

from deepprop._arguments import check_cache
from deepprop.backprop import error_signals
from deepprop.ends import each_unit
from deepprop.layers import Cache, Layer
from deepprop.signals.per_example import check_same_shapes
from deepprop.walk import inputs_of_layers, layer_scan, recomputed


def neural_tangent_kernel(cache: Cache, cache_2: Cache | None = None, of: str = "Z") -> Array:
    """Compute J_ik . J'_jk' = sum_l (dz_ik[l] . dz'_jk'[l]) (a_i[l-1] . a'_j[l-1] + 1).

    J_ik is the derivative of unit k of Z[L] or A[L], for example i, with respect to all parameters.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 5)))
    >>> dp.neural_tangent_kernel(cache).shape
    (5, 2, 5, 2)

    Args:
        cache: the cache returned by `forward` for m examples.
        cache_2: that for m' examples, of the same network or of another one with the same shapes;
            None takes `cache`.
        of: "Z" for Z[L], "A" for A[L].

    Returns:
        (m, n_L, m', n_L), in float32 or wider.

    Raises:
        ValueError: `of` is neither, or the shapes of the networks differ.
        TypeError: a cache is not a `Cache`.

    Source:
        Jacot et al. 2018, Neural Tangent Kernel, arXiv:1806.07572.
    """
    check_cache(cache)
    dZ, A = jacobian_columns(cache, of)
    if cache_2 is None:
        cache_2, dZ_2, A_2 = cache, dZ, A
    else:
        check_cache(cache_2, "cache_2")
        check_same_shapes(cache, cache_2)
        dZ_2, A_2 = jacobian_columns(cache_2, of)

    def add(K: Array, _: Layer, dz: Array, a: Array, dz_2: Array, a_2: Array) -> Array:
        signals = jnp.einsum("kni,hnj->ikjh", dz, dz_2)
        return K + signals * (a.mT @ a_2 + 1)[:, None, :, None]

    n_L, m = cache.Z[-1].shape
    start = jnp.zeros((m, n_L, cache_2.Z[-1].shape[1], n_L), dZ[0].dtype)
    K: Array = layer_scan(add, start, cache.params, dZ, A, dZ_2, A_2)
    return K


def jacobian_columns(cache: Cache, of: str = "Z") -> tuple[list[Array], list[Array]]:
    """Return the columns of which the Jacobian of each output unit is an outer product.

    Returns:
        dZ[l] from dZ[L] = e_k, or dA[L] = e_k: L arrays (n_L, n_l, m), k first; for a stack
        (K, n_L, n, m). And U[l], which enters each layer. Both in the dtype of Z[L].

    Raises:
        ValueError: `of` is neither "Z" nor "A".
        TypeError: `cache` is not a cache.
    """

    def of_unit(e: Array) -> tuple[Array, ...]:
        return error_signals(cache, **{f"d{of}": e})

    dZ = jax.vmap(of_unit, out_axes=-3)(each_unit(cache, of))
    A, dtype = inputs_of_layers(recomputed(cache)), cache.Z[-1].dtype
    return [dz.astype(dtype) for dz in dZ], [a.astype(dtype) for a in A]
