"""`fit`: training on data in memory, and `fit_batches`: on batches as they come.

Each epoch of `fit` is one compiled program; what stands around the epochs is in loop.py.
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
from deepprop.training.examples import balanced_weights, in_memory, parts_of
from deepprop.training.former_arguments import takes_former_arguments
from deepprop.training.identity import name_of
from deepprop.training.loop import Callback, Fit, Progress, Train
from deepprop.training.measure import Pair, Triple, Validation, measure_of
from deepprop.training.private import Privacy, check_alone, private_training
from deepprop.training.record import Record, Recorded, record_of
from deepprop.training.run import own_state, own_transfers, run_or_resume

__all__ = ["balanced_weights", "fit", "fit_batches"]


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
    """Train on data in memory: each epoch is one compiled program.

    The examples are shuffled on the device before each epoch. Calls with the same optimizer,
    backward pass, batch size and shapes share one compiled program, which is released with the
    optimizer. Ctrl-C ends the training after the current epoch and returns the fit so far; a second
    one ends it at once. A SIGINT that is ignored, or handled by anyone else, is left alone. The
    data moves to the device also under `jax.transfer_guard`.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 1], hidden="tanh", output="identity")
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit(params, optax.sgd(0.3), X, X**2, epochs=60, batch_size=16,
    ...              key=jax.random.key(1))
    >>> len(fit.history["cost"]), bool(fit.history["cost"][-1] < 0.01), fit.stopped
    (60, True, 'epochs')

    Args:
        params: the layers to begin with; they are left as they are.
        optimizer: an optax transformation; schedules and clipping are optax's too.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        epochs: how often each example is seen.
        first_epoch: the number of the first epoch of this call, which callbacks and messages show,
            and which the order of its examples depends on. See `state`.
        batch_size: examples per step, at most m. What the last minibatch lacks has weight 0.
        key: a JAX random key, for the order of the examples.
        weights: (m,), one per example. In each minibatch J is the weighted mean over that
            minibatch.
        validation: (X, Y) or (X, Y, weights) to measure the cost on after each epoch; or a
            `Validation`, which has metrics and a patience as well.
        callbacks: functions of (epoch, row of the history, params), called after each epoch; one
            that gives back True stops the training.
        backward: (cache, Y, weights) to gradients like params.
        privacy: a `Privacy` to train by DP-SGD: each step takes each example with probability
            batch_size / m instead of going through them in order, and adds noise. The history then
            has the "epsilon" spent so far by the epochs of this call alone. See private.py for what
            is private and what is not. `key` must then be secret, and another in each call.
        record: a function of (cache, dZ, updates) in JAX, such as `diagnose`, whose results the
            history then holds for every step; or a `Record`, for every k-th step.
        state: of the optimizer, to continue with; None starts a new one. After n epochs,
            `fit(earlier.params, optimizer, X, Y, state=earlier.state, first_epoch=n + 1, ...)`
            continues as if all epochs had been of one call, bit for bit.
        checkpoint: a folder, for a checkpoint after every epoch; or a `Checkpoint`, for one after
            every k epochs. A run that finds a checkpoint of itself there resumes from it, to the
            same parameters as if it had never been interrupted; `params` and `state` are then not
            used. A checkpoint of other data, another validation set, other metrics or another
            backward pass or record is refused: functions are told apart by name, and within one
            version of Python by their code, constants, defaults and closures. The numbers in
            `optimizer` may change, such as its learning rate. That includes those in the state of
            `optax.inject_hyperparams`: they come from `optimizer` as it is now, not from the
            checkpoint. Schedules continue from their count.
        shards: parts of m / shards examples that are shuffled apart, each of which gives as many
            examples to every minibatch; None takes as many as there are devices that X is divided
            over (`place_examples`), so that no example is exchanged. With the same number a run
            goes the same way on one device as on many. With `privacy` it counts for nothing.

    Returns:
        A `Fit`: params, state, history, and why it stopped.

    Raises:
        TrainingError: the cost or a parameter is no longer finite; its `fit` holds the parameters
            of the epoch before, or with `patience` of the best.
        ValueError: a shape or a number does not fit, X or Y holds non-finite values, or the
            checkpoint is of another run: see `checkpoint`.
        TypeError: an argument is of another kind.
        ImportError: `checkpoint` without orbax-checkpoint, or `privacy` without dp-accounting.
    """
    check_training(optimizer, backward)
    check_key(key)
    X, Y, w = in_memory(params, X, Y, weights, batch_size)
    batch_size = whole_number("batch_size", batch_size, X.shape[0])
    epochs = whole_number("epochs", epochs)
    record = record_of(record)
    measure = measure_of(params, validation)
    shards = 1 if privacy is not None else shards_of(X) if shards is None else shards
    shards = checked_shards(shards, X.shape[0], batch_size)
    parts = parts_of(X, Y, w) | {"key": key, "batch_size": batch_size}
    parts |= {"backward": backward, **_parts_of_record(record)}
    if shards > 1:
        parts["shards"] = shards
    train: Train = partial(
        _plain_epoch, key, (X, Y, w), optimizer=optimizer, backward=backward, shards=shards,
        batch_size=batch_size, **_fields(record),
    )  # fmt: skip
    if privacy is not None:
        own = None if backward is manual_backward else backward
        check_alone(privacy, {"weights": weights, "record": record, "backward": own})
        first_epoch = whole_number("first_epoch", first_epoch)
        sigma, train = private_training(
            privacy, key, X, Y, optimizer, batch_size, epochs, first_epoch
        )
        parts["privacy"] = f"noise {sigma} of {privacy.max_norm}, {privacy.gamma}, {privacy.delta}"
    return run_or_resume(
        train, measure, _beginning(params, optimizer, state), checkpoint, parts,
        epochs=epochs, first_epoch=first_epoch, callbacks=callbacks,
        advice=partial(advice_for, X),
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

    The next batch is drawn in another thread while the device works on the one before. A batch that
    is shorter than one before it is filled with examples of weight 0, not compiled anew.

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
        params: as for `fit`, and so is what has no line here.
        optimizer: as for `fit`.
        batches: an iterable of (X, Y) or (X, Y, weights), X (n_0, m), Y (n_L, m) and weights (m,),
            that begins anew each epoch, such as a list; or a function of the epoch, from 1 on, that
            gives one: so does a run with a checkpoint get the same batches when it goes on. PyTorch
            and grain have one example per row: `lambda epoch: ((x.T, y.T) for x, y in loader)`.
            Should training end with an error, the batch that is being drawn is waited for.
        epochs: how often to go through the batches.

    Returns:
        A `Fit`: params, state, history, and why it stopped.

    Raises:
        TrainingError, ValueError, TypeError, ImportError: as for `fit`; a batch is named by its
            epoch and number.
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


def _plain_epoch(
    key: Array,
    data: tuple[Array, Array, Array | None],
    params: Params,
    state: optax.OptState,
    epoch: int,
    **static: Any,
) -> Trained:
    trained: Trained = train_epoch(params, state, key, epoch, *data, **static)
    return trained


def _parts_of_record(record: Record | None) -> dict[str, Any]:
    """What makes a record the same when a run is resumed."""
    if record is None:
        return {}
    name = getattr(record.function, "__name__", name_of(record.function))
    return {"record": f"{name} every {record.every}", "function of record": record.function}


def _fields(record: Record | None) -> dict[str, Any]:
    return {} if record is None else {"record": record.function, "record_every": record.every}


def checked_shards(shards: int, m: int, batch_size: int) -> int:
    """The number of parts as an `int`, into which the examples and minibatches divide.

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
