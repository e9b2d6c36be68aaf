"""The loop around the epochs: callbacks, early stopping, checkpoints, Ctrl-C, non-finite costs.

Ctrl-C should not throw away the epochs that are done. Our SIGINT handler therefore only sets an
event, which the loop reads after each epoch; a second Ctrl-C raises KeyboardInterrupt as usual. The
handler replaces Python's default handler and no other: a program that ignores or handles SIGINT has
its reasons. When the run ends, the default handler is restored, unless a callback has installed
another one in the meantime.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NamedTuple

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


class Training(NamedTuple):
    """A way of training, ready to run: plain, private, on batches, or of an ensemble.

    Attributes:
        train: maps (params, state, epoch) to the params and state after that epoch, its entries of
            the history with the mean J as "cost", and whether they are finite.
        identity: returns what identifies the run, besides the network, the optimizer and the
            validation set: names, and for each an array, a function, or anything with a text. A
            checkpoint resumes only if all of it is the same; without one it is not called.
        advice: maps the optimizer's state to what to try if the cost is not finite.
    """

    train: Train
    identity: Callable[[], Mapping[str, Any]]
    advice: Advice


@dataclass(frozen=True)
class Fit:
    """The result of training.

    Attributes:
        params: the trained layers; with patience, those of the best epoch.
        state: the optimizer's state after the last epoch; None in a `TrainingError`, because the
            failed epoch has overwritten it.
        history: arrays by name, with one entry per epoch: "cost"; with a validation set "val_cost",
            and "val_accuracy" for a metric called "accuracy"; with `privacy` "epsilon"; and the
            entries of a `record`, (epochs, records per epoch, ...).
        stopped: why training ended: "epochs", "patience", "callback", "interrupted", or "not
            finite" in a `TrainingError`.
    """

    params: Params
    state: optax.OptState
    history: dict[str, np.ndarray]
    stopped: str


class TrainingError(FloatingPointError):
    """The cost or a parameter is no longer finite.

    Attributes:
        fit: the `Fit` up to the epoch before the failure.
        history: its history, with the failed epoch as the last entry.
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
        params, state: those after the last epoch.
        history: one row per epoch.
        best: with patience, the parameters of the epoch with the lowest validation cost; otherwise
            those of the last epoch.
        best_epoch: that epoch, counting the run's first as 1; 0 if there is none yet.
        best_cost: its validation cost.
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
        train: trains one epoch: see `Training`.
        measure: maps params to further entries of the history; None for none.
        at: where to start.
        epochs: the number of epochs in all, including those done already.
        patience: epochs without a lower "val_cost" after which to stop; None never stops.
        callbacks: called with (epoch, row, params) after each epoch; True stops the run.
        save: called with the progress after each epoch, and whether it is the last.
        advice: what to try if params or J are not finite: see `Training`.

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
            results = [callback(at.number, at.history[-1], at.params) for callback in callbacks]
            stopped = _patience_is_out(at, patience)
            if any(map(_is_true, results)):
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
    """Train one more epoch and return the progress after it.

    Raises:
        TrainingError: params or J are no longer finite.
    """
    number = at.number + 1
    params, state, entries, finite = train(at.params, at.state, number)
    entries = {**entries, **({} if measure is None else measure(params))}
    finite, values = jax.device_get((finite, entries))  # waits for the epoch
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
    """Return "patience" if the best epoch is that long ago, otherwise an empty string."""
    return "patience" if patience is not None and at.epoch - at.best_epoch >= patience else ""


def _functions(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    functions = () if callable(callbacks) else tuple(callbacks)
    if callable(callbacks) or not all(map(callable, functions)):
        raise TypeError(f"callbacks must be a sequence of functions, got {callbacks!r}")
    return functions


def _is_true(result: Any) -> bool:
    """Return whether a callback returned the boolean True, of Python, NumPy or JAX.

    Other true values don't count: a callback may return a number or a list without asking to stop.
    """
    boolean = isinstance(result, bool) or getattr(result, "dtype", None) == np.bool_
    return boolean and np.ndim(result) == 0 and bool(result)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt: see above."""
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
    except ValueError:  # only the main thread of the main interpreter may install a handler
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        interrupted.set()  # should anyone reinstall our handler later, it raises KeyboardInterrupt
        if signal.getsignal(signal.SIGINT) is on_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _columns(history: Sequence[Row]) -> dict[str, np.ndarray]:
    names = history[0] if history else ("cost",)
    return {name: np.array([row[name] for row in history]) for name in names}
