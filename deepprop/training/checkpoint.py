"""Checkpoints: a run resumes after it is killed, and ends with the same parameters, bit for bit.

Orbax writes them in another thread, each completely or not at all.

A checkpoint is resumed only by the same run: same_run.py says what is compared. Hyperparameters of
the optimizer may change. Most of them are in closures of the optimizer and are not stored at all.
Those of `optax.inject_hyperparams` are part of its state; they are taken from the optimizer as it
is now, not from the checkpoint. Schedules continue from their stored count.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepprop._checks import missing, whole_number
from deepprop.training.loop import Progress
from deepprop.training.same_run import check_same_run, is_key, without_keys

Restore = Callable[[Progress], Progress]
Save = Callable[[Progress, bool], None]
MOST = 2  # in a folder: if the newest is damaged, a user can remove it and resume from the other
DAMAGED = " (remove it to resume from the one before, if there is one)"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run saves its progress, and how often.

    A run that finds a checkpoint of itself in the folder resumes from it. A checkpoint of another
    run is refused: of another network, kind of optimizer, data, key, batch size, validation set,
    metric, backward pass or record. The optimizer's hyperparameters may change. Functions are
    compared by name, and within one version of Python also by code, constants, defaults and
    closure.

    >>> import deepprop as dp
    >>> dp.Checkpoint("run", every=10).every
    10

    Attributes:
        folder: a folder for this run only; with several processes, one that all of them share.
        every: save after every k-th epoch, and after the last. A checkpoint takes about 0.1 s.

    Raises:
        TypeError: `every` is not a whole number.
        ValueError: `every` is below 1.
    """

    folder: str | Path
    every: int = 1

    def __post_init__(self) -> None:
        """Check the interval. The folder is created when the run starts."""
        object.__setattr__(self, "every", whole_number("every of a checkpoint", self.every))


def checkpoint_of(given: Checkpoint | str | Path | None) -> Checkpoint | None:
    """Return a `Checkpoint`; from a folder, one after every epoch."""
    return given if given is None or isinstance(given, Checkpoint) else Checkpoint(given)


@contextmanager
def checkpoints(
    checkpoint: Checkpoint | None, setting: Callable[[], Mapping[str, str]]
) -> Iterator[tuple[Restore, Save]]:
    """Yield a function that restores the newest checkpoint, and one that writes the next.

    Args:
        checkpoint: the folder and the interval; None for a run without checkpoints.
        setting: returns what identifies the run: a text for each name. It is a function because
            checksums take time, and a run without checkpoints needs none.

    Yields:
        restore: maps the progress at the start of a run to that of the newest checkpoint, if any.
        save: takes the progress after an epoch, and whether that is the last one.

    Raises:
        ImportError: orbax-checkpoint is missing; the message says what to install.
        ValueError: the checkpoint belongs to another run, or can't be read.
    """
    if checkpoint is None:
        yield (lambda at: at), (lambda at, last: None)
        return
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise missing("checkpoint", "orbax-checkpoint", "checkpoints") from None
    options = ocp.CheckpointManagerOptions(max_to_keep=MOST, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(_created(checkpoint.folder), options=options) as manager:
        now = setting()

        def restore(at: Progress) -> Progress:
            epoch = manager.latest_step()
            return at if epoch is None else _restored(manager, epoch, at, now)

        def save(at: Progress, last: bool) -> None:
            if last or at.epoch % checkpoint.every == 0:
                manager.save(at.number, args=_saved(at, now))

        yield restore, save  # on exit, the manager waits for the checkpoint being written


def _saved(at: Progress, setting: Mapping[str, str]) -> Any:
    """Return what Orbax is to write: the arrays, and the rest as JSON."""
    import orbax.checkpoint as ocp

    notes = {
        "setting": dict(setting),
        "history": list(at.history),
        "best_epoch": at.best_epoch,
        "best_cost": at.best_cost,
    }
    return ocp.args.Composite(
        arrays=ocp.args.StandardSave(jax.tree.map(without_keys, _arrays(at))),
        notes=ocp.args.JsonSave(notes),
    )


def _restored(manager: Any, epoch: int, at: Progress, setting: Mapping[str, str]) -> Progress:
    """Read a checkpoint, and return its progress if it belongs to the run.

    Raises:
        ValueError: it belongs to another run, or can't be read.
    """
    import orbax.checkpoint as ocp

    where = f"checkpoint {manager.directory}, epoch {epoch}"
    try:
        notes = manager.restore(epoch, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
        stored = notes.pop("setting")
    except Exception as error:  # the decoders of damaged files raise all kinds of errors
        raise ValueError(f"{where} can't be read{DAMAGED}: {error}") from error
    check_same_run(where, stored, setting)
    notes["history"] = tuple(notes["history"])
    at = replace(at, **notes)
    target = jax.tree.map(without_keys, _arrays(at))
    try:
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
        arrays = manager.restore(epoch, args=args).arrays
    except Exception as error:
        raise ValueError(f"{where} can't be read{DAMAGED}: {error}") from error
    restored = {name: _filled(getattr(at, name), leaves) for name, leaves in arrays.items()}
    restored["state"] = _with_hyperparams_of(at.state, restored["state"])
    return replace(at, **{"best": restored["params"], **restored})


def _with_hyperparams_of(current: Any, restored: Any) -> Any:
    """Return the restored state with the hyperparameters of the current optimizer's state.

    These are the leaves under `hyperparams` of `optax.inject_hyperparams`. If a schedule sets one,
    it has an entry of the same name under `hyperparams_states`, and is restored: the schedule
    continues from its count.
    """
    leaves, structure = jax.tree.flatten_with_path(current)
    paths = [path for path, _ in leaves]
    scheduled = {entry for path in paths for entry in _entries(path, "hyperparams_states")}

    def chosen(path: Any, new: Any, old: Any) -> Any:
        entries = set(_entries(path, "hyperparams"))
        return new if entries and not entries & scheduled else old

    pairs = zip(leaves, jax.tree.leaves(restored), strict=True)
    return jax.tree.unflatten(structure, [chosen(path, new, old) for (path, new), old in pairs])


def _entries(path: Any, attribute: str) -> list[tuple[Any, str]]:
    """Return the entries of `attribute` through which a path goes: the path to it, and their name.

    There may be several, as transformations with injected hyperparameters can be nested.
    """
    steps = enumerate(path[:-1])
    positions = [i for i, step in steps if getattr(step, "name", None) == attribute]
    return [(path[:i], str(path[i + 1])) for i in positions]


def _created(folder: str | Path) -> Path:
    """Create the folder if needed, and return its absolute path.

    Raises:
        ValueError: it is empty, or a URL.
    """
    if not str(folder) or "://" in str(folder):
        raise ValueError(f"checkpoint must be a folder of this machine, got {str(folder)!r}")
    path = Path(folder).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _arrays(at: Progress) -> dict[str, list[Array]]:
    """Return the arrays to store, by name: `best` only if it differs from `params`."""
    names = ("params", "state") + (("best",) if 0 < at.best_epoch < at.epoch else ())
    return {name: jax.tree.leaves(getattr(at, name)) for name in names}


def _filled(tree: Any, leaves: list[Array]) -> Any:
    """Return the pytree with restored leaves in the place of its own."""
    old, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(map(_restored_leaf, old, leaves)))


def _restored_leaf(old: Array, new: Array) -> Array:
    """Return the new leaf as a random key if the old one is; uncommitted if the old one is.

    Orbax commits what it restores to a device. A run whose arrays were not committed should not be
    bound to that device by resuming.
    """
    if is_key(old):
        key: Array = jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
        return key
    return new if old.committed else jnp.asarray(jax.device_get(new))
