"""`fit`: training on data in memory, and `fit_batches`: on batches as they come.

Each epoch of `fit` is one compiled program; what stands around the epochs is in loop.py.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop.backprop import Backward, manual_backward
from deepprop.batches import Batches, check_batches, epoch_of_batches, examples
from deepprop.checkpoint import checkpoints, setting_of
from deepprop.devices import beside, check_together, shards_of
from deepprop.layers import Params, check_params
from deepprop.loop import Callback, Fit, Measure, Progress, Train, run
from deepprop.network import cost, forward
from deepprop.optax_calls import started
from deepprop.precision import wide
from deepprop.private import Privacy, check_alone, private_training
from deepprop.record import Record
from deepprop.training import Trained, check_training, train_epoch
from deepprop.validation import check_key, example_weights, real_array, whole_number

Metric = Callable[[Array, Array], Array]


def fit(
    params: Params,
    optimizer: optax.GradientTransformation,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    epochs: int,
    batch_size: int,
    key: Array,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    privacy: Privacy | None = None,
    record: Record | None = None,
    record_every: int = 1,
    state: optax.OptState | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    shards: int | None = None,
) -> Fit:
    """Train on data in memory: each epoch is one compiled program.

    The examples are shuffled on the device before each epoch. Calls with the same optimizer,
    backward pass, batch size and shapes share one compiled program. Ctrl-C ends the training after
    the epoch that runs, and gives back what there is; a second one ends it at once.

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
        X: (n_0, m), one example a column.
        Y: (n_L, m), the targets.
        epochs: how often each example is seen.
        batch_size: examples a step, at most m. What the last minibatch lacks has weight 0.
        key: a JAX random key, for the order of the examples.
        weights: (m,), one an example. In each minibatch J is the weighted mean over that minibatch.
        validation: (X, Y) to measure cost and metrics on after each epoch.
        metrics: names, and functions of (A[L], Y) in JAX, to measure on the validation set.
        patience: stop when the validation cost has not fallen for so many epochs, and give back
            the parameters of the best.
        callbacks: functions of (epoch, row of the history, params), called after each epoch; one
            that gives back True stops the training.
        backward: (cache, Y, weights) to gradients like params.
        privacy: a `Privacy` to train by DP-SGD: each step takes each example with probability
            batch_size / m instead of going through them in order, and adds noise. The history then
            has the "epsilon" that was spent so far, for this call alone. See private.py for what
            is private and what is not. `key` must then be secret, and another in each call.
        record: a function of (cache, dZ, updates) in JAX, such as `diagnose`, to keep what it gives
            in the history: of a minibatch as it is, without weights.
        record_every: steps from one record to the next; the first step of an epoch has one.
        state: of the optimizer, to go on with; None begins anew.
        checkpoint: a folder. A run that finds a checkpoint of itself there goes on from it, to the
            same parameters as if it had never been interrupted; `params` and `state` are then not
            used. What is inside `optimizer`, such as its learning rate, may be another than before.
        checkpoint_every: epochs from one checkpoint to the next, each of which takes about 0.1 s;
            the last epoch always is one.
        shards: parts of m / shards examples that are shuffled apart, each of which gives as many
            examples to every minibatch; None takes as many as there are devices that X is divided
            over (`place_examples`), so that no example is exchanged. With the same number a run
            goes the same way on one device as on many. With `privacy` it counts for nothing.

    Returns:
        A `Fit`: params, state, history, and why it stopped.

    Raises:
        TrainingError: the cost or a parameter is no longer finite; its `fit` holds the parameters
            of the epoch before, or with `patience` of the best.
        ValueError: a shape or a number does not fit, X or Y holds what is not finite, or the
            checkpoint is of other data, or of another network, kind of optimizer or key.
        TypeError: an argument is of another kind.
        ImportError: `checkpoint` without orbax-checkpoint, or `privacy` without dp-accounting.
    """
    check_training(optimizer, backward)
    check_key(key)
    X, Y, w = in_memory(params, X, Y, weights, batch_size)
    batch_size = whole_number("batch_size", batch_size, X.shape[0])
    epochs = whole_number("epochs", epochs)
    record_every = whole_number("record_every", record_every)
    if record is not None and not callable(record):
        raise TypeError(f"record must be a function such as dp.diagnose, got {record!r}")
    measure = measured(params, validation, metrics)
    shards = 1 if privacy is not None else shards_of(X) if shards is None else shards
    check_shards(shards, X.shape[0], batch_size)
    parts: dict[str, Any] = {"X": X, "Y": Y, "weights": w, "key": key, "batch_size": batch_size}
    if shards > 1:
        parts["shards"] = shards

    def train_plainly(params: Params, state: optax.OptState, epoch: int) -> Trained:
        trained: Trained = train_epoch(
            params, state, key, epoch, X, Y, w, optimizer=optimizer, backward=backward,
            batch_size=batch_size, record=record, record_every=record_every, shards=shards,
        )  # fmt: skip
        return trained

    train: Train = train_plainly
    if record is not None:
        parts["record"] = f"{getattr(record, '__name__', record)} every {record_every}"
    if privacy is not None:
        own = None if backward is manual_backward else backward
        check_alone(privacy, {"weights": weights, "record": record, "backward": own})
        sigma, train = private_training(privacy, key, X, Y, optimizer, batch_size, epochs)
        parts["privacy"] = f"noise {sigma} of {privacy.max_norm}, {privacy.gamma}, {privacy.delta}"
    return _run(
        train, measure, _beginning(params, optimizer, state), checkpoint, checkpoint_every, parts,
        epochs=epochs, patience=patience, callbacks=callbacks,
    )  # fmt: skip


def fit_batches(  # noqa: D417 - the arguments that fit has are described there
    params: Params,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    *,
    epochs: int,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    backward: Backward = manual_backward,
    state: optax.OptState | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
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
            and grain have an example a row: `lambda epoch: ((x.T, y.T) for x, y in loader)`. Should
            training end with an error, the batch that is being drawn is waited for.
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
    measure = measured(params, validation, metrics)
    train = partial(epoch_of_batches, batches=batches, optimizer=optimizer, backward=backward)
    return _run(
        train, measure, _beginning(params, optimizer, state), checkpoint, checkpoint_every, {},
        epochs=epochs, patience=patience, callbacks=callbacks,
    )  # fmt: skip


def balanced_weights(Y: ArrayLike) -> Array:
    """Weights (m,) that give every class the same sum: w_i = m / (n_L m_c) for class c of m_c.

    >>> import jax.numpy as jnp
    >>> balanced_weights(jnp.array([[1, 1, 1, 0], [0, 0, 0, 1]])) * 3
    Array([2., 2., 2., 6.], dtype=float32)

    Args:
        Y: (n_L, m), one-hot; row c is class c. Or (1, m) of 0 and 1, which are two classes.

    Returns:
        The weights; their mean is 1 where every class has examples.

    Raises:
        ValueError: Y is not one-hot.
    """
    Y = real_array("Y", Y, jnp.float32)
    if Y.ndim == 2 and len(Y) == 1:
        Y = jnp.concatenate([1 - Y, Y])
    if Y.ndim != 2 or not bool(jnp.all((jnp.sum(Y, axis=0) == 1) & (jnp.max(Y, axis=0) == 1))):
        raise ValueError(f"Y must be one-hot, one example a column, got shape {Y.shape}")
    count = jnp.sum(Y, axis=1, keepdims=True)
    share = Y.shape[1] / (Y.shape[0] * jnp.maximum(count, 1))
    return jnp.sum(Y * share, axis=0)


def in_memory(
    params: Params, X: ArrayLike, Y: ArrayLike, weights: ArrayLike | None, batch_size: int
) -> tuple[Array, Array, Array | None]:
    """X and Y with an example a row, and the weights, all checked."""
    check_together(params, {"X": X, "Y": Y, "weights": weights})
    X, Y = examples(params, X, Y)
    m = X.shape[1]
    whole_number("batch_size", batch_size, m)
    w = None if weights is None else example_weights(weights, m, wide(params[0].W.dtype))
    return X.T, Y.T, w


def measured(
    params: Params,
    validation: tuple[ArrayLike, ArrayLike] | None,
    metrics: Mapping[str, Metric] | None,
) -> Measure | None:
    """What measures "val_cost" and the metrics of params on the validation set, if there is one."""
    if validation is None:
        if metrics:
            raise ValueError("metrics need a validation set, got validation=None")
        return None
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise ValueError(f"validation must be (X, Y), got {type(validation).__name__}")
    if "cost" in (metrics or {}):
        raise ValueError('metrics must not be called "cost", which is measured anyway')
    X, Y = examples(params, *validation, "validation ")
    return partial(_measure, tuple((metrics or {}).items()), X, Y)


def check_shards(shards: int, m: int, batch_size: int) -> None:
    """Raise unless examples and minibatches divide into so many parts.

    Raises:
        ValueError: they do not.
        TypeError: `shards` is no whole number.
    """
    shards = whole_number("shards", shards)
    for name, value in (("the examples", m), ("batch_size", batch_size)):
        if value % shards:
            raise ValueError(f"{name} must be a multiple of the {shards} shards, got {value}")


def _beginning(
    params: Params, optimizer: optax.GradientTransformation, state: optax.OptState | None
) -> Progress:
    # A copy: its memory is given away, and what was given, or shares it with params, must stay.
    state = jax.tree.map(jnp.copy, started(optimizer, params) if state is None else state)
    return Progress(params, beside(params, state), (), params)


def _run(
    train: Train,
    measure: Measure | None,
    at: Progress,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    parts: Mapping[str, Any],
    *,
    epochs: int,
    patience: int | None,
    callbacks: Sequence[Callback],
) -> Fit:
    if patience is not None:
        patience = whole_number("patience", patience)
        if measure is None:
            raise ValueError("patience needs a validation set, got validation=None")
    checkpoint_every = whole_number("checkpoint_every", checkpoint_every)
    setting = partial(
        setting_of, at, **parts, patience=patience is not None, measured=names_of(measure)
    )
    with checkpoints(checkpoint, setting, checkpoint_every) as (restore, save):
        return run(
            train, measure, restore(at), epochs=epochs, patience=patience, callbacks=callbacks,
            save=save,
        )  # fmt: skip


def names_of(measure: Measure | None) -> list[str]:
    """What is recorded of the validation set."""
    if not isinstance(measure, partial):
        return []
    return ["val_cost", *(f"val_{name}" for name, _ in measure.args[0])]


@partial(jax.jit, static_argnums=0)
def _measure(
    metrics: tuple[tuple[str, Metric], ...], X: Array, Y: Array, params: Params
) -> dict[str, Array]:
    A, cache = forward(params, X)
    return {"val_cost": cost(cache, Y), **{f"val_{name}": f(A, Y) for name, f in metrics}}
