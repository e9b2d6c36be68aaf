"""`fit` trains on data in memory, and `fit_batches` on batches as they come.

Both check their arguments, choose how an epoch is trained, and hand that over to `run_or_resume`.
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
from deepprop.optimizers.optax_calls import started
from deepprop.scale.devices import shard_like, shards_of
from deepprop.training.advice import advice_for
from deepprop.training.batches import Batches, check_batches, epoch_of_batches
from deepprop.training.checkpoint import Checkpoint
from deepprop.training.epoch import Trained, check_training, train_epoch
from deepprop.training.examples import in_memory, parts_of
from deepprop.training.former_arguments import takes_former_arguments
from deepprop.training.identity import name_of
from deepprop.training.loop import Callback, Fit, Progress, Train
from deepprop.training.measure import Pair, Triple, Validation, measure_of
from deepprop.training.private import Privacy, check_alone, private_training
from deepprop.training.record import Record, Recorded, record_of
from deepprop.training.run import own_state, own_transfers, run_or_resume


@takes_former_arguments
@own_transfers
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

    The examples are shuffled on the device before each epoch. Calls with the same optimizer object,
    backward pass, batch size and shapes share one compiled program, which is released together with
    the optimizer. Ctrl-C ends training after the current epoch and returns the fit so far; a second
    Ctrl-C interrupts at once.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 1], hidden="tanh", output="identity")
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit(params, optax.sgd(0.3), X, X**2, epochs=60, batch_size=16,
    ...              key=jax.random.key(1))
    >>> len(fit.history["cost"]), bool(fit.history["cost"][-1] < 0.01), fit.stopped
    (60, True, 'epochs')

    Args:
        params: the initial layers; they are not changed.
        optimizer: an optax transformation, with schedules and clipping if you like.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        epochs: the number of passes over the examples.
        first_epoch: the number of the first epoch of this call, in callbacks and messages; the
            order of the examples depends on it. See `state`.
        batch_size: examples per step, at most m. The last minibatch of an epoch is filled with
            examples of weight 0.
        key: a JAX random key, for the order of the examples.
        weights: (m,), one per example. J of a minibatch is the weighted mean over that minibatch.
        validation: (X, Y) or (X, Y, weights) on which to measure the cost after each epoch; or a
            `Validation`, which has metrics and a patience as well.
        callbacks: functions of (epoch, row of the history, params), called after each epoch; one
            that returns True stops training.
        backward: maps (cache, Y, weights) to gradients like params.
        privacy: a `Privacy`, to train by DP-SGD. The history then has the "epsilon" spent so far by
            this call. `key` must be secret, and new in each call. private.py says what is private.
        record: a function of (cache, dZ, updates) in JAX, such as `diagnose`, whose results the
            history then has for every step; or a `Record`, for every k-th step.
        state: the optimizer's state to continue with; None starts a new one. After n epochs,
            `fit(earlier.params, optimizer, X, Y, state=earlier.state, first_epoch=n + 1, ...)`
            continues as if all epochs had been one call, bit for bit.
        checkpoint: a folder, for a checkpoint after every epoch; or a `Checkpoint`, for one after
            every k epochs. If the folder has a checkpoint of this run, the run resumes from it, to
            the same parameters as if it had never been interrupted; `params` and `state` are then
            not used. A checkpoint of another run is refused: of other data, another validation set,
            metric, backward pass or record. Hyperparameters of the optimizer may change, including
            those of `optax.inject_hyperparams`. Schedules continue from their count.
        shards: the number of parts that are shuffled separately, each of which contributes equally
            to every minibatch. By default one per device over which X is divided
            (`place_examples`), so that no example is exchanged. With the same number, a run is the
            same on one device as on many. Not used with `privacy`.

    Returns:
        A `Fit`: params, state, history, and why training stopped.

    Raises:
        TrainingError: the cost or a parameter is no longer finite. Its `fit` has the parameters of
            the epoch before, or with patience those of the best epoch.
        ValueError: a shape or a number does not fit, X or Y holds non-finite values, or the
            checkpoint belongs to another run.
        TypeError: an argument is of another kind.
        ImportError: `checkpoint` without orbax-checkpoint, or `privacy` without dp-accounting.
    """
    check_training(optimizer, backward)
    check_key(key)
    data = in_memory(params, X, Y, weights, batch_size)
    batch_size = whole_number("batch_size", batch_size, data[0].shape[0])
    epochs = whole_number("epochs", epochs)
    record = record_of(record)
    measure = measure_of(params, validation)
    parts = parts_of(*data) | {"key": key, "batch_size": batch_size, "backward": backward}
    if privacy is None:
        train, own_parts = _plain_training(
            key, data, optimizer, batch_size, backward=backward, record=record, shards=shards
        )
    else:
        own = None if backward is manual_backward else backward
        check_alone(privacy, {"weights": weights, "record": record, "backward": own})
        first_epoch = whole_number("first_epoch", first_epoch)
        train, own_parts = private_training(
            privacy, key, *data[:2], optimizer, batch_size, epochs, first_epoch
        )
    return run_or_resume(
        train, measure, _beginning(params, optimizer, state), checkpoint, parts | own_parts,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
        advice=partial(advice_for, data[0]),
    )  # fmt: skip


@takes_former_arguments
@own_transfers
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
) -> Fit:
    """Train on batches as they come, for data that does not fit in memory.

    The next batch is drawn in another thread while the device works on the current one. A batch
    that is shorter than an earlier one is filled with examples of weight 0, so nothing is compiled
    again.

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
        params: as for `fit`, like every argument that is not listed here.
        optimizer: as for `fit`.
        batches: an iterable of (X, Y) or (X, Y, weights), with X (n_0, m), Y (n_L, m) and weights
            (m,), that starts again in each epoch, such as a list; or a function of the epoch, from
            1 on, that returns one. With a function, a resumed run gets the same batches. PyTorch
            and grain have one example per row: `lambda epoch: ((x.T, y.T) for x, y in loader)`. If
            training ends with an error, it waits for the batch being drawn.
        epochs: the number of passes over the batches.

    Returns:
        A `Fit`: params, state, history, and why training stopped.

    Raises:
        TrainingError, ValueError, TypeError, ImportError: as for `fit`; a message names a batch by
            its epoch and number.
    """
    check_training(optimizer, backward)
    check_params(params)
    epochs = whole_number("epochs", epochs)
    check_batches(batches, epochs)
    measure = measure_of(params, validation)
    latest: list[Array] = []
    train = partial(
        epoch_of_batches, batches=batches, optimizer=optimizer, backward=backward, latest=latest
    )
    return run_or_resume(
        train, measure, _beginning(params, optimizer, state), checkpoint,
        {"backward": backward}, epochs=epochs, first_epoch=first_epoch,
        callbacks=callbacks, advice=lambda state: advice_for(latest[0], state),
    )  # fmt: skip


def _plain_training(
    key: Array,
    data: tuple[Array, Array, Array | None],
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    backward: Backward,
    record: Record | None,
    shards: int | None,
) -> tuple[Train, dict[str, Any]]:
    """Return the function that trains an epoch, and what identifies this way of training."""
    X = data[0]
    shards = checked_shards(shards_of(X) if shards is None else shards, X.shape[0], batch_size)
    static = {"optimizer": optimizer, "backward": backward, "batch_size": batch_size}
    static["shards"] = shards
    parts: dict[str, Any] = {"shards": shards} if shards > 1 else {}
    if record is not None:
        static |= {"record": record.function, "record_every": record.every}
        name = getattr(record.function, "__name__", name_of(record.function))
        parts["record"] = f"{name} every {record.every}"
        parts["function of record"] = record.function

    def train(params: Params, state: optax.OptState, epoch: int) -> Trained:
        trained: Trained = train_epoch(params, state, key, epoch, *data, **static)
        return trained

    return train, parts


def checked_shards(shards: int, m: int, batch_size: int) -> int:
    """Return the number of shards as an `int`, if the examples and minibatches divide into them.

    Raises:
        ValueError: they do not.
        TypeError: `shards` is not a whole number.
    """
    shards = whole_number("shards", shards)
    for name, value in (("the examples", m), ("batch_size", batch_size)):
        if value % shards:
            raise ValueError(f"{name} must be a multiple of the {shards} shards, got {value}")
    return shards


def _beginning(
    params: Params, optimizer: optax.GradientTransformation, state: optax.OptState | None
) -> Progress:
    state = own_state(state, partial(started, optimizer), params)
    return Progress(params, shard_like(params, state), (), params)
