"""Data enters: one example per row, in the dtype of the parameters, copied and read once.

A data set is large, so every pass over it counts. NumPy arrays are copied into a buffer that JAX
takes over without another copy. Several threads copy and check a block each, since NumPy releases
the interpreter meanwhile: on two processors, 60,000 rows of 784 numbers took 0.044 s instead of
0.082. An `X_rows.T` of NumPy is a view whose
rows are copied as they lie. Arrays on a device are turned and checked by one compiled program each.

The buffer may be longer than the data, so that it holds whole minibatches: data sets that differ in
a few examples then have one shape, and run the same programs.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import cpu_count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepprop._arithmetic import wide

BLOCK = 2**21  # numbers that a thread copies and checks at a time
THREADS = 8  # at most; more would wait for memory
ALIGNED = 64  # bytes; arrays that are aligned less are copied by JAX


class Values(NamedTuple):
    """What the checks need to know about the numbers of an array.

    Attributes:
        finite: whether all are finite. Of a NumPy array this may also be False because their sum is
            out of range.
        least, largest: their range; None for X, where nothing depends on it.
        adds_up: whether every row is a distribution: none below 0, and the sum is 1.
    """

    finite: Any
    least: Any = None
    largest: Any = None
    adds_up: Any = None


def rows_of(
    P: np.ndarray | Array, dtype: np.dtype, size: int, *, look: bool
) -> tuple[Array, Values]:
    """Return P (n, m) as rows (size, n) on the device, those after m being 0, and its values.

    Args:
        P: (n, m), a NumPy array, or an array on a device.
        dtype: of the result.
        size: rows of the result, at least m.
        look: whether to look at the range and the sums of the rows, too.
    """
    if isinstance(P, jax.Array):
        rows, values = _turned(P, dtype=dtype, size=size, look=look)
        return rows, jax.device_get(values)
    n, m = P.shape
    rows, step = _aligned((size, n), dtype), max(1, BLOCK // n)
    rows[m:] = 0
    blocks = [slice(start, min(start + step, m)) for start in range(0, m, step)]
    copied = partial(_copied, rows, P.T)
    if len(blocks) == 1:  # a thread would take longer to start than to copy it
        finite = copied(blocks[0])
    else:
        with ThreadPoolExecutor(min(len(blocks), cpu_count() or 1, THREADS)) as threads:
            # A list first: `all` would stop at the first False, and the other blocks be cancelled.
            finite = all(list(threads.map(copied, blocks)))
    with np.errstate(over="ignore", invalid="ignore"):
        values = _values(np, rows[:m], finite, look=look)
    return jax.device_put(rows), values


def _copied(rows: np.ndarray, source: np.ndarray, block: slice) -> bool:
    """Copy a block of rows; return whether its sum is finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller finds out which number it was
        np.copyto(rows[block], source[block], casting="unsafe")
        return bool(np.isfinite(rows[block].sum(dtype=wide(rows.dtype))))


@partial(jax.jit, static_argnames=("dtype", "size", "look"))
def _turned(P: Array, *, dtype: np.dtype, size: int, look: bool) -> tuple[Array, Values]:
    """Return the rows and their values in one program: each question by itself would wait."""
    rows = P.T.astype(dtype)
    values = _values(jnp, rows, jnp.all(jnp.isfinite(rows)), look=look)
    return jnp.pad(rows, ((0, size - rows.shape[0]), (0, 0))), values


def _values(xp: Any, rows: Any, finite: Any, *, look: bool) -> Values:
    """Return the values of rows, with the functions of NumPy or of JAX."""
    if not look:
        return Values(finite)
    least, sums = xp.min(rows), xp.sum(rows, axis=1, dtype=wide(rows.dtype))
    return Values(finite, least, xp.max(rows), (least >= 0) & xp.all(xp.abs(sums - 1) < 1e-3))


def _aligned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Return an array, not initialised, that JAX's CPU backend takes over without a copy."""
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)
