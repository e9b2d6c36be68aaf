"""Recording a function of (cache, dZ, updates) every k steps of training."""

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
from deepprop.training.examples import forward_checked

Recorded = Callable[[Cache, tuple[Array, ...], Params], Any]


@dataclass(frozen=True)
class Record:
    """A function of the layers that `fit` records while it trains, and how often.

    >>> import deepprop as dp
    >>> dp.Record(dp.diagnose, every=50).every
    50

    Attributes:
        function: maps (cache, dZ, updates) to a pytree of arrays, in JAX, such as `diagnose`.
            `updates` is the change of params in that step. Weights do not enter.
        every: record every k-th step, starting with the first step of each epoch.

    Raises:
        TypeError: `function` is not a function, or `every` is not a whole number.
        ValueError: `every` is below 1.
    """

    function: Recorded
    every: int = 1

    def __post_init__(self) -> None:
        """Check the function and the interval."""
        if not callable(self.function):
            raise TypeError(f"record must be a function such as dp.diagnose, got {self.function!r}")
        object.__setattr__(self, "every", whole_number("every of a record", self.every))


def record_of(record: Record | Recorded | None) -> Record | None:
    """Return the record; a bare function is recorded at every step.

    Raises:
        TypeError: it is neither a `Record` nor a function.
    """
    return record if record is None or isinstance(record, Record) else Record(record)


class Recorder(NamedTuple):
    """How an epoch collects its records.

    Attributes:
        empty: the records before the first step: the number of steps done, and zeros with one entry
            per record.
        update: update(records, params_before, params_after, X_rows, Y_rows, key) returns the
            records after one more step; the key is for dropout, or None.
    """

    empty: Any
    update: Callable[[Any, Params, Params, Array, Array, Array | None], Any]


def recorder(
    record: Recorded | None,
    every: int,
    steps: int,
    params: Params,
    X: Array,
    Y: Array,
    key: Array | None,
) -> Recorder:
    """Return a `Recorder` for every k-th step of an epoch, starting with the first.

    A step that is recorded runs both passes a second time. The step itself could return its cache
    and dZ, but then every step would have to store them; this way, the others cost nothing extra.

    Args:
        record: maps (cache, dZ, updates) to a pytree of arrays; None for no records.
        every: k.
        steps: steps per epoch.
        params: the layers.
        X: (batch_size, n_0), any minibatch; only its shape matters.
        Y: (batch_size, n_L), its targets.
        key: any key, for layers with dropout.
    """
    if record is None:
        return Recorder((), lambda records, *_: records)

    def of_step(before: Params, after: Params, X: Array, Y: Array, key: Array | None) -> Any:
        cache = forward_checked(before, X.T, key)
        dZ = error_signals(cache, Y.T)
        return record(cache, dZ, jax.tree.map(jnp.subtract, after, before))

    def update(numbered: Any, *batch: Any) -> Any:
        step, records = numbered

        def write() -> Any:
            new = of_step(*batch)
            return jax.tree.map(lambda P, entry: P.at[step // every].set(entry), records, new)

        return step + 1, jax.lax.cond(step % every == 0, write, lambda: records)

    one = jax.eval_shape(of_step, params, params, X, Y, key)
    entries = -(-steps // every)
    empty = jax.tree.map(lambda leaf: jnp.zeros((entries, *leaf.shape), leaf.dtype), one)
    return Recorder((jnp.zeros((), jnp.int32), empty), update)


def columns_of(numbered: Any) -> dict[str, Array]:
    """Return the records of an epoch by name: fields, keys or indices, joined by dots.

    >>> list(columns_of((0, {"a": 1.0, "b": (2.0, 3.0)})))
    ['a', 'b.0', 'b.1']

    Raises:
        ValueError: a name is reserved for the history.
    """
    records = numbered[1] if numbered else ()
    leaves, _ = jax.tree.flatten_with_path(records)
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    by_name = {name(path) or "record": leaf for path, leaf in leaves}
    for taken in by_name:
        if taken in ("cost", "epsilon") or taken.startswith("val_"):
            raise ValueError(f'record must not have an entry called "{taken}", as fit has its own')
    return by_name
