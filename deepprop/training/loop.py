"""The loop around the epochs: callbacks, early stopping, checkpoints, Ctrl-C, non-finite costs.

Ctrl-C during a compiled epoch should not lose it. The handler of SIGINT therefore only sets an
event, which the loop reads after the epoch; the second Ctrl-C raises KeyboardInterrupt as usual.
The handler is only installed in the place of Python's own: a program that ignores SIGINT or handles
it has a reason, and so does a callback that installs a handler during the run.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from deepprop.layers import Params
from deepprop.training.epoch import Trained

Row = Mapping[str, Any]
Callback = Callable[[int, Row, Params], Any]
Train = Callable[[Params, optax.OptState, int], Trained]
Advice = Callable[[optax.OptState], str]


@dataclass(frozen=True)
class Fit:
    """The result of training.

    Attributes:
        params: the layers; with `patience`, those of the best epoch.
        state: the optimizer's state after the last epoch; None in a `TrainingError`, where its
            buffers have been donated.
        history: arrays by name, with one entry per epoch: "cost"; with a validation set "val_cost",
            and "val_accuracy" for a metric called "accuracy"; with `privacy` "epsilon"; and the
            names of a `record`, (epochs, records per epoch, ...).
        stopped: why training ended: "epochs", "patience", "callback", "interrupted", or "not
            finite" in a `TrainingError`.
    """

    params: Params
    state: optax.OptState
    history: dict[str, np.ndarray]
    stopped: str


class TrainingError(FloatingPointError):
    """The cost or a parameter was no longer finite.

    Attributes:
        fit: the `Fit` up to the epoch before.
        history: its history, with the epoch that failed.
    """

    def __init__(self, message: str, fit: Fit, history: dict[str, np.ndarray]) -> None:
        """Take the message, the fit so far, and the history with the failed epoch."""
        super().__init__(message)
        self.fit = fit
        self.history = history

    def __reduce__(self) -> Any:
        """Keep the fit and the history in a pickle or a copy, as a process pool makes them."""
        return type(self), (*self.args, self.fit, self.history), self.__dict__


@dataclass(frozen=True)
class Progress:
    """The progress of a run: everything that a checkpoint stores.

    Attributes:
        params, state: after the last epoch.
        history: one row per epoch.
        best: with patience, the parameters of the epoch with the lowest validation cost; otherwise
            those of the last epoch.
        best_epoch, best_cost: that epoch, counted from the run's first as 1 (0 for none), and its
            cost.
        first_epoch: the number of the run's first epoch in callbacks and messages.
    """

    params: Params
    state: optax.OptState
    history: tuple[Row, ...]
    best: Params
    best_epoch: int = 0
    best_cost: float = np.inf
    first_epoch: int = 1

    @property
    def epoch(self) -> int:
        """Return the number of finished epochs."""
        return len(self.history)

    @property
    def number(self) -> int:
        """Return the number of the last epoch, as callbacks see it."""
        return self.first_epoch - 1 + self.epoch


def run(
    train: Train,
    measure: Callable[[Params], dict[str, Array]] | None,
    at: Progress,
    *,
    epochs: int,
    patience: int | None,
    callbacks: Sequence[Callback],
    save: Callable[[Progress, bool], None],
    advice: Advice,
) -> Fit:
    """Run epochs until all are done or something ends the run earlier.

    Args:
        train: maps (params, state, epoch) to the params and state after that epoch, its row of the
            history with the mean J as "cost", and whether they are finite.
        measure: maps params to further entries of the row; None for none.
        at: where to start.
        epochs: the number of epochs when the run is done.
        patience: epochs without a lower "val_cost" after which to stop; None never stops.
        callbacks: called with (epoch, row, params) after each epoch; True stops the run.
        save: called with the progress after each epoch, and whether it is the last.
        advice: maps the optimizer's state to what to try when params or J are not finite.

    Returns:
        A `Fit`.

    Raises:
        TrainingError: params or J are no longer finite.
        ValueError: more epochs are done already.
        TypeError: a callback is not a function.
    """
    callbacks = _functions(callbacks)
    if at.epoch > epochs:
        raise ValueError(
            f"epochs must be at least the {at.epoch} that the checkpoint has, got {epochs}"
        )
    stopped = _patience_is_out(at, patience)
    with _interrupts() as interrupted:
        while not stopped and at.epoch < epochs:
            at = _next(train, measure, at, patience is not None, advice)
            wishes = [callback(at.number, at.history[-1], at.params) for callback in callbacks]
            stopped = _patience_is_out(at, patience)
            if any(_is_true(wish) for wish in wishes):
                stopped = "callback"
            elif interrupted.is_set():
                stopped = stopped or "interrupted"
            save(at, bool(stopped) or at.epoch == epochs)
    return Fit(at.best, at.state, _columns(at.history), stopped or "epochs")


def _next(
    train: Train,
    measure: Callable[[Params], dict[str, Array]] | None,
    at: Progress,
    keep_best: bool,
    advice: Advice,
) -> Progress:
    number = at.number + 1
    params, state, seen, finite = train(at.params, at.state, number)
    measured = {**seen, **({} if measure is None else measure(params))}
    finite, values = jax.device_get((finite, measured))
    row: Row = {name: np.asarray(value, float).tolist() for name, value in values.items()}
    if not finite:
        raise TrainingError(
            f"the cost or a parameter is not finite in epoch {number}: cost {row['cost']};"
            f" {advice(state)} (the error's fit holds the parameters from before)",
            Fit(at.best, None, _columns(at.history), "not finite"),
            _columns((*at.history, row)),
        )
    at = replace(at, params=params, state=state, history=(*at.history, row))
    if keep_best and row["val_cost"] < at.best_cost:
        return replace(at, best=params, best_epoch=at.epoch, best_cost=row["val_cost"])
    return at if at.best_epoch else replace(at, best=params)


def _patience_is_out(at: Progress, patience: int | None) -> str:
    return "patience" if patience is not None and at.epoch - at.best_epoch >= patience else ""


def _functions(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    functions = () if callable(callbacks) else tuple(callbacks)
    if callable(callbacks) or not all(map(callable, functions)):
        raise TypeError(f"callbacks must be a sequence of functions, got {callbacks!r}")
    return functions


def _is_true(wish: Any) -> bool:
    """Return whether a callback returned True, of Python, NumPy or JAX, and nothing else."""
    boolean = isinstance(wish, bool) or getattr(wish, "dtype", None) == np.bool_
    return boolean and np.ndim(wish) == 0 and bool(wish)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt as usual."""
    interrupted = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            signal.default_int_handler(number, frame)
        interrupted.set()

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    try:
        signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # only the main thread of the main interpreter may install one
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        interrupted.set()  # if somebody restores this handler later, it raises KeyboardInterrupt
        if signal.getsignal(signal.SIGINT) is on_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _columns(history: Sequence[Row]) -> dict[str, np.ndarray]:
    names = history[0] if history else ("cost",)
    return {name: np.array([row[name] for row in history]) for name in names}
