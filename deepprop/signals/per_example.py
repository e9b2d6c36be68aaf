"""Norms, products and gradients of single examples.

Column i of dZ[l] is dz_i[l], the derivative of the loss L(i) of example i alone, and column i of
A[l-1] is a_i[l-1]. So the gradient g_i of L(i) is, layer by layer,

    dL(i)/dW[l] = dz_i[l] a_i[l-1]^T        dL(i)/db[l] = dz_i[l]

an outer product of two columns that both passes have computed already. The norm of g_i, and its
product with the gradient of another example, follow from norms and products of these columns, so
g_i itself is not made.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from deepprop._arithmetic import elementwise, product, root_of_squares, wide
from deepprop.layers import Cache, Layer, Params
from deepprop.walk import each_layer, layer_map, layer_scan, local


def per_example_norms(cache: Cache, dZ: Sequence[Array], *, per_layer: bool = False) -> Array:
    """Compute ||g_i|| from ||g_i||^2 = sum_l ||dz_i[l]||^2 (||a_i[l-1]||^2 + 1).

    The 1 belongs to b. No g_i is made: this costs one read of A and dZ.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dp.per_example_norms(cache, dp.error_signals(cache, A)).shape
    (5,)

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.
        per_layer: whether to return one norm per layer instead of one for the whole gradient.

    Returns:
        (m,), or (L, m) with `per_layer`; in float32 or wider, without 1/m and without weights. A
        norm is infinite only if it exceeds the range of that dtype.

    Raises:
        ValueError: dZ belongs to another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.

    Source:
        Goodfellow 2015, Efficient Per-Example Gradient Computations, arXiv:1510.01799.
    """

    def of_layer(_: Layer, dz: Array, a: Array) -> Array:
        """||dz_i[l]|| sqrt(||a_i[l-1]||^2 + 1), (m,)."""
        with_one = jnp.stack([_lengths(a), jnp.ones(a.shape[-1], a.dtype)])
        return _lengths(dz) * root_of_squares(with_one, axis=0)[0]

    norms = jnp.concatenate(
        [jnp.atleast_2d(norm) for norm in layer_map(of_layer, *columns(cache, dZ))]
    )
    if per_layer:
        return norms
    return root_of_squares(norms, axis=0)[0]


def per_example_gradients(cache: Cache, dZ: Sequence[Array]) -> Params:
    """Compute every g_i: dL(i)/dW[l] = dz_i[l] a_i[l-1]^T and dL(i)/db[l] = dz_i[l].

    This takes m times the memory of the parameters. If you only need norms, products or a clipped
    mean, `per_example_norms`, `per_example_products` and `clipped_backward` avoid it.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> _, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> each = dp.per_example_gradients(cache, dp.error_signals(cache, jnp.ones((2, 5))))
    >>> each[0].W.shape, each[0].b.shape
    ((5, 4, 3), (5, 4, 1))

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.

    Returns:
        Layers like `params` with a leading axis, in their dtype: W (m, n_l, n_{l-1}) and b
        (m, n_l, 1), or for a stack (m, K, n, n) and (m, K, n, 1). Without 1/m and without weights:
        their mean is the gradient of J.

    Raises:
        ValueError: dZ belongs to another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """

    def of_layer(layer: Layer, dZ: Array, A: Array) -> Layer:
        dZ, A = dZ.astype(layer.W.dtype), A.astype(layer.W.dtype)
        dW = dZ.mT[:, :, None] * A.mT[:, None, :]  # dL(i)/dW[l] = dz_i[l] a_i[l-1]^T
        db = dZ.mT[:, :, None]  # dL(i)/db[l] = dz_i[l]
        return replace(layer, W=dW, b=db)

    return each_layer(of_layer, cache, dZ, out_axes=1)


def per_example_products(
    cache: Cache, dZ: Sequence[Array], cache_2: Cache, dZ_2: Sequence[Array]
) -> Array:
    """Compute G_ij = g_i . g'_j = sum_l (dz_i[l] . dz'_j[l]) (a_i[l-1] . a'_j[l-1] + 1).

    These are the products of the gradients of two batches; no gradient is made. They say how alike
    two examples are to the network, and how much a step on one lowers the loss of the other
    (TracIn, influence). For one output unit with dZ[L] = 1 they are the empirical neural tangent
    kernel.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 5)))
    >>> dZ = dp.error_signals(cache, jnp.ones((2, 5)))
    >>> G = dp.per_example_products(cache, dZ, cache, dZ)
    >>> G.shape, bool(jnp.allclose(jnp.diag(G), dp.per_example_norms(cache, dZ) ** 2))
    ((5, 5), True)

    Args:
        cache: the cache returned by `forward` for m examples.
        dZ: the error signals of that cache.
        cache_2: the cache returned by `forward` for m' examples, of the same network or of another
            one with the same shapes.
        dZ_2: the error signals of cache_2.

    Returns:
        (m, m'), in float32 or wider. Neither 1/m nor weights are in it.

    Raises:
        ValueError: dZ belongs to another network or batch than its cache, or the shapes of the two
            networks differ.
        TypeError: dZ is not real numbers, or a cache is not a `Cache`.

    Source:
        Jacot et al. 2018, Neural Tangent Kernel, arXiv:1806.07572; Pruthi et al. 2020, Estimating
        Training Data Influence by Tracing Gradient Descent, arXiv:2002.08484.
    """
    (layers, *one), (_, *other) = columns(cache, dZ), columns(cache_2, dZ_2)
    check_same_shapes(cache, cache_2)
    m, m_2 = (dZ[0].shape[-1] for dZ, _ in (one, other))

    def add(G: Array, _: Layer, dz: Array, a: Array, dz_2: Array, a_2: Array) -> Array:
        return G + product(dz.mT, dz_2) * (product(a.mT, a_2) + 1)

    G: Array = layer_scan(add, jnp.zeros((m, m_2), one[0][0].dtype), layers, *one, *other)
    return G


def check_same_shapes(cache: Cache, cache_2: Cache) -> None:
    """Raise unless the layers of both caches have the same shapes.

    Raises:
        ValueError: they differ.
    """
    shapes = [[tuple(layer.W.shape) for layer in c.params] for c in (cache, cache_2)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"cache_2 must be of a network with W of shapes {shapes[0]}, got {shapes[1]}"
        )


def columns(cache: Cache, dZ: Sequence[Array]) -> tuple[Params, list[Array], list[Array]]:
    """Return the layers, all dZ[l] and all A[l-1], in the dtype in which sums are computed."""
    layers, dZ, A = local(cache, dZ)
    pairs = [[P.astype(wide(P.dtype)) for P in pair] for pair in zip(dZ, A, strict=True)]
    dZ, A = map(list, zip(*pairs, strict=True))
    return layers, dZ, A


def _lengths(P: Array) -> Array:
    """Return the norms of the columns of P (n, m): (m,)."""

    def length(p: Array) -> Array:
        return root_of_squares(p, axis=-2)

    return elementwise(length, P)[0]
