"""Training many networks of one shape at once: an ensemble, or a sweep over hyperparameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params
from deepprop._checks import check_key, real_array, whole_number
from deepprop.backprop import Backward, manual_backward
from deepprop.layers import Params
from deepprop.optimizers.optax_calls import started
from deepprop.training.advice import advice_for
from deepprop.training.checkpoint import Checkpoint
from deepprop.training.epoch import Trained, check_training, one_epoch
from deepprop.training.examples import in_memory, parts_of
from deepprop.training.former_arguments import takes_former_arguments
from deepprop.training.loop import Callback, Fit, Progress
from deepprop.training.measure import Pair, Triple, Validation, measure_of
from deepprop.training.programs import Programs
from deepprop.training.run import own_state, own_transfers, run_or_resume

Optimizer: TypeAlias = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


@takes_former_arguments
@own_transfers
def fit_ensemble(
    params: Params,
    optimizer: Optimizer,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    epochs: int,
    first_epoch: int = 1,
    batch_size: int,
    key: Array,
    sweep: Mapping[str, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    validation: Validation | Pair | Triple | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    state: optax.OptState | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
) -> Fit:
    """Train K networks of one shape in one compiled program, each as `fit` would train it.

    They differ in their parameters, the order of the examples, or the optimizer's settings.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> make = lambda key: dp.init_params(key, [1, 8, 1], hidden="tanh", output="identity")
    >>> params = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit_ensemble(params, optax.sgd, X, X**2, epochs=40, batch_size=16,
    ...     key=jax.random.key(1), sweep={"learning_rate": jnp.array([0.001, 0.1, 0.3])})
    >>> fit.history["cost"].shape, int(fit.history["cost"][-1].argmax())
    ((40, 3), 0)
    >>> best = jax.tree.map(lambda leaf: leaf[2], fit.params)  # one of them, as `fit` returns it
    >>> best[0].W.shape
    (8, 1)

    Args:
        params: layers with a leading axis of K, as `jax.vmap` of `init_params` makes them; or one
            network from which all start.
        optimizer: an optax transformation for all; or, with `sweep`, a function of its entries that
            returns one, such as `optax.adamw`.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        epochs: the number of passes over the examples.
        first_epoch: the number of the first epoch of this call, as for `fit`.
        batch_size: examples per step, at most m.
        key: a JAX random key for one order of the examples, or K keys, one per network.
        sweep: names, and (K,) values with which `optimizer` is called, one per network. It runs
            under `jit`: it can compute with the values, but not branch on them. A random key inside
            of it is the same for all networks.
        weights: (m,), one per example.
        validation: (X, Y), (X, Y, weights) or a `Validation` without patience, to measure on after
            each epoch.
        callbacks: functions of (epoch, row of the history, params), called after each epoch; one
            that returns True stops the training.
        backward: maps (cache, Y, weights) to gradients like params.
        state: the optimizer's state of all networks, with a leading axis of K, from an earlier
            `Fit`; None starts a new one.
        checkpoint: a folder or a `Checkpoint`, to resume from as `fit` does.

    Returns:
        A `Fit` whose params and state have a leading axis of K, and whose history has arrays
        (epochs, K). A network that is no longer finite does not stop the others.

    Raises:
        TrainingError: no network is finite any longer.
        ValueError, TypeError, ImportError: as for `fit`; or params, keys and sweep disagree on K.
    """
    several = _have_an_axis(params)
    one = jax.tree.map(lambda leaf: leaf[0], params) if several else params
    check_params(one)
    entries = _numbers(sweep or {}, one[0].W.dtype)
    K = _how_many(params if several else (), key, entries)
    if not several:
        params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (K, *leaf.shape)), params)
    if entries and isinstance(optimizer, optax.GradientTransformation):
        raise TypeError("optimizer must be a function of the entries of sweep, such as optax.adam")
    data = in_memory(one, X, Y, weights, batch_size)
    batch_size = whole_number("batch_size", batch_size, data[0].shape[0])
    epochs = whole_number("epochs", epochs)
    measure = measure_of(one, validation)
    if measure is not None:
        if measure.patience is not None:
            raise ValueError(
                "patience must be None for an ensemble, as its networks can't stop one by one,"
                f" got {measure.patience}"
            )
        measure = replace(measure, several=True)

    def train(params: Params, state: optax.OptState, epoch: int) -> Any:
        return _train_epoch(
            params, state, key, epoch, entries, *data,
            optimizer=optimizer, backward=backward, batch_size=batch_size,
        )  # fmt: skip

    begin = jax.vmap(lambda params, own: started(_made(optimizer, own, backward), params))
    state = own_state(state, begin, params, entries)
    parts = parts_of(*data) | {"key": key, "batch_size": batch_size, "backward": backward}
    parts["sweep"] = {name: values.tolist() for name, values in entries.items()}
    return run_or_resume(
        train, measure, Progress(params, state, (), params), checkpoint, parts,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
        advice=partial(advice_for, data[0]),
    )  # fmt: skip


def _one_epoch(
    params: Params,
    state: optax.OptState,
    key: Array,
    epoch: Array,
    sweep: Mapping[str, Array],
    X: Array,
    Y: Array,
    weights: Array | None,
    *,
    optimizer: Optimizer,
    backward: Backward,
    batch_size: int,
) -> Trained:
    def member(params: Params, state: optax.OptState, key: Array, entries: Any) -> Any:
        return one_epoch(
            params, state, key, epoch, X, Y, weights,
            optimizer=_made(optimizer, entries, backward), backward=backward, batch_size=batch_size,
        )  # fmt: skip

    axes = 0, 0, 0 if _several(key) else None, 0
    params, state, seen, finite = jax.vmap(member, in_axes=axes)(params, state, key, sweep)
    return params, state, seen, jnp.any(finite)


_train_epoch = Programs(
    _one_epoch,
    static=("optimizer", "backward", "batch_size"),
    donate_argnums=(1,),  # the state
)


def _made(
    optimizer: Optimizer, entries: Mapping[str, Array], backward: Backward
) -> optax.GradientTransformation:
    made: Any = optimizer
    if entries:
        made = made(**entries)
    check_training(made, backward)
    return made


def _several(key: Array) -> bool:
    return key.ndim > (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def _numbers(sweep: Mapping[str, ArrayLike], dtype: Any) -> dict[str, Array]:
    """Return the entries as arrays (K,), in the dtype of the parameters unless integers."""
    if not isinstance(sweep, Mapping):
        raise TypeError(f"sweep must be names and (K,) numbers, got {type(sweep).__name__}")
    entries = {name: real_array(f"sweep {name}", values) for name, values in sweep.items()}
    for name, values in entries.items():
        if values.ndim != 1:
            raise ValueError(f"sweep {name} must have shape (K,), got {values.shape}")
        if jnp.issubdtype(values.dtype, jnp.floating):
            entries[name] = values.astype(dtype)
    return entries


def _how_many(params: Params, key: Any, sweep: Mapping[str, Array]) -> int:
    """Return the number of networks K; raise if params, keys and sweep disagree.

    Args:
        params: layers with a leading axis of K; or none.
        key: one key, or K keys.
        sweep: arrays (K,).
    """
    counts = {f"sweep {name}": len(values) for name, values in sweep.items()}
    if getattr(key, "ndim", 0) and _several(key):
        check_key(key[0])
        counts["key"] = key.shape[0]
    else:
        check_key(key)
    for l, layer in enumerate(params, start=1):
        leaves = {f"W[{l}]": layer.W, f"b[{l}]": layer.b}
        counts |= {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            "the number of networks K must follow from params with a leading axis, from K keys or"
            f" from a sweep of K numbers, and these must agree, got {counts or 'none of them'}"
        )
    return next(iter(counts.values()))


def _have_an_axis(params: Any) -> bool:
    """Return whether params belong to several networks: the last layer of one is never a stack."""
    W: Any = getattr(params[-1], "W", None) if isinstance(params, tuple) and params else None
    return getattr(W, "ndim", 0) == 3 and len(W) > 0
