"""In which type numbers are added up."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> np.dtype:
    """The type in which numbers of `dtype` are added up: float32, or `dtype` if it is wider."""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def product(P: Array, Q: Array, dtype: DTypeLike | None = None) -> Array:
    """P Q on the last two axes: added up in the wide type, then rounded once to `dtype` (P's).

    As (Q^T P^T)^T: where Q has an example a column, the product's rows are examples (layout.py).
    """
    multiply = partial(jnp.matmul, preferred_element_type=wide(P.dtype))
    if P.dtype == wide(P.dtype):
        PQ = multiply(Q.mT, P.mT).mT
    else:  # of narrow numbers XLA's CPU has the product of some shapes only; widened they are exact
        PQ = jax.lax.platform_dependent(Q.mT, P.mT, cpu=_widened(multiply), default=multiply).mT
    return PQ.astype(P.dtype if dtype is None else dtype)


def _widened(multiply: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda P, Q: multiply(P.astype(wide(P.dtype)), Q.astype(wide(Q.dtype)))
