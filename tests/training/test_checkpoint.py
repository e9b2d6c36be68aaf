"""Checkpoints: a run resumes as if it had never stopped."""

import signal
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import problem, thorough
from tests.training.runs import PARAMS, X, Y, assert_same, run

pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.mark.ordinary(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpoint_every": 2},
        {"optimizer": optax.chain(optax.adam(0.01), optax.add_noise(0.1, 0.5, key=jax.random.key(7)))},
        {"optimizer": optax.sgd(optax.cosine_decay_schedule(0.1, 15))},
    ],
    ids=["adam", "every second epoch", "a state with a random key", "a schedule"],
)  # fmt: skip
def test_a_run_resumes_as_if_it_had_never_stopped(tmp_path, options):
    whole = run(epochs=5, **options)
    run(tmp_path, epochs=3, **options)
    assert_same(run(tmp_path, epochs=5, **options), whole)


@pytest.mark.thorough
def test_bfloat16_resumes_too(tmp_path):
    params = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), PARAMS)
    whole = run(params=params, epochs=4)
    run(tmp_path, params=params, epochs=2)
    assert_same(run(tmp_path, params=params, epochs=4), whole)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("first", [1, 4, thorough(6), 8])
def test_patience_resumes(tmp_path, first):
    """With wrong validation targets an early epoch is best; the run is stopped before, at or after it."""
    options = {
        "validation": (X, np.roll(Y, 1, axis=0)),
        "patience": 4,
        "optimizer": optax.adam(0.1),
    }
    whole = run(epochs=50, **options)
    assert whole.stopped == "patience"
    run(tmp_path, epochs=first, **options)
    assert_same(run(tmp_path, epochs=50, **options), whole)


def test_a_finished_run_is_not_trained_further(tmp_path):
    done = run(tmp_path)
    epochs = []
    again = run(tmp_path, callbacks=[lambda epoch, row, params: epochs.append(epoch)])
    assert epochs == []
    assert_same(again, done)


def test_ctrl_c_leaves_a_checkpoint_of_the_last_epoch(tmp_path):
    def interrupt(epoch, row, params):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    assert run(tmp_path, checkpoint_every=50, callbacks=[interrupt]).stopped == "interrupted"
    seen = []
    on = run(tmp_path, callbacks=[lambda epoch, row, params: seen.append(epoch)])
    assert seen == [3]
    assert_same(on, run())


def test_an_error_leaves_the_earlier_checkpoint(tmp_path):
    def fail(epoch, row, params):
        if epoch == 3:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run(tmp_path, epochs=5, callbacks=[fail])
    seen = []
    run(tmp_path, epochs=5, callbacks=[lambda epoch, row, params: seen.append(epoch)])
    assert seen == [3, 4, 5]


SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)


# Hyperparameters that optax.inject_hyperparams stores in the state.


def injected(rate, **others):
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate, **others)


NESTED = {
    "alone": injected,
    "in a chain": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), injected(rate)),
    "in in_backward": lambda rate: dp.in_backward(injected(rate)),
    "masked": lambda rate: optax.masked(injected(rate), lambda p: jax.tree.map(lambda _: True, p)),
    "two, one scheduled": lambda rate: optax.chain(
        injected(rate), optax.inject_hyperparams(optax.scale)(step_size=lambda n: 1 / (1 + n))
    ),
}


OFTEN = "two, one scheduled"


@pytest.mark.parametrize("nested", [n if n == OFTEN else thorough(n) for n in NESTED])
@pytest.mark.parametrize("several", [thorough(False), True])
def test_an_injected_learning_rate_comes_from_the_current_optimizer(tmp_path, nested, several):
    """The reference is a run in which the hyperparameter in the state is replaced by hand."""
    params = SEVERAL if several else PARAMS

    def fit(folder, params, optimizer, **options):
        options = {"batch_size": 8, "key": jax.random.key(1), "checkpoint": folder, **options}
        return (dp.fit_ensemble if several else dp.fit)(params, optimizer, X, Y, **options)

    first = fit(tmp_path, params, NESTED[nested](0.1), epochs=2)
    resumed = fit(tmp_path, params, NESTED[nested](0.01), epochs=5)
    rate = jnp.full(2, 0.01, jnp.float32) if several else jnp.float32(0.01)
    state = optax.tree_utils.tree_set(first.state, learning_rate=rate)
    by_hand = fit(None, first.params, NESTED[nested](0.01), state=state, first_epoch=3, epochs=3)
    for a, b in zip(
        *(jax.tree.leaves((f.params, f.state)) for f in (resumed, by_hand)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    unchanged = fit(None, params, NESTED[nested](0.1), epochs=5)
    assert not np.array_equal(resumed.params[0].W, unchanged.params[0].W)


def test_an_injected_schedule_continues_from_its_count(tmp_path):
    optimizer = injected(optax.cosine_decay_schedule(0.1, 15), b1=0.8)
    whole = run(epochs=5, optimizer=optimizer)
    run(tmp_path, epochs=3, optimizer=optimizer)
    assert_same(run(tmp_path, epochs=5, optimizer=optimizer), whole)
    assert_same(
        run(tmp_path, epochs=5, optimizer=optimizer), whole
    )  # and a finished run is as it was


# The number of the first epoch.


def test_a_continued_run_has_checkpoints_too(tmp_path):
    whole, first = run(epochs=6), run(epochs=3)
    options = {"params": first.params, "state": first.state, "first_epoch": 4}
    seen = []
    run(tmp_path, epochs=2, **options)
    assert (tmp_path / "5").is_dir()
    rest = run(tmp_path, epochs=3, callbacks=[lambda epoch, *_: seen.append(epoch)], **options)
    assert seen == [6]
    for a, b in zip(*(jax.tree.leaves((f.params, f.state)) for f in (whole, rest)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="epoch 6 has another first_epoch: 4, and now it is 1"):
        run(tmp_path, epochs=6)


def test_fewer_epochs_than_already_done_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ValueError, match="epochs must be at least the 3 that the checkpoint has, got 2"
    ):
        run(tmp_path, epochs=2)


def test_a_home_folder_and_things_that_are_not_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/runs/first")
    assert (tmp_path / "runs" / "first" / "3").is_dir()
    for folder in ("", "gs://bucket/run"):
        with pytest.raises(ValueError, match="checkpoint must be a folder of this machine, got '"):
            run(folder)


def test_patience_without_a_finite_validation_cost(tmp_path):
    """No epoch is best, so the last parameters are returned, also by a resumed run."""
    params = problem(0, [4, 8, 3], 24, "relu", "identity", dtype=np.float32)[0]
    options = {"params": params, "validation": (X, Y * 1e30), "patience": 4}
    whole = run(epochs=9, **options)
    assert (whole.stopped, len(whole.history["cost"])) == ("patience", 4)
    assert not np.array_equal(whole.params[0].W, params[0].W)
    run(tmp_path, epochs=2, **options)
    assert_same(run(tmp_path, epochs=9, **options), whole)


@pytest.mark.parametrize("part", ["arrays", "notes"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, part):
    run(tmp_path)
    for file in (tmp_path / "3" / part).rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * 40)
    with pytest.raises(
        ValueError, match=r"checkpoint .*, epoch 3 can't be read .remove it to resume"
    ):
        run(tmp_path, epochs=5)


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OSError, match="file"):
            run(folder)


def test_a_missing_orbax_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="pip install orbax-checkpoint"):
        run(tmp_path)
