"""In which type numbers are added up."""

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
    PQ = jnp.matmul(Q.mT, P.mT, preferred_element_type=wide(P.dtype)).mT
    return PQ.astype(P.dtype if dtype is None else dtype)
