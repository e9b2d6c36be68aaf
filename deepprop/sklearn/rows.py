"""Move examples to the device: in the network's dtype, padded to sizes that share programs.

JAX compiles a program per shape of its arguments. Data sets are padded with rows of 0 to a rounded
size, and the number of examples is an argument, so the folds of a cross-validation share one
program. Sparse rows are converted to dense ones in chunks of at most about `CHUNK` numbers.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from scipy import sparse

from deepprop.training.rows import rows_of

CHUNK = 2**23  # numbers of a sparse data set that are dense at a time: 64 MB in float64
LEAST = 16  # rows


class Examples(NamedTuple):
    """Examples that were checked.

    Attributes:
        X: (m, n_0), a NumPy array or a sparse one in rows.
        Y: (m, n_L).
        weights: (m,), or None.
    """

    X: Any
    Y: Any
    weights: Any

    def at(self, index: np.ndarray) -> "Examples":
        """Return those of the examples."""
        w = self.weights
        return Examples(self.X[index], self.Y[index], None if w is None else w[index])


class Chunk(NamedTuple):
    """Examples on the device, in one piece, with rows of 0 after them.

    Attributes:
        X, Y, weights: (M, n_0), (M, n_L), and (M,) or None.
        order: (M + width,), the order of the examples in steps of up to `width`.
        m: the number of examples.
    """

    X: Array
    Y: Array
    weights: Array | None
    order: np.ndarray
    m: np.int32


def padded_parts(X: Any, dtype: Any) -> Iterator[tuple[int, Array]]:
    """Yield rows of X, dense, in parts of at most about `CHUNK` numbers that share one shape.

    Yields:
        The number of rows, and the rows on the device, with rows of 0 after them.
    """
    m, n_0 = X.shape
    step = max(1024, CHUNK // n_0)
    M = rounded(min(m, step))
    for start in range(0, m, step):
        rows = X[start : start + step]
        rows = rows.toarray() if sparse.issparse(rows) else rows
        yield rows.shape[0], rows_of(rows.T, np.dtype(dtype), M, look=False)[0]


class Batch(NamedTuple):
    """Examples per step, and the rows with which a step is compiled, of which the rest are 0."""

    size: int
    width: int


def rounded(m: int) -> int:
    """Round m up: to a multiple of 16, and from 512 on to one of 16 sizes per power of 2.

    >>> [rounded(m) for m in (1, 142, 1437, 60000)]
    [16, 144, 1472, 61440]
    """
    step = max(LEAST, 2 ** (m.bit_length() - 5))
    return int(-(-m // step) * step)


def batch_of(batch_size: int | str, m: int, least: int = 0) -> Batch:
    """Return the examples per step: at most m, and by default at most 200.

    Args:
        batch_size: as for the estimators.
        m: the number of examples.
        least: the smallest width, which is that of an earlier step whose program is reused.
    """
    if batch_size == "auto":
        size = min(200, m)
    else:
        size = min(int(batch_size), m)
        if size < int(batch_size):
            warnings.warn(
                f"batch_size is {batch_size}, but there are {m} examples: a step takes them all",
                stacklevel=2,
            )
    return Batch(size, max(least, rounded(size) if size == m else size))


def feed(
    examples: Examples, dtype: Any, batch: Batch, least: int = 0
) -> Callable[[np.ndarray], Iterator[Chunk]]:
    """Return a function that yields the examples in a given order, chunk by chunk.

    Dense examples are one chunk, which is on the device already.

    Args:
        examples: those of an epoch.
        dtype: of the network.
        batch: the examples per step: every chunk except for the last holds whole steps.
        least: the least number of rows of a dense chunk.
    """
    m, n_0 = examples.X.shape
    if not sparse.issparse(examples.X):
        M = max(least, rounded(m))
        return partial(_dense, _entered(examples, dtype, M), m, batch.width)
    steps = max(1, CHUNK // (n_0 * batch.size))
    rows = min(steps * batch.size, -(-m // batch.size) * batch.size)
    M = max(rows, batch.width) if rows < m else max(least, rounded(m))
    return partial(_sparse, examples, dtype, batch, rows, M)


def at_once(examples: Examples, dtype: Any) -> Callable[[], Iterator[Chunk]]:
    """Return a function that yields the examples in their order, for one step with all of them."""
    m = len(examples.Y)
    return partial(feed(examples, dtype, Batch(m, rounded(m))), np.arange(m))


def _dense(entered: Examples, m: int, width: int, order: np.ndarray) -> Iterator[Chunk]:
    yield Chunk(*entered, _padded(order, len(entered.X) + width), np.int32(m))


def _sparse(
    examples: Examples, dtype: Any, batch: Batch, rows: int, M: int, order: np.ndarray
) -> Iterator[Chunk]:
    for start in range(0, len(order), rows):
        part = examples.at(order[start : start + rows])
        m = len(part.Y)
        entered = _entered(part._replace(X=part.X.toarray()), dtype, M)
        yield Chunk(*entered, _padded(np.arange(m), M + batch.width), np.int32(m))


def _entered(examples: Examples, dtype: Any, M: int) -> Examples:
    """Return X, Y and the weights on the device, with rows of 0 up to M."""
    dtype = np.dtype(dtype)
    X, Y = (rows_of(P.T, dtype, M, look=False)[0] for P in examples[:2])
    w = examples.weights
    return Examples(X, Y, None if w is None else rows_of(w[None], dtype, M, look=False)[0][:, 0])


def _padded(order: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros(length, np.int32)
    padded[: len(order)] = order
    return padded
