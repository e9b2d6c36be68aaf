"""SIGINT: a fit replaces Python's default handler, and no other."""

import os
import signal

import jax
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training import loop
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, _ = problem(0, [4, 8, 3], 24, "relu", dtype=np.float32)
SGD = optax.sgd(0.1)
BY_KEY = {"batch_size": 8, "key": jax.random.key(1)}
TRAIN = {
    "fit": lambda **options: dp.fit(PARAMS, SGD, X, Y, **BY_KEY, **options),
    "fit_batches": lambda **options: dp.fit_batches(PARAMS, SGD, [(X, Y)], **options),
}


def press(epoch, row, params):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def handled():
    """Install a handler for the duration of a test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", TRAIN)
@pytest.mark.parametrize("owner", ["nobody", "the host"])
def test_other_handlers_are_not_replaced(kind, owner, handled):
    pressed = []
    handler = signal.SIG_IGN if owner == "nobody" else lambda number, frame: pressed.append(number)
    handled(handler)
    seen = []
    fit = TRAIN[kind](
        epochs=4, callbacks=[press, lambda *_: seen.append(signal.getsignal(signal.SIGINT))]
    )
    assert (fit.stopped, len(fit.history["cost"])) == ("epochs", 4)
    assert seen == [handler] * 4
    assert signal.getsignal(signal.SIGINT) is handler
    assert pressed == ([] if owner == "nobody" else [signal.SIGINT])


def test_handlers_from_c_and_of_the_system_are_not_replaced(handled, monkeypatch):
    handled(signal.SIG_DFL)
    monkeypatch.setattr(loop.signal, "signal", lambda *_: pytest.fail("installed a handler"))
    assert TRAIN["fit"](epochs=2).stopped == "epochs"
    monkeypatch.setattr(loop.signal, "getsignal", lambda _: None)  # Python knows of none
    assert TRAIN["fit"](epochs=2).stopped == "epochs"
    monkeypatch.undo()


def test_training_works_where_no_handler_can_be_installed(handled, monkeypatch):
    """As in a subinterpreter."""
    handled(signal.default_int_handler)

    def refuse(*_):
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(loop.signal, "signal", refuse)
    fit = TRAIN["fit"](epochs=2)
    monkeypatch.undo()
    assert fit.stopped == "epochs"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_installed_by_a_callback_stays(handled):
    handled(signal.default_int_handler)
    own = lambda number, frame: None  # noqa: E731

    def install(epoch, row, params):
        if epoch == 1:
            handled(own)

    fit = TRAIN["fit"](epochs=3, callbacks=[install, press])
    assert fit.stopped == "epochs"
    assert signal.getsignal(signal.SIGINT) is own


def test_the_handler_of_a_finished_fit_still_interrupts_if_restored(handled):
    handled(signal.default_int_handler)
    seen = []
    TRAIN["fit"](epochs=1, callbacks=[lambda *_: seen.append(signal.getsignal(signal.SIGINT))])
    assert seen[0] is not signal.default_int_handler
    handled(seen[0])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_restores_the_default_handler(handled):
    handled(signal.default_int_handler)
    with pytest.raises(ZeroDivisionError):
        TRAIN["fit"](epochs=2, callbacks=[lambda *_: 1 / 0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fit_inside_a_callback_leaves_interrupts_to_the_outer_fit(handled):
    handled(signal.default_int_handler)
    inner = []

    def train(epoch, row, params):
        inner.append(TRAIN["fit"](epochs=3, callbacks=[press]).stopped)

    outer = TRAIN["fit"](epochs=3, callbacks=[train])
    assert inner == ["epochs"]
    assert (outer.stopped, len(outer.history["cost"])) == ("interrupted", 1)
