"""`deepprop predict`, for models and data from the command line and from Python."""

import csv
import re

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.files.archive import read_npz

QUICK = ["--hidden", "16", "--epochs", "2", "--no-check"]


pytestmark = pytest.mark.usefixtures("optax_types")


def test_a_model_without_classes_is_scored_by_class_number(run, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 5)), np.arange(60) % 3
    params = dp.init_params(jax.random.key(0), [5, 3])
    dp.save(tmp_path / "model.npz", params)
    right = np.mean(np.argmax(dp.predict(params, x.T), axis=0) == y)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    _, out, _ = run("predict", tmp_path / "model.npz", "--data", tmp_path / "data.npz")
    assert f"accuracy {100 * right:.2f} %" in out
    for wrong in (y[:1], rng.standard_normal((60, 3)), y + 1):
        np.savez(tmp_path / "data.npz", X=x, y=wrong)
        status, out, err = run("predict", tmp_path / "model.npz", "--data", tmp_path / "data.npz")
        assert (status, out) == (2, "")
        assert "y " in err


@pytest.mark.thorough
def test_labels_in_any_script_and_with_commas_are_written_completely(run, tmp_path):
    x = np.random.default_rng(1).standard_normal((40, 5))
    np.savez(tmp_path / "data.npz", X=x, y=np.array(["\u732b, cat", "\u00e9"])[np.arange(40) % 2])
    files = ["--data", tmp_path / "data.npz"]
    assert run("train", *files, *QUICK, "--save", tmp_path / "model.npz")[0] == 0
    assert run("predict", tmp_path / "model.npz", *files, "--out", tmp_path / "out.csv")[0] == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        labels = {row[0] for row in csv.reader(file)}
    assert labels <= {"\u732b, cat", "\u00e9"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": np.zeros(64)}, r"model.npz: scaling\[1\] must have no 0"),
        (
            {"shift": np.full(64, np.nan)},
            r"scaling\[0\] must be 64 numbers, one per input, all finite",
        ),
        ({"scale": np.ones(3)}, r"scaling\[1\] must be 64 numbers"),
        ({"scale": np.full(64, "a")}, r"scaling\[1\] must be an array of real numbers"),
        ({"classes": np.arange(3)}, "model.npz: classes must be 10 labels"),
        ({"classes": np.array("a")}, "classes must be 10 labels"),
        ({"classes": np.zeros(10)}, "classes must be 10 different labels, got 0.0"),
        ({"shift": None, "format": "deepprop model 2"}, "has shift or scale alone, must have both"),
        ({"scale": None, "format": "deepprop model 1"}, "has shift or scale alone, must have both"),
        ({"scale": None}, "the model lacks 'scale'"),
        ({"W1": None}, "the model lacks 'W1'"),
        ({"residual": None}, "the model lacks 'residual'"),
    ],
)
def test_a_wrong_scaling_or_wrong_classes_in_a_file_are_an_error(run, tmp_path, change, message):
    path = tmp_path / "model.npz"
    params = dp.init_params(jax.random.key(0), [64, 10])
    dp.save(path, params, scaling=(np.zeros(64), np.ones(64)), classes=np.arange(10))
    arrays = {**read_npz(path), **change}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    for argv in (["predict", path], ["export", path, "--out", tmp_path / "network.jax"]):
        status, out, err = run(*argv)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert re.search(message, err)


def test_a_missing_scaling_is_reported(run, tmp_path):
    path, files = tmp_path / "model.npz", ["--out", tmp_path / "network.jax", "--platforms", "cpu"]
    params = dp.init_params(jax.random.key(0), [64, 10])
    for extra, said in (({}, 1), ({"scaling": (np.zeros(64), np.full(64, 16.0))}, 0)):
        dp.save(path, params, **extra)
        for argv in (["predict", path], ["export", path, *files]):
            status, out, _ = run(*argv)
            assert status == 0
            line = f"no scaling in {path}: inputs are not scaled (dp.save(..., scaling=...)"
            assert out.count(line) == out.count("no scaling") == said


@pytest.mark.parametrize("classes", [["malignant", "benign"], [7, -1], [1.0, 0.0], [True, False]])
def test_classes_of_a_model_from_python_in_any_order(run, tmp_path, classes):
    """A model saved from Python, trained on scaled X and applied to raw X."""
    x = np.random.default_rng(0).standard_normal((60, 2)) * [10, 0.1] + [100, 1]
    shift, scale = x.mean(axis=0), x.std(axis=0)
    params = dp.init_params(jax.random.key(0), [2, 2])
    units = np.argmax(dp.predict(params, ((x - shift) / scale).T), axis=0)
    dp.save(tmp_path / "model.npz", params, scaling=(shift, scale), classes=classes)
    right = np.array(units)
    right[:15] = 1 - right[:15]
    np.savez(tmp_path / "data.npz", X=x, y=np.array(classes)[right])
    files = ["--data", tmp_path / "data.npz", "--out", tmp_path / "out.csv"]
    status, out, _ = run("predict", tmp_path / "model.npz", *files)
    assert (status, "accuracy 75.00 %" in out) == (0, True)
    assert (tmp_path / "out.csv").read_text().split() == [str(classes[i]) for i in units]


def test_the_label_of_a_single_unit_is_not_a_prediction(run, tmp_path):
    params = dp.init_params(jax.random.key(0), [2, 1], output="sigmoid")
    dp.save(tmp_path / "model.npz", params, classes=["spam"])
    np.savez(tmp_path / "data.npz", X=np.eye(2))
    _, out, _ = run("predict", tmp_path / "model.npz", "--data", tmp_path / "data.npz")
    assert "spam" not in out
    assert "2 predictions: [0." in out


def test_labels_as_bytes_are_text_in_every_command(run, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 2))
    y = np.array(["katze", "hund"])[np.arange(60) % 2]
    np.savez(tmp_path / "bytes.npz", X=x, y=y.astype("S"))
    np.savez(tmp_path / "text.npz", X=x, y=y)
    options = ["--hidden", "none", "--epochs", 1, "--no-check", "--save", tmp_path / "m.npz"]
    assert run("train", "--data", tmp_path / "bytes.npz", *options)[0] == 0
    for name in ("bytes.npz", "text.npz"):
        files = ["--data", tmp_path / name, "--out", tmp_path / "out.csv"]
        status, out, _ = run("predict", tmp_path / "m.npz", *files)
        assert (status, "accuracy" in out) == (0, True)
        assert set((tmp_path / "out.csv").read_text().split()) <= {"katze", "hund"}
