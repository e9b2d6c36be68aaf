"""A run, from its beginning or from its newest checkpoint: what `fit` and its siblings share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepprop._checks import whole_number
from deepprop.training.checkpoint import Checkpoint, checkpoint_of, checkpoints, setting_of
from deepprop.training.loop import Advice, Callback, Fit, Progress, Train, run
from deepprop.training.measure import Measure, names_of

# The data goes to the device because the caller asked for it, which a guard need not stop.
own_transfers = jax.transfer_guard("allow")


def run_or_resume(
    train: Train,
    measure: Measure | None,
    at: Progress,
    checkpoint: Checkpoint | Any,
    parts: Mapping[str, Any],
    *,
    epochs: int,
    first_epoch: int,
    callbacks: Sequence[Callback],
    advice: Advice,
) -> Fit:
    """`run` from the start, or from the newest checkpoint in the folder if there is one.

    Args:
        train: as for `run`.
        measure: on the validation set; None without one.
        at: where to start.
        checkpoint: as for `fit`.
        parts: what makes the run the same when it is resumed, besides the network, the optimizer
            and what is measured.
        epochs: as for `fit`.
        first_epoch: as for `fit`.
        callbacks: as for `fit`.
        advice: as for `run`.
    """
    first_epoch = whole_number("first_epoch", first_epoch)
    if first_epoch + epochs > 2**31:  # the order of an epoch is drawn from its number, an int32
        raise ValueError(f"first_epoch must leave the epochs below 2^31, got {first_epoch}")
    patience = None if measure is None else measure.patience
    parts = {**parts, "patience": patience is not None, "first_epoch": first_epoch}
    parts |= {"measured": names_of(measure), **({} if measure is None else measure.parts())}
    setting = partial(setting_of, at, parts)
    with checkpoints(checkpoint_of(checkpoint), setting) as (restore, save):
        return run(
            train, measure, restore(replace(at, first_epoch=first_epoch)), epochs=epochs,
            patience=patience, callbacks=callbacks, save=save, advice=advice,
        )  # fmt: skip


def own_state(state: optax.OptState | None, init: Callable[..., Any], *args: Any) -> Any:
    """A copy of the optimizer's state, or of a new one; an epoch donates its buffers.

    Raises:
        ValueError: it is the state of another optimizer, or of other params.
    """
    if state is None:
        state = init(*args)
    elif _outline(state) != _outline(jax.eval_shape(init, *args)):
        raise ValueError(
            "state must be the state of this optimizer for these params, as an earlier Fit has it,"
            f" got another {type(state).__name__}"
        )
    return jax.tree.map(jnp.copy, state)


def _outline(state: Any) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(state)
    return structure, [jnp.shape(leaf) for leaf in leaves]
