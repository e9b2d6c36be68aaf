"""Checkpoints: a run resumes after it is killed, and ends with the same parameters, bit for bit.

Orbax writes them in another thread, each completely or not at all. A checkpoint also stores what
identifies its run, as text: the network, the structure of the optimizer's state, checksums of the
data, the key, the batch size, and names and hashes of functions. If any of it differs, the run is
refused with the name of what differs, because resuming would silently mix two runs. The
hyperparameters inside of the optimizer may change: lowering the learning rate of a run is a common
reason to resume it.
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
from deepprop.layers import Layer
from deepprop.training.identity import PYTHON, hash_of, name_of
from deepprop.training.loop import Progress

Restore = Callable[[Progress], Progress]
Save = Callable[[Progress, bool], None]
KEPT = 2  # if the newest is damaged, one can remove it and resume from the one before
# Entries that 0.1.0 did not write: they are compared only if both runs have them. Then what the
# absence of other entries means.
NEW = ("backward", "function of ", "code of ", "validation ", "metric ")
ABSENT = {"first_epoch": "1", "patience": "False"}
DAMAGED = " (remove it to resume from the one before, if there is one)"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run writes its checkpoints, and how often.

    >>> import deepprop as dp
    >>> dp.Checkpoint("run", every=10).every
    10

    Attributes:
        folder: of this run alone. On several processes one that all of them see.
        every: epochs from one checkpoint to the next, each of which takes about 0.1 s. The last
            epoch always has one.

    Raises:
        TypeError: `every` is not a whole number.
        ValueError: `every` is below 1.
    """

    folder: str | Path
    every: int = 1

    def __post_init__(self) -> None:
        """Check the interval; the folder is made when the run starts."""
        object.__setattr__(self, "every", whole_number("every of a checkpoint", self.every))


def checkpoint_of(given: Checkpoint | str | Path | None) -> Checkpoint | None:
    """The checkpoint; a folder alone gets one after every epoch."""
    return given if given is None or isinstance(given, Checkpoint) else Checkpoint(given)


@contextmanager
def checkpoints(
    checkpoint: Checkpoint | None, setting: Callable[[], Mapping[str, str]]
) -> Iterator[tuple[Restore, Save]]:
    """Yield a function that restores the newest checkpoint, and one that writes the next.

    Args:
        checkpoint: where they are and how often one is written; None for a run without.
        setting: returns what identifies the run: names, and text for each.

    Yields:
        restore: maps the progress at the start of a run to that of the newest checkpoint, if any.
        save: takes the progress after an epoch, and whether it is the last one.

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
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(_made(checkpoint.folder), options=options) as manager:
        now = setting()

        def restore(at: Progress) -> Progress:
            epoch = manager.latest_step()
            return at if epoch is None else _restored(manager, epoch, at, now)

        def save(at: Progress, last: bool) -> None:
            if last or at.epoch % checkpoint.every == 0:
                manager.save(at.number, args=_saved(at, now))

        yield restore, save  # leaving waits for what is being written


def setting_of(at: Progress, parts: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies a run, as text: the network, the optimizer's state, and parts."""
    functions = {name: part for name, part in parts.items() if callable(part)}
    first, last = at.params[0], at.params[-1]
    networks = last.W.shape[:-2]  # the last layer is never a stack
    layers = [_described(layer, len(networks)) for layer in at.params]
    return {
        "network": " - ".join([str(first.W.shape[-1]), *layers]) + f", {first.W.dtype}",
        "number of networks": str(networks),
        "optimizer": str(jax.tree.structure(at.state, is_leaf=_is_params)),
        **{name: _text(part) for name, part in parts.items()},
        **{f"code of {name} ({PYTHON})": hash_of(part) for name, part in functions.items()},
    }


def _described(layer: Layer, before: int) -> str:
    """Describe a layer in words; W has `before` leading axes of an ensemble."""
    *stack, n, _ = layer.W.shape[before:]
    words = [f"{n} {layer.activation.name}", *(f"{K} times" for K in stack)]
    words += ["residual"] * layer.residual + (
        [f"{layer.compute_dtype}"] if layer.compute_dtype else []
    )
    return " ".join(words)


def _saved(at: Progress, setting: Mapping[str, str]) -> Any:
    import orbax.checkpoint as ocp

    notes = {
        "setting": dict(setting),
        "history": list(at.history),
        "best_epoch": at.best_epoch,
        "best_cost": at.best_cost,
    }
    return ocp.args.Composite(
        arrays=ocp.args.StandardSave(jax.tree.map(_plain, _arrays(at))),
        notes=ocp.args.JsonSave(notes),
    )


def _restored(manager: Any, epoch: int, at: Progress, setting: Mapping[str, str]) -> Progress:
    import orbax.checkpoint as ocp

    where = f"checkpoint {manager.directory}, epoch {epoch}"
    try:
        notes = manager.restore(epoch, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
        was = notes.pop("setting")
    except Exception as error:  # what is raised depends on the decoder
        raise ValueError(f"{where} can't be read{DAMAGED}: {error}") from error
    for name in {**setting, **was}:
        if name.startswith(NEW) and not (name in was and name in setting):
            continue
        before, now = (texts.get(name, ABSENT.get(name)) for texts in (was, setting))
        if before != now:
            raise ValueError(
                f"{where} has another {name}: {before}, and now it is {now};"
                " use another folder to start again"
            )
    notes["history"] = tuple(notes["history"])
    at = replace(at, **notes)
    like = jax.tree.map(_plain, _arrays(at))
    try:
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
        arrays = manager.restore(epoch, args=args).arrays
    except Exception as error:
        raise ValueError(f"{where} can't be read{DAMAGED}: {error}") from error
    filled = {name: _like(getattr(at, name), leaves) for name, leaves in arrays.items()}
    filled["state"] = _with_hyperparams_of(at.state, filled["state"])
    return replace(at, **{"best": filled["params"], **filled})


def _with_hyperparams_of(given: Any, restored: Any) -> Any:
    """Return the restored state with the hyperparameters of the given one (`inject_hyperparams`).

    Those that a schedule sets are restored: what a schedule depends on is in `hyperparams_states`.
    """
    leaves, structure = jax.tree.flatten_with_path(given)
    paths = [path for path, _ in leaves]
    scheduled = {place for path in paths for place in _entries(path, "hyperparams_states")}

    def chosen(path: Any, new: Any, old: Any) -> Any:
        places = set(_entries(path, "hyperparams"))
        return new if places and not places & scheduled else old

    pairs = zip(leaves, jax.tree.leaves(restored), strict=True)
    return jax.tree.unflatten(structure, [chosen(path, new, old) for (path, new), old in pairs])


def _entries(path: Any, attribute: str) -> list[tuple[Any, str]]:
    """Return where a path passes an entry of that attribute: the path before, and its name."""
    steps = enumerate(path[:-1])
    at = [i for i, step in steps if getattr(step, "name", None) == attribute]
    return [(path[:i], str(path[i + 1])) for i in at]


def _made(folder: str | Path) -> Path:
    """Create the folder if needed, and return its path."""
    if not str(folder) or "://" in str(folder):
        raise ValueError(f"checkpoint must be a folder of this machine, got {str(folder)!r}")
    path = Path(folder).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _text(part: Any) -> str:
    if callable(part):
        return name_of(part)
    if not isinstance(part, jax.Array):
        return str(part)
    low, high = jax.device_get(_checksums(_plain(part)))
    return f"{part.dtype}{list(part.shape)} {high:08x}{low:08x}"


@jax.jit
def _checksums(P: Array) -> list[Array]:
    """Compute a 64-bit checksum of an array, as two numbers.

    The array may be divided over devices and processes, none of which has all of it. So the
    checksum is a sum of integers, which does not depend on the order, of each value mixed with its
    position by the finaliser of MurmurHash3 (Appleby).
    """
    size = jnp.dtype(P.dtype).itemsize
    if jnp.issubdtype(P.dtype, jnp.floating):
        P = jax.lax.bitcast_convert_type(P, jnp.uint16 if size == 2 else jnp.uint32)
    place = jax.lax.iota(jnp.uint32, P.size).reshape(P.shape)

    def mixed(factor: int) -> Array:
        h = P.astype(jnp.uint32) ^ (place * jnp.uint32(factor))
        for shift, times in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(times)
        return jnp.sum(h ^ (h >> jnp.uint32(16)), dtype=jnp.uint32)

    return [mixed(0x9E3779B9), mixed(0x7FEB352D)]


def _arrays(at: Progress) -> dict[str, list[Array]]:
    """Return the arrays of a progress by name; `best` only if it is not `params`."""
    names = ("params", "state") + (("best",) if 0 < at.best_epoch < at.epoch else ())
    return {name: jax.tree.leaves(getattr(at, name)) for name in names}


def _plain(leaf: Array) -> Array:
    """Return a random key as its raw data; other arrays unchanged."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(tree: Any, leaves: list[Array]) -> Any:
    old, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(map(_as_it_was, old, leaves)))


def _as_it_was(was: Array, new: Array) -> Array:
    """Return the leaf as a random key, or uncommitted, if it was so before."""
    if _is_key(was):
        key: Array = jax.random.wrap_key_data(new, impl=jax.random.key_impl(was))
        return key
    return new if was.committed else jnp.asarray(jax.device_get(new))


def _is_params(node: Any) -> bool:
    return isinstance(node, tuple) and bool(node) and isinstance(node[0], Layer)


def _is_key(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
