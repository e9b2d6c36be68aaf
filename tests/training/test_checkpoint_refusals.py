"""Checkpoints of another run are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training.identity import PYTHON
from tests.problems import grouped, problem
from tests.training.runs import ADAM, PARAMS, X, Y, assert_same, run

pytestmark = pytest.mark.usefixtures("optax_types")


OTHERS = {
    "network": {"params": problem(0, [4, 9, 3], 24, "relu", dtype=np.float32)[0]},
    "activation": {"params": problem(0, [4, 8, 3], 24, "tanh", dtype=np.float32)[0]},
    "optimizer": {"optimizer": optax.sgd(0.1)},
    "key": {"key": jax.random.key(2)},
    "batch_size": {"batch_size": 6},
    "X": {"X": 2 * X},
    "Y": {"Y": np.roll(Y, 1, axis=1)},
    "weights": {"weights": np.arange(24)},
    "measured": {"validation": (X, Y)},
    "patience": {"validation": (X, Y), "patience": 3},
}


@pytest.mark.ordinary(5)
@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other):
    run(tmp_path)
    name = "network" if other == "activation" else other
    with pytest.raises(ValueError, match=f"epoch 3 has another {name}: .* use another folder"):
        run(tmp_path, epochs=5, **OTHERS[other])
    assert_same(run(tmp_path), run())


def test_other_ways_to_train_are_refused_too(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"has another X: float32.* and now it is None"):
        dp.fit_batches(PARAMS, ADAM, [(X, Y)], epochs=5, checkpoint=tmp_path)


def metric(kind):
    """Return one of two functions with the same name."""
    if kind == "mean":

        def difference(A, Y):
            return jnp.mean(A - Y)
    else:

        def difference(A, Y):
            return jnp.max(A - Y)

    return difference


def scaled_backward(factor):
    return lambda cache, Y, weights: jax.tree.map(
        lambda g: factor * g, dp.manual_backward(cache, Y, weights)
    )


def recorded(power):
    def record(cache, dZ, updates):
        return jnp.mean(dZ[0] ** power)

    return record


# What a run had, what it has when it resumes, and the entry that the message names.
SET = {"validation": (X, Y)}
CHANGES = {
    "validation X": (SET, {"validation": (2 * X, Y)}, "validation X"),
    "validation Y": (SET, {"validation": (X, np.roll(Y, 1, axis=1))}, "validation Y"),
    "validation weights": (SET, {"validation": (X, Y, np.arange(24))}, "validation weights"),
    "other validation weights": ({"validation": (X, Y, np.ones(24))}, {"validation": (X, Y, np.arange(24))}, "validation weights"),
    "no validation": (SET, {}, "measured"),
    "another metric": ({**SET, "metrics": {"m": metric("mean")}}, {**SET, "metrics": {"n": metric("mean")}}, "measured"),
    "another function of a metric": ({**SET, "metrics": {"m": metric("mean")}}, {**SET, "metrics": {"m": metric("max")}}, "code of metric m .Python"),
    "a metric of another name": ({**SET, "metrics": {"m": metric("mean")}}, {**SET, "metrics": {"m": lambda A, Y: 0.0}}, "metric m"),
    "another backward pass": ({}, {"backward": scaled_backward(1.0)}, "backward"),
    "another factor in it": ({"backward": scaled_backward(1.0)}, {"backward": scaled_backward(2.0)}, "code of backward"),
}  # fmt: skip
RECORDS = {
    "a record": ({}, {"record": recorded(1)}, "record"),
    "another record": ({"record": recorded(1)}, {"record": dp.diagnose}, "record"),
    "another power in it": ({"record": recorded(1)}, {"record": recorded(2)}, "code of function of record"),
    "another record_every": ({"record": recorded(1)}, {"record": recorded(1), "record_every": 2}, "record"),
}  # fmt: skip
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)


def run_batches(folder, **options):
    return dp.fit_batches(PARAMS, ADAM, [(X, Y)], **grouped(checkpoint=folder, **options))


def run_ensemble(folder, **options):
    options = {"batch_size": 8, "key": jax.random.key(1), **options}
    return dp.fit_ensemble(SEVERAL, ADAM, X, Y, **grouped(checkpoint=folder, **options))


CASES = [(run, change) for change in (*CHANGES, *RECORDS)]
FEW = ("validation weights", "another function of a metric", "another backward pass")
CASES += [(other, change) for other in (run_batches, run_ensemble) for change in FEW]


@pytest.mark.ordinary(5)
@pytest.mark.parametrize(("train", "change"), CASES)
def test_another_function_or_validation_set_is_refused(tmp_path, train, change):
    before, now, name = (CHANGES | RECORDS)[change]
    train(tmp_path, epochs=1, **before)
    with pytest.raises(ValueError, match=f"epoch 1 has another {name}.*use another folder"):
        train(tmp_path, epochs=2, **now)
    assert len(train(tmp_path, epochs=2, **before).history["cost"]) == 2


def notes_of(folder, epoch):
    return folder / str(epoch) / "notes" / "metadata"


def as_of_0_1_0(folder, epoch):
    """Remove the entries that 0.1.0 did not write."""
    notes = json.loads(notes_of(folder, epoch).read_text())
    old = [
        "network", "number of networks", "optimizer", "X", "Y", "weights", "key", "batch_size",
        "shards", "record", "privacy", "sweep", "measured",
    ]  # fmt: skip
    old += [] if "sweep" in notes["setting"] else ["patience"]
    notes["setting"] = {name: notes["setting"][name] for name in old if name in notes["setting"]}
    notes_of(folder, epoch).write_text(json.dumps(notes))


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("train", [run, run_batches, run_ensemble])
def test_a_checkpoint_of_0_1_0_resumes(tmp_path, train):
    options = {**SET, "metrics": {"m": metric("mean")}}
    options |= {"record": dp.diagnose} if train is run else {}
    whole = train(None, epochs=3, **options)
    train(tmp_path / "a", epochs=2, **options)
    as_of_0_1_0(tmp_path / "a", 2)
    assert_same(train(tmp_path / "a", epochs=3, **options), whole)
    train(tmp_path / "b", epochs=2, **options)
    as_of_0_1_0(tmp_path / "b", 2)
    with pytest.raises(ValueError, match="another measured"):
        train(tmp_path / "b", epochs=3)
    with pytest.raises(ValueError, match="another first_epoch: 1, and now it is 3"):
        train(tmp_path / "b", epochs=3, first_epoch=3, **options)


def test_under_another_python_version_functions_are_compared_by_name(tmp_path):
    options = {**SET, "metrics": {"m": metric("mean")}}
    run(tmp_path, epochs=1, **options)
    notes = notes_of(tmp_path, 1)
    notes.write_text(notes.read_text().replace(f"({PYTHON})", "(Python 3.99)"))
    run(tmp_path, epochs=2, **{**SET, "metrics": {"m": metric("max")}})
    notes = notes_of(tmp_path, 2)
    notes.write_text(notes.read_text().replace(f"({PYTHON})", "(Python 3.99)"))
    with pytest.raises(ValueError, match=r"another metric m: .*difference, and now it is .*lambda"):
        run(tmp_path, epochs=3, **{**SET, "metrics": {"m": lambda A, Y: 0.0}})
