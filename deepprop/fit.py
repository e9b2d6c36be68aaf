"""`fit`: epochs, and what people expect around them.

Each epoch is one compiled program; what stands here runs between epochs.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop.backprop import manual_backward
from deepprop.layers import Params, inputs, output_of
from deepprop.network import cost, forward
from deepprop.precision import wide
from deepprop.training import Backward, check_optimizer, train_epoch
from deepprop.validation import check_key, check_shape, example_weights, real_array

Metric = Callable[[Array, Array], Array]
Callback = Callable[[int, Mapping[str, float], Params], Any]


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back.

    Attributes:
        params: the layers; with `patience`, those of the best epoch.
        state: of the optimizer after the last epoch; None in a `TrainingError`, as its memory was
            given away.
        history: an array a column, an entry an epoch: "cost", and with a validation set
            "val_cost" and "val_" + the name of each metric.
        stopped: why it ended: "epochs", "patience", "callback", "interrupted", or "not finite" in a
            `TrainingError`.
    """

    params: Params
    state: optax.OptState
    history: dict[str, np.ndarray]
    stopped: str


class TrainingError(FloatingPointError):
    """The cost was no longer finite. `fit` holds the last good parameters, as a `Fit`."""

    def __init__(self, message: str, fit: Fit) -> None:
        """Take the message and what was trained so far."""
        super().__init__(message)
        self.fit = fit


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
    state: optax.OptState | None = None,
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
        metrics: names, and functions of (A[L], Y), to measure on the validation set.
        patience: stop when the validation cost has not fallen for so many epochs, and give back
            the parameters of the best.
        callbacks: functions of (epoch, row of the history, params), called after each epoch; one
            that gives back True stops the training.
        backward: (cache, Y, weights) to gradients like params.
        state: of the optimizer, to go on with; None begins anew.

    Returns:
        A `Fit`: params, state, history, and why it stopped.

    Raises:
        TrainingError: the cost or a parameter is no longer finite; its `fit` holds the parameters
            of the epoch before.
        ValueError: a shape or a number does not fit, or X or Y holds what is not finite.
        TypeError: an argument is of another kind.
    """
    check_optimizer(optimizer)
    check_key(key)
    X, Y = _examples(params, X, Y, "")
    m = X.shape[1]
    _check_count("epochs", epochs, None)
    _check_count("batch_size", batch_size, m)
    if patience is not None:
        _check_count("patience", patience, None)
        if validation is None:
            raise ValueError("patience needs a validation set, got validation=None")
    w = None if weights is None else example_weights(weights, m, wide(params[0].W.dtype))
    measure = None
    if validation is not None:
        held_out = _examples(params, *validation, "validation ")
        measure = partial(_measure, tuple((metrics or {}).items()), *held_out)
    rows = jnp.asarray(X.T), jnp.asarray(Y.T)

    def train(params: Params, state: optax.OptState, key: Array) -> Any:
        return train_epoch(
            params, state, key, *rows, w,
            optimizer=optimizer, backward=backward, batch_size=batch_size,
        )  # fmt: skip

    # A copy: its memory is given away, and what was given, or shares it with params, must stay.
    state = jax.tree.map(jnp.copy, optimizer.init(params) if state is None else state)
    return _run(train, measure, params, state, epochs, key, patience, callbacks)


def balanced_weights(Y: ArrayLike) -> Array:
    """Weights (m,) that give every class the same sum: w_i = m / (n_L m_c) for class c of m_c.

    >>> import jax.numpy as jnp
    >>> balanced_weights(jnp.array([[1, 1, 1, 0], [0, 0, 0, 1]])) * 3
    Array([2., 2., 2., 6.], dtype=float32)

    Args:
        Y: (n_L, m), one-hot; row c is class c.

    Returns:
        The weights; their mean is 1 where every class has examples.

    Raises:
        ValueError: Y is not one-hot.
    """
    Y = real_array("Y", Y, jnp.float32)
    if Y.ndim != 2 or not bool(jnp.all((jnp.sum(Y, axis=0) == 1) & (jnp.max(Y, axis=0) == 1))):
        raise ValueError(f"Y must be one-hot, one example a column, got shape {Y.shape}")
    count = jnp.sum(Y, axis=1, keepdims=True)
    share = Y.shape[1] / (Y.shape[0] * jnp.maximum(count, 1))
    return jnp.sum(Y * share, axis=0)


def _run(
    train: Callable[..., Any],
    measure: Callable[[Params], dict[str, Array]] | None,
    params: Params,
    state: optax.OptState,
    epochs: int,
    key: Array,
    patience: int | None,
    callbacks: Sequence[Callback],
) -> Fit:
    history: list[dict[str, float]] = []
    best, best_cost, best_epoch, stopped = params, np.inf, 0, "epochs"
    with _interrupts() as interrupted:
        for epoch in range(1, epochs + 1):
            trained, state, J = train(params, state, jax.random.fold_in(key, epoch))
            row = {"cost": J, **({} if measure is None else measure(trained))}
            finite, row = jax.device_get((_all_finite(trained, J), row))
            row = {name: float(value) for name, value in row.items()}
            if not finite:
                so_far = Fit(params, None, _columns(history), "not finite")
                raise TrainingError(
                    f"the cost or a parameter is not finite in epoch {epoch}: cost {row['cost']};"
                    " try a smaller learning rate (the error's fit holds the epoch before)",
                    so_far,
                )
            params = trained
            history.append(row)
            if patience is not None and row["val_cost"] < best_cost:
                best, best_cost, best_epoch = params, row["val_cost"], epoch
            wishes = [callback(epoch, row, params) for callback in callbacks]
            if patience is not None and epoch - best_epoch >= patience:
                stopped = "patience"
            elif any(wish is True for wish in wishes):
                stopped = "callback"
            elif interrupted.is_set():
                stopped = "interrupted"
            if stopped != "epochs":
                break
    return Fit(params if patience is None else best, state, _columns(history), stopped)


@partial(jax.jit, static_argnums=0)
def _measure(
    metrics: tuple[tuple[str, Metric], ...], X: Array, Y: Array, params: Params
) -> dict[str, Array]:
    A, cache = forward(params, X)
    return {"val_cost": cost(cache, Y), **{f"val_{name}": f(A, Y) for name, f in metrics}}


@jax.jit
def _all_finite(params: Params, J: Array) -> Array:
    leaves = [*jax.tree.leaves(params), J]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C is the usual KeyboardInterrupt."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def on_interrupt(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _columns(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    names = history[0] if history else ("cost",)
    return {name: np.array([row[name] for row in history]) for name in names}


def _examples(params: Params, X: ArrayLike, Y: ArrayLike, which: str) -> tuple[Array, Array]:
    """X and Y as arrays that fit the network and one another, and are finite."""
    X = inputs(params, X)
    Y = real_array("Y", Y, wide(params[0].W.dtype))
    check_shape(f"{which}Y", Y.shape, params[-1].W.shape[0], X.shape[1])
    for name, array in (("X", X), ("Y", Y)):
        if not bool(jnp.all(jnp.isfinite(array))):
            raise ValueError(f"{which}{name} must hold finite numbers")
    if output_of(params).name == "softmax" and not bool(
        jnp.all((Y >= 0) & (jnp.abs(jnp.sum(Y, axis=0, keepdims=True) - 1) < 1e-3))
    ):
        raise ValueError(
            f"{which}Y must be one-hot, or probabilities that add up to 1 in each column"
        )
    return X, Y


def _check_count(name: str, value: int, most: int | None) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1 or (most is not None and value > most):
        limit = "" if most is None else f" and at most the {most} examples"
        raise ValueError(f"{name} must be above 0{limit}, got {value}")
