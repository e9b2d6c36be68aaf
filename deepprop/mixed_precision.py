"""Mixed precision: matrix products of narrow factors, with parameters and sums in float32."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from deepprop._arguments import check_params
from deepprop._renamed import warn_renamed
from deepprop.layers import Params


def with_products(params: Params, dtype: DTypeLike | None) -> Params:
    """The former name of `with_compute_dtype`."""
    warn_renamed("with_products", "with_compute_dtype")
    return with_compute_dtype(params, dtype)


def with_compute_dtype(params: Params, dtype: DTypeLike | None) -> Params:
    """Return the same parameters, set to round the factors of matrix products to a narrow dtype.

    The arrays and the dtype of the gradients do not change. What is in which dtype:

    - narrow (bfloat16 or float16): W, A[l-1] and dZ[l] where they enter a product; in hidden
      layers, b where it is added, and the stored Z[l] and A[l]; with bfloat16 also dA[l] and dZ[l].
    - float32: every sum, over units and over examples; Z[L], A[L] and J; dW and db, like the
      parameters; with float16 also dA[l] and dZ[l].

    float16 has a small range. Before a product, W and dZ are therefore multiplied by a power of 2,
    and the product is divided by it. This is the loss scale of mixed precision, but computed for
    each product from its largest entry: you choose no scale, and no step is skipped.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = with_compute_dtype(dp.init_params(jax.random.key(0), [3, 4, 2]), "bfloat16")
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> grads = dp.manual_backward(cache, A)
    >>> str(cache.A[1].dtype), str(A.dtype), str(grads[0].W.dtype)
    ('bfloat16', 'float32', 'float32')

    Args:
        params: the layers, in float32 or wider.
        dtype: of the factors, "bfloat16" or "float16"; None for the dtype of the parameters.

    Returns:
        The layers, with the same arrays.

    Raises:
        TypeError: `dtype` is none of these, `params` are not wider than it, or they are not layers.

    Source:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740.
    """
    check_params(params)
    kind = None if dtype is None else _narrow_type(dtype)
    if kind is not None and params[0].W.dtype.itemsize < 4:
        raise TypeError(f"params must be wider than compute_dtype {kind}, got {params[0].W.dtype}")
    return tuple(replace(layer, compute_dtype=kind) for layer in params)


def _narrow_type(dtype: DTypeLike) -> np.dtype:
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind not in (jnp.bfloat16, jnp.float16):
        raise TypeError(f'compute_dtype must be "bfloat16", "float16" or None, got {dtype!r}')
    return kind
