"""Mixed precision: matrix products of narrow factors, with parameters and sums in float32."""

import logging
import time
from dataclasses import replace
from functools import cache
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from deepprop._arguments import check_params
from deepprop._checks import whole_number
from deepprop._renamed import warn_renamed
from deepprop.activations import activation
from deepprop.backprop import mean_gradient
from deepprop.layers import Layer, Params, units
from deepprop.outputs import output
from deepprop.walk import up

PAYS = 0.85  # "auto" takes bfloat16 if a gradient takes at most this share of float32's time
SECONDS = 0.5  # for which "auto" measures


def with_products(params: Params, dtype: DTypeLike | None) -> Params:
    """The former name of `with_compute_dtype`."""
    warn_renamed("with_products", "with_compute_dtype")
    return with_compute_dtype(params, dtype)


def with_compute_dtype(params: Params, dtype: DTypeLike | None, *, batch_size: int = 256) -> Params:
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
            measures a gradient of two layers of the network's largest size, once in a process, and
            takes bfloat16 or None. That takes 1 to 1.5 s, and 2 to 3 s for 4096 units. Whether
            bfloat16 pays depends on the machine, the size and the batch: large ones gain more. The
            logger "deepprop" says, at the level INFO, what it chose.
        batch_size: examples per minibatch, with which "auto" measures.

    Returns:
        The layers, with the same arrays.

    Raises:
        TypeError: `dtype` is none of these, `params` are not wider than it, or they are not layers.
        ValueError: `batch_size` is below 1.

    Source:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740.
    """
    check_params(params)
    if isinstance(dtype, str) and dtype == "auto":
        dtype = _faster_dtype(params, whole_number("batch_size", batch_size))
    kind = None if dtype is None else _narrow_type(dtype)
    if kind is not None and params[0].W.dtype.itemsize < 4:
        raise TypeError(f"params must be wider than compute_dtype {kind}, got {params[0].W.dtype}")
    return tuple(replace(layer, compute_dtype=kind) for layer in params)


def _faster_dtype(params: Params, m: int) -> str | None:
    """Return "bfloat16" if gradients of layers as large as the largest are faster with it."""
    if params[0].W.dtype != jnp.float32:
        return None
    n = units(params)
    shape = max(zip(n[1:], n, strict=False), key=lambda pair: pair[0] * pair[1])
    share = time_of_bfloat16(*shape, m)
    chosen = "bfloat16" if share <= PAYS else None
    logging.getLogger("deepprop").info(
        "compute_dtype %s: with bfloat16, a gradient takes %.2f of float32's time, for layers of %d"
        " units with %d inputs and %d examples", chosen or "float32", share, *shape, m,
    )  # fmt: skip
    return chosen


@cache
def time_of_bfloat16(n: int, n_below: int, m: int) -> float:
    """Measure a gradient in bfloat16; return its share of float32's time.

    The network has n_below inputs, n hidden units and n_below outputs. Each time is the least of
    several, taken in turns: whatever else the machine does adds to it.
    """

    @jax.jit
    def gradient(params: Params, X: Array) -> Params:
        cache = up(params, X)
        return mean_gradient(cache, jnp.zeros_like(cache.A[-1]), None)

    with jax.ensure_compile_time_eval():  # also where init_params is being traced
        X, b, b_below = jnp.ones((n_below, m)), jnp.zeros((n, 1)), jnp.zeros((n_below, 1))
        hidden = Layer(jnp.full((n, n_below), 1 / n_below), b, activation("relu"))
        top = Layer(jnp.full((n_below, n), 1 / n), b_below, output("identity"))
        networks = [with_compute_dtype((hidden, top), dtype) for dtype in (None, "bfloat16")]
        for params in networks:
            gradient(params, X)[0].W.block_until_ready()
        least, end = [inf, inf], time.perf_counter() + SECONDS
        while least[1] == inf or time.perf_counter() < end:
            for i, params in enumerate(networks):
                start = time.perf_counter()
                gradient(params, X)[0].W.block_until_ready()
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
