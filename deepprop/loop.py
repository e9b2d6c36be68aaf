"""The loop around epochs: what people expect between one compiled epoch and the next."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from deepprop.layers import Params
from deepprop.training import Trained

Row = Mapping[str, Any]
Callback = Callable[[int, Row, Params], Any]
Train = Callable[[Params, optax.OptState, int], Trained]
Measure = Callable[[Params], dict[str, Array]]


@dataclass(frozen=True)
class Fit:
    """What training gives back.

    Attributes:
        params: the layers; with `patience`, those of the best epoch.
        state: of the optimizer after the last epoch; None in a `TrainingError`, as its memory was
            given away.
        history: an array a column, an entry an epoch: "cost"; with a validation set "val_cost" and
            "val_" + the name of each metric; with `privacy` "epsilon"; and the names of a `record`,
            (epochs, entries an epoch, ...).
        stopped: why it ended: "epochs", "patience", "callback", "interrupted", or "not finite" in a
            `TrainingError`.
    """

    params: Params
    state: optax.OptState
    history: dict[str, np.ndarray]
    stopped: str


class TrainingError(FloatingPointError):
    """The cost was no longer finite.

    Attributes:
        fit: what was trained before, as a `Fit`.
        history: its history, and the epoch that failed.
    """

    def __init__(self, message: str, fit: Fit, history: dict[str, np.ndarray]) -> None:
        """Take the message, what was trained so far, and the history with the last epoch."""
        super().__init__(message)
        self.fit = fit
        self.history = history


@dataclass(frozen=True)
class Progress:
    """How far a run is, in full: what a checkpoint holds.

    Attributes:
        params, state: after the last epoch.
        history: a row an epoch.
        best: with patience, the parameters of the epoch of the lowest validation cost; else of the
            last.
        best_epoch, best_cost: that epoch, 0 where there is none, and its cost.
    """

    params: Params
    state: optax.OptState
    history: tuple[Row, ...]
    best: Params
    best_epoch: int = 0
    best_cost: float = np.inf

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)


def run(
    train: Train,
    measure: Measure | None,
    at: Progress,
    *,
    epochs: int,
    patience: int | None,
    callbacks: Sequence[Callback],
    save: Callable[[Progress, bool], None],
) -> Fit:
    """Epochs until they are done, or something ends them earlier.

    Args:
        train: (params, state, epoch) to the params and state after that epoch, what was seen in
            it, the mean J as "cost", and whether they are finite.
        measure: params to what else is recorded; None for nothing.
        at: where to begin.
        epochs: where to end.
        patience: epochs without a lower "val_cost" after which to stop; None for never.
        callbacks: called with (epoch, row, params) after each epoch; True stops the run.
        save: called with the progress after each epoch, and whether it is the last.

    Returns:
        A `Fit`.

    Raises:
        TrainingError: params or J are no longer finite.
        ValueError: more epochs are done already.
        TypeError: a callback is no function.
    """
    callbacks = _functions(callbacks)
    if at.epoch > epochs:
        raise ValueError(
            f"epochs must be at least the {at.epoch} that the checkpoint has, got {epochs}"
        )
    stopped = _patience_is_out(at, patience)
    with _interrupts() as interrupted:
        while not stopped and at.epoch < epochs:
            at = _next(train, measure, at, patience is not None)
            wishes = [callback(at.epoch, at.history[-1], at.params) for callback in callbacks]
            stopped = _patience_is_out(at, patience)
            if any(_is_true(wish) for wish in wishes):
                stopped = "callback"
            elif interrupted.is_set():
                stopped = stopped or "interrupted"
            save(at, bool(stopped) or at.epoch == epochs)
    return Fit(at.best, at.state, _columns(at.history), stopped or "epochs")


def _next(train: Train, measure: Measure | None, at: Progress, keep_best: bool) -> Progress:
    params, state, seen, finite = train(at.params, at.state, at.epoch + 1)
    measured = {**seen, **({} if measure is None else measure(params))}
    finite, values = jax.device_get((finite, measured))
    row: Row = {name: np.asarray(value, float).tolist() for name, value in values.items()}
    if not finite:
        raise TrainingError(
            f"the cost or a parameter is not finite in epoch {at.epoch + 1}: cost {row['cost']};"
            " try a smaller learning rate (the error's fit holds the parameters from before)",
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
    """Whether it is True, of Python, NumPy or JAX; anything else that a callback returns is not."""
    boolean = isinstance(wish, bool) or getattr(wish, "dtype", None) == np.bool_
    return boolean and np.ndim(wish) == 0 and bool(wish)


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


def _columns(history: Sequence[Row]) -> dict[str, np.ndarray]:
    names = history[0] if history else ("cost",)
    return {name: np.array([row[name] for row in history]) for name in names}
