"""Mixed precision: matrix products of narrow factors, with parameters and sums in float32."""

import logging
import time
from dataclasses import replace
from functools import cache, partial
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from deepprop._arguments import check_params
from deepprop._arithmetic import product
from deepprop._renamed import warn_renamed
from deepprop.layers import Params, units

EXAMPLES = 256  # of the product that "auto" measures
PAYS = 0.7  # "auto" takes bfloat16 if its product takes at most this share of float32's time
ROUNDS = 7


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
        dtype: of the factors, "bfloat16" or "float16"; None for the dtype of the parameters. "auto"
            measures the largest product of the network once, for 256 examples, and takes bfloat16
            or None. That takes 0.3 s for 1024 units and 1.1 s for 4096. Whether bfloat16 pays is a
            property of the machine and of the size, and large batches gain more.
            The logger "deepprop" says, at the level INFO, what it chose.

    Returns:
        The layers, with the same arrays.

    Raises:
        TypeError: `dtype` is none of these, `params` are not wider than it, or they are not layers.

    Source:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740.
    """
    check_params(params)
    if isinstance(dtype, str) and dtype == "auto":
        dtype = _faster_dtype(params)
    kind = None if dtype is None else _narrow_type(dtype)
    if kind is not None and params[0].W.dtype.itemsize < 4:
        raise TypeError(f"params must be wider than compute_dtype {kind}, got {params[0].W.dtype}")
    return tuple(replace(layer, compute_dtype=kind) for layer in params)


def _faster_dtype(params: Params) -> str | None:
    """Return "bfloat16" if products of the network's largest layer are much faster with it."""
    if params[0].W.dtype != jnp.float32:
        return None
    n = units(params)
    shape = max(zip(n[1:], n, strict=False), key=lambda pair: pair[0] * pair[1])
    share = time_of_bfloat16(*shape)
    chosen = "bfloat16" if share <= PAYS else None
    logging.getLogger("deepprop").info(
        "compute_dtype %s: a product of bfloat16 factors takes %.2f of float32's time, for %d units"
        " with %d inputs", chosen or "float32", share, *shape,
    )  # fmt: skip
    return chosen


@cache
def time_of_bfloat16(n: int, n_below: int) -> float:
    """Measure W A with bfloat16 factors, W (n, n_below); return its share of float32's time.

    Each time is the least of several, taken in turns: whatever else the machine does adds to it.
    """
    with jax.ensure_compile_time_eval():  # also where init_params is being traced
        W, A = jnp.ones((n, n_below)), jnp.ones((EXAMPLES, n_below)).T
        kinds = (None, jnp.bfloat16)
        multiply = [jax.jit(partial(product, dtype=jnp.float32, factors=kind)) for kind in kinds]
        for f in multiply:
            f(W, A).block_until_ready()
        least = [inf, inf]
        for i in [0, 1] * ROUNDS:
            start = time.perf_counter()
            multiply[i](W, A).block_until_ready()
            least[i] = min(least[i], time.perf_counter() - start)
    return least[1] / least[0]


def _narrow_type(dtype: DTypeLike) -> np.dtype:
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind not in (jnp.bfloat16, jnp.float16):
        raise TypeError(
            f'compute_dtype must be "bfloat16", "float16", "auto" or None, got {dtype!r}'
        )
    return kind
