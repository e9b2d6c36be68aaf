"""In which type numbers are multiplied, and in which they are added up."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> np.dtype:
    """The type in which numbers of `dtype` are added up: float32, or `dtype` if it is wider."""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def product(
    P: Array, Q: Array, dtype: DTypeLike | None = None, factors: DTypeLike | None = None
) -> Array:
    """P Q on the last two axes: added up in the wide type, then rounded once to `dtype` (P's).

    With `factors`, P and Q are rounded to that type first, whatever they are. As (Q^T P^T)^T: where
    Q has an example a column, the product's rows are examples (layout.py).
    """
    dtype = P.dtype if dtype is None else dtype
    if factors is None:
        return _product(P, Q).astype(dtype)
    (P, p), (Q, q) = _rounded(P, factors), _rounded(Q, factors)
    PQ = _product(P, Q)
    missing = sum(exponent for exponent in (p, q) if exponent is not None)
    if isinstance(missing, Array):
        PQ = times_power_of_2(PQ, missing)
    return PQ.astype(dtype)


def _product(P: Array, Q: Array) -> Array:
    """P Q of one type, in the wide type."""
    multiply = partial(jnp.matmul, preferred_element_type=wide(P.dtype))
    if P.dtype == wide(P.dtype):
        return multiply(Q.mT, P.mT).mT
    # Of narrow numbers XLA's CPU has the product of some shapes only; widened they are exact.
    PQ: Array = jax.lax.platform_dependent(Q.mT, P.mT, cpu=_widened(multiply), default=multiply)
    return PQ.mT


def _widened(multiply: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda P, Q: multiply(P.astype(wide(P.dtype)), Q.astype(wide(Q.dtype)))


def _rounded(P: Array, dtype: DTypeLike) -> tuple[Array, Array | None]:
    """P in `dtype`, and the power of 2 that is missing in it, None for none.

    float16 reaches from 6e-8 to 65504, which dZ of a deep network leaves: so the largest finite
    number of P is brought to about 2^14 first, the others keep their ratio to it. It is the loss
    scale that is usual with float16, but found for each product, where it can neither overflow nor
    be too small.
    """
    if P.dtype == dtype or has_range_of_float32(dtype):
        return P.astype(dtype), None
    P = P.astype(jnp.float32)
    largest = jnp.max(jnp.where(jnp.isfinite(P), jnp.abs(P), 0))
    exponent = jnp.minimum(13 - _exponent(largest), 126)  # so that its negative is one too
    return (P * _power_of_2(exponent)).astype(dtype), -exponent


def over_largest(w: Array) -> Array:
    """w over a power of 2, exactly, so that its largest number, if not 0, is in [1/2, 1)."""
    return times_power_of_2(w, -1 - _exponent(jnp.max(w)))


def times_power_of_2(P: Array, k: Array) -> Array:
    """2^k P, in two halves: 2^k itself may be beyond the type."""
    half = k // 2
    return P * _power_of_2(half, P.dtype) * _power_of_2(k - half, P.dtype)


def _exponent(x: Array) -> Array:
    """k of 2^k <= x < 2^(k+1), for a float32 or float64 x above 0; the least k for subnormal x."""
    of = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    bits: Array = jax.lax.bitcast_convert_type(x, _integers(x.dtype))
    return (bits >> of.nmant) - (of.maxexp - 1)


def _power_of_2(k: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """2^k in float32 or float64, exactly, on every device: its bits are those of k."""
    of = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    bits = (k + (of.maxexp - 1)).astype(_integers(dtype)) << of.nmant
    power: Array = jax.lax.bitcast_convert_type(bits, dtype)
    return power


def _integers(dtype: DTypeLike) -> Any:
    return jnp.int32 if np.dtype(dtype).itemsize == 4 else jnp.int64


def root_of_squares(P: Array, axis: int | None = None) -> Array:
    """sqrt(sum P^2) along an axis or over all, in the wide type; the axis stays.

    A float32 of 2e19 has no square in float32, and neither has one of 1e-23. So P is brought to
    about 1 first, by a power of 2, which is exact. That power depends on P: XLA squares a constant
    factor by itself, and then the squares are out of range again.
    """
    P = P.astype(wide(P.dtype))
    k = _exponent(jnp.max(jnp.abs(P), axis=axis, keepdims=True))
    squares = jnp.square(times_power_of_2(P, -k))
    return times_power_of_2(jnp.sqrt(jnp.sum(squares, axis=axis, keepdims=True)), k)


def has_range_of_float32(dtype: DTypeLike) -> bool:
    """Whether numbers of `dtype` reach as far up and down as float32's: bfloat16's do."""
    return bool(jnp.finfo(dtype).minexp <= jnp.finfo(jnp.float32).minexp)  # type: ignore[no-untyped-call]
