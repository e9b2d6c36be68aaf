"""What is seen of the layers while they train: a function of (cache, dZ, updates) every k steps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from deepprop._checks import whole_number
from deepprop.backprop import error_signals
from deepprop.layers import Cache, Params
from deepprop.network import forward

Recorded = Callable[[Cache, tuple[Array, ...], Params], Any]


@dataclass(frozen=True)
class Record:
    """What `fit` records of the layers, and how often.

    >>> import deepprop as dp
    >>> dp.Record(dp.diagnose, every=50).every
    50

    Attributes:
        function: (cache, dZ, updates) to a pytree of arrays, in JAX, such as `diagnose`. It sees
            each minibatch as it is, without weights.
        every: steps from one record to the next; the first step of an epoch has one.

    Raises:
        TypeError: `function` is not a function, or `every` is not a whole number.
        ValueError: `every` is below 1.
    """

    function: Recorded
    every: int = 1

    def __post_init__(self) -> None:
        """Check both."""
        if not callable(self.function):
            raise TypeError(f"record must be a function such as dp.diagnose, got {self.function!r}")
        object.__setattr__(self, "every", whole_number("every of a record", self.every))


def record_of(record: Record | Recorded | None) -> Record | None:
    """The record; a function alone is recorded at every step."""
    return record if record is None or isinstance(record, Record) else Record(record)


class Watch(NamedTuple):
    """How an epoch keeps its records.

    Attributes:
        nothing: room for them before the first step: zeros with a leading axis, one an entry; and
            the number of that step.
        see: (seen, before, after, X, Y) to what has been seen after one step more, from the
            params before and after it and its minibatch with one example per row.
    """

    nothing: Any
    see: Callable[[Any, Params, Params, Array, Array], Any]


def watching(
    record: Recorded | None, every: int, steps: int, params: Params, X: Array, Y: Array
) -> Watch:
    """How an epoch of so many steps keeps a record of every k-th, the first included.

    The passes are run anew for a record, so that steps without one cost nothing more.

    Args:
        record: (cache, dZ, updates) to a pytree of arrays; None for no records.
        every: k.
        steps: of the epoch.
        params: the layers.
        X: (batch_size, n_0), of a minibatch's shape.
        Y: (batch_size, n_L).
    """
    if record is None:
        return Watch((), lambda seen, *_: seen)

    def of_step(before: Params, after: Params, X: Array, Y: Array) -> Any:
        _, cache = forward(before, X.T)
        return record(cache, error_signals(cache, Y.T), jax.tree.map(jnp.subtract, after, before))

    def see(seen: Any, *batch: Any) -> Any:
        step, records = seen

        def write() -> Any:
            new = of_step(*batch)
            return jax.tree.map(lambda kept, r: kept.at[step // every].set(r), records, new)

        return step + 1, jax.lax.cond(step % every == 0, write, lambda: records)

    one = jax.eval_shape(of_step, params, params, X, Y)
    entries = -(-steps // every)
    room = jax.tree.map(lambda leaf: jnp.zeros((entries, *leaf.shape), leaf.dtype), one)
    return Watch((jnp.zeros((), jnp.int32), room), see)


def named(seen: Any) -> dict[str, Array]:
    """The records of an epoch by their names: fields, keys or numbers, joined by dots.

    >>> list(named((0, {"a": 1.0, "b": (2.0, 3.0)})))
    ['a', 'b.0', 'b.1']

    Raises:
        ValueError: a name is one that the history has anyway.
    """
    records = seen[1] if seen else ()
    leaves, _ = jax.tree.flatten_with_path(records)
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    by_name = {name(path) or "record": leaf for path, leaf in leaves}
    for taken in by_name:
        if taken in ("cost", "epsilon") or taken.startswith("val_"):
            raise ValueError(f'record must not have an entry called "{taken}", as fit has its own')
    return by_name
