"""One pass over many examples, a batch at a time, in one compiled loop.

The last batch ends at the last example, so it may overlap the one before. What it repeats has
weight 0 in sums, and is cut off in lists.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

Tree = TypeVar("Tree")


def list_over_batches(f: Callable[..., Array], size: int, *columns: Array) -> Array:
    """Return f of each batch, joined along its first axis, which must be that of the examples.

    Args:
        f: a function of one array per array in `columns`, with the examples of the batch.
        size: examples per batch.
        columns: arrays (..., m).
    """
    m = columns[0].shape[-1]
    size, starts = min(size, m), _starts(m, size)
    parts = lax.map(lambda start: f(*(_cut(P, start, size) for P in columns)), starts)
    full, last = m - m % size, m % size
    joined: Array = parts[: full // size].reshape(full, *parts.shape[2:])
    return joined if last == 0 else jnp.concatenate([joined, parts[-1, size - last :]])


def sum_over_batches(f: Callable[..., Tree], size: int, w: Array, *columns: Array) -> Tree:
    """Return the sum of f(w, *columns) over all batches.

    Args:
        f: a function of the weights (size,) of the batch and one array per array in `columns`.
        size: examples per batch.
        w: (m,).
        columns: arrays (..., m).
    """
    m = w.shape[0]
    size = min(size, m)

    def of_batch(start: Array) -> Tree:
        first = jnp.minimum(start, m - size)  # as `_cut` does
        new = first + jnp.arange(size, dtype=jnp.int32) >= start
        w_b, *cut = (_cut(P, start, size) for P in (w, *columns))
        return f(jnp.where(new, w_b, 0), *cut)

    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_batch, jnp.zeros((), jnp.int32))
    )
    total: Tree
    total, _ = lax.scan(
        lambda total, start: (jax.tree.map(jnp.add, total, of_batch(start)), None),
        zero,
        _starts(m, size),
    )
    return total


def _starts(m: int, size: int) -> Array:
    return jnp.arange(0, m, min(size, m), dtype=jnp.int32)


def _cut(P: Array, start: Array, size: int) -> Any:
    return lax.dynamic_slice_in_dim(P, start, size, axis=-1)
