"""The part that `fit` and its siblings share: a run from its start or its newest checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepprop._checks import whole_number
from deepprop.training.checkpoint import Checkpoint, checkpoint_of, checkpoints
from deepprop.training.loop import Callback, Fit, Progress, Training, run
from deepprop.training.measure import Measure, names_of
from deepprop.training.same_run import setting_of

# A caller's jax.transfer_guard is meant for transfers that nobody asked for. Moving the data to the
# device is what a caller of `fit` asks for.
transfers_allowed = jax.transfer_guard("allow")


def run_or_resume(
    training: Training,
    measure: Measure | None,
    at: Progress,
    checkpoint: Checkpoint | str | Path | None,
    *,
    epochs: int,
    first_epoch: int,
    callbacks: Sequence[Callback],
) -> Fit:
    """Run all epochs, from the newest checkpoint in the folder if there is one.

    Args:
        training: the way of training.
        measure: measures on the validation set; None without one.
        at: where to start without a checkpoint.
        checkpoint: as for `fit`.
        epochs: as for `fit`.
        first_epoch: as for `fit`.
        callbacks: as for `fit`.

    Returns:
        A `Fit`.

    Raises:
        ValueError: the epochs' numbers exceed int32, or the checkpoint belongs to another run.
        TrainingError, TypeError, ImportError: as for `fit`.
    """
    first_epoch = whole_number("first_epoch", first_epoch)
    if first_epoch + epochs > 2**31:  # an epoch's number is folded into the key as an int32
        raise ValueError(f"first_epoch must leave the epochs below 2^31, got {first_epoch}")
    patience = None if measure is None else measure.patience

    def setting() -> dict[str, str]:
        identity: dict[str, Any] = {"patience": patience is not None, "first_epoch": first_epoch}
        identity |= {"measured": names_of(measure), **(measure.identity() if measure else {})}
        return setting_of(at, {**training.identity(), **identity})

    with checkpoints(checkpoint_of(checkpoint), setting) as (restore, save):
        return run(
            training.train, measure, restore(replace(at, first_epoch=first_epoch)), epochs=epochs,
            patience=patience, callbacks=callbacks, save=save, advice=training.advice,
        )  # fmt: skip


def initial_state(state: optax.OptState | None, init: Callable[..., Any], *args: Any) -> Any:
    """Return a copy of the optimizer's state, or a new state if it is None.

    A copy, because an epoch donates the state, and the caller's arrays must survive.

    Args:
        state: the optimizer's state, or None.
        init: returns a new state, which shares no array with its arguments: see `fresh`.
        *args: its arguments.

    Raises:
        ValueError: the state belongs to another optimizer, or to other params.
    """
    if state is None:
        return init(*args)
    if _outline(state) != _outline(jax.eval_shape(init, *args)):
        raise ValueError(
            "state must be the state of this optimizer for these params, such as that of an earlier"
            f" Fit, got another {type(state).__name__}"
        )
    return _fresh(state)


def fresh(tree: Any) -> Any:
    """Copy all arrays: an optimizer's init may return params as part of its state."""
    return jax.tree.map(jnp.copy, tree)


_fresh = jax.jit(fresh)


def _outline(state: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return the structure of a pytree and the shapes of its leaves."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [jnp.shape(leaf) for leaf in leaves]
