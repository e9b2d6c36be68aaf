"""`fit` trains on data in memory, and `fit_batches` on batches as they come.

Both check their arguments, choose the way of training (`Training`), and run it: run.py and loop.py
have the loop around the epochs.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params
from deepprop._checks import check_key, whole_number
from deepprop.backprop import Backward, manual_backward
from deepprop.layers import Params
from deepprop.optimizers.fused_update import InBackward
from deepprop.optimizers.optax_calls import started
from deepprop.scale.devices import shard_like, shards_of
from deepprop.training.batches import Batches, batches_training, check_batches
from deepprop.training.checkpoint import Checkpoint
from deepprop.training.epoch import Trained, check_dropout, check_training, train_epoch
from deepprop.training.examples import Data, identity_of_data, in_memory
from deepprop.training.former_arguments import takes_former_arguments
from deepprop.training.identity import name_of
from deepprop.training.loop import Callback, Fit, Progress, Training
from deepprop.training.measure import Pair, Triple, Validation, measure_of
from deepprop.training.private import Privacy, check_alone, private_training
from deepprop.training.programs import Programs
from deepprop.training.record import Record, Recorded, record_of
from deepprop.training.run import fresh, initial_state, run_or_resume, transfers_allowed


@takes_former_arguments
@transfers_allowed
def fit(
    params: Params,
    optimizer: optax.GradientTransformation,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    epochs: int,
    first_epoch: int = 1,
    batch_size: int,
    key: Array,
    weights: ArrayLike | None = None,
    validation: Validation | Pair | Triple | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    privacy: Privacy | None = None,
    record: Record | Recorded | None = None,
    state: optax.OptState | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    shards: int | None = None,
) -> Fit:
    """Train on data in memory; each epoch is one compiled program.

    The examples are shuffled on the device before each epoch. Ctrl-C ends training after the
    current epoch and returns the fit so far; a second Ctrl-C interrupts at once. Calls with the
    same optimizer object, backward pass, batch size and shapes share one compiled program, which is
    released together with the optimizer.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 1], hidden="tanh", output="identity")
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit(params, optax.sgd(0.3), X, X**2, epochs=60, batch_size=16,
    ...              key=jax.random.key(1))
    >>> len(fit.history["cost"]), bool(fit.history["cost"][-1] < 0.01), fit.stopped
    (60, True, 'epochs')

    Args:
        params: the initial layers; they are not changed.
        optimizer: an optax transformation.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        epochs: the number of passes over the examples.
        first_epoch: the number of this call's first epoch; see `state`.
        batch_size: examples per step, at most m. If it does not divide m, the last minibatch of an
            epoch is filled with examples of weight 0.
        key: a JAX random key, for the order of the examples and for dropout. Both depend on the key
            and on the epoch's number.
        weights: (m,), one per example; J of a minibatch is its weighted mean.
        validation: (X, Y) or (X, Y, weights), on which the cost is measured after each epoch; or a
            `Validation`, which adds metrics and early stopping.
        callbacks: functions of (epoch, row of the history, params), called after each epoch. One
            that returns True stops training.
        backward: maps (cache, Y, weights) to gradients like params.
        privacy: a `Privacy`, to train by DP-SGD; private.py says what is private. The key must be
            secret, and new in each call. The history gets the "epsilon" spent so far by this call.
        record: a function of (cache, dZ, updates) in JAX, such as `diagnose`, to record at every
            step; or a `Record`, for every k-th step.
        state: the optimizer's state to continue with; None starts a new one. After n epochs,
            `fit(earlier.params, optimizer, X, Y, state=earlier.state, first_epoch=n + 1, ...)`
            continues as if all epochs had been one call, bit for bit.
        checkpoint: a folder, or a `Checkpoint`. The run saves its progress there. If the folder has
            a checkpoint of this run, it resumes from it instead of from `params` and `state`, and
            ends with the same parameters, bit for bit.
        shards: the number of parts of the data that are shuffled separately, each of which
            contributes equally to every minibatch. None takes one per device over which X is
            divided (`place_examples`), so that no example moves between devices. A run with the
            same `shards` is the same on any number of devices. Not used with `privacy`.

    Returns:
        A `Fit`: params, state, history, and why training stopped.

    Raises:
        TrainingError: the cost or a parameter is no longer finite. Its `fit` has the parameters of
            the epoch before, or with patience those of the best epoch.
        ValueError: a shape or a number does not fit, X or Y has non-finite values, or the
            checkpoint belongs to another run.
        TypeError: an argument is of the wrong type.
        ImportError: `checkpoint` needs orbax-checkpoint, or `privacy` needs dp-accounting.
    """
    check_training(optimizer, backward)
    check_key(key)
    shards = shards_of(X) if shards is None else whole_number("shards", shards)
    fill = privacy is None and shards == 1
    data, batch_size = in_memory(params, X, Y, weights, batch_size, fill=fill)
    epochs = whole_number("epochs", epochs)
    first_epoch = whole_number("first_epoch", first_epoch)
    record, measure = record_of(record), measure_of(params, validation)

    if privacy is None:
        training = _plain_training(
            data, key, optimizer, batch_size, backward=backward, record=record, shards=shards
        )
    else:
        other = None if backward is manual_backward else backward
        check_alone(privacy, {"weights": weights, "record": record, "backward": other})
        training = private_training(
            privacy, data, key, optimizer, batch_size, epochs=epochs, first_epoch=first_epoch
        )

    return run_or_resume(
        training, measure, _start(params, optimizer, state), checkpoint,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
    )  # fmt: skip


@takes_former_arguments
@transfers_allowed
def fit_batches(  # noqa: D417 - the arguments that fit has are described there
    params: Params,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    *,
    epochs: int,
    first_epoch: int = 1,
    validation: Validation | Pair | Triple | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    state: optax.OptState | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    key: Array | None = None,
) -> Fit:
    """Train on batches as they come, for data that does not fit in memory.

    A thread draws the next batch while the device works on the current one. A batch that is shorter
    than an earlier one is filled with examples of weight 0, so that it needs no new compilation.

    >>> import jax, optax, deepprop as dp, numpy as np
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 1], hidden="tanh", output="identity")
    >>> def batches(epoch):
    ...     rng = np.random.default_rng(epoch)
    ...     for _ in range(20):
    ...         X = rng.uniform(-1, 1, (1, 32))
    ...         yield X, X**2
    >>> fit = dp.fit_batches(params, optax.sgd(0.3), batches, epochs=20)
    >>> len(fit.history["cost"]), bool(fit.history["cost"][-1] < 0.01)
    (20, True)

    Args:
        params: as for `fit`, like all arguments that are not listed here.
        optimizer: as for `fit`.
        batches: an iterable of (X, Y) or (X, Y, weights), with X (n_0, m), Y (n_L, m) and weights
            (m,), that can be iterated over again in each epoch, such as a list; or a function of
            the epoch's number that returns an iterable. Use a function if batches are random, so
            that a resumed run gets the same ones. PyTorch and grain have one example per row:
            `lambda epoch: ((x.T, y.T) for x, y in loader)`. An error during training is raised only
            when the batch that is being drawn is complete.
        epochs: the number of passes over the batches.
        key: a JAX random key, which a network with dropout needs.

    Returns:
        A `Fit`: params, state, history, and why training stopped.

    Raises:
        TrainingError, ValueError, TypeError, ImportError: as for `fit`; a message names a batch by
            its epoch and number.
    """
    check_training(optimizer, backward)
    check_params(params)
    check_dropout(params, key)
    if key is not None:
        check_key(key)
    epochs = whole_number("epochs", epochs)
    check_batches(batches, epochs)
    return run_or_resume(
        batches_training(batches, optimizer, backward, key), measure_of(params, validation),
        _start(params, optimizer, state), checkpoint,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
    )  # fmt: skip


def _plain_training(
    data: Data,
    key: Array,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    backward: Backward,
    record: Record | None,
    shards: int,
) -> Training:
    """Return the way of training that goes through all examples in each epoch."""
    check_shards(shards, data.X.shape[0], batch_size)
    static = {"optimizer": optimizer, "backward": backward, "batch_size": batch_size}
    static["shards"] = shards
    if record is not None:
        static |= {"record": record.function, "record_every": record.every}

    def identity() -> dict[str, Any]:
        identity = identity_of_data(data, key, batch_size, backward)
        if shards > 1:
            identity["shards"] = shards
        if record is not None:
            name = getattr(record.function, "__name__", name_of(record.function))
            identity["record"] = f"{name} every {record.every}"
            identity["function of record"] = record.function
        return identity

    def train(params: Params, state: optax.OptState, epoch: int) -> Trained:
        trained: Trained = train_epoch(params, state, key, epoch, *data, **static)
        return trained

    return Training(train, identity, data.advice)


def check_shards(shards: int, m: int, batch_size: int) -> None:
    """Raise unless the examples and the batch size are multiples of the number of shards.

    Raises:
        ValueError: one is not.
    """
    if shards == 1:
        return
    for name, value in (("the examples", m), ("batch_size", batch_size)):
        if value % shards:
            raise ValueError(f"{name} must be a multiple of the {shards} shards, got {value}")


def _start(
    params: Params, optimizer: optax.GradientTransformation, state: optax.OptState | None
) -> Progress:
    """Return the progress before the first epoch."""
    # Two kinds of state are not made by a compiled program. Where the user has placed params,
    # zeros_like(W) by itself is placed like W. And in_backward checks the optimizer with numbers.
    placed = getattr(params[0].W, "committed", False)
    init = _new_state if placed or isinstance(optimizer, InBackward) else _compiled_new_state
    state = initial_state(state, partial(init, optimizer=optimizer), params)
    return Progress(params, shard_like(params, state), (), params)


def _new_state(params: Params, *, optimizer: optax.GradientTransformation) -> optax.OptState:
    return fresh(started(optimizer, params))


_compiled_new_state = Programs(_new_state, static=("optimizer",))
