import contextlib
import csv
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.cli import main
from deepprop.files.archive import read_npz

QUICK = ["--hidden", "16", "--epochs", "2", "--no-check"]


pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.fixture
def run(capsys):
    def call(*argv):
        try:
            status = main(list(map(str, argv)))
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_main_job(run, tmp_path):
    """No arguments but where to write: the digits to 97 %, shown, checked, drawn, saved, predicted."""
    model, curves = tmp_path / "model.npz", tmp_path / "curves.png"
    status, out, err = run("train", "--save", model, "--plot", curves)
    assert (status, err) == (0, "")
    assert re.search(r"data .*digits.*1,438 to train on, 359 held out, 64 inputs, 10 classes", out)
    assert "64 - 256 relu - 128 relu - 10 softmax; 50,826 parameters" in out
    assert re.search(r"jax .* on \w+", out)
    assert float(re.search(r"accuracy ([\d.]+) % on 359 held-out", out)[1]) >= 97
    assert re.search(r"after [\d.]+ s of training", out)
    assert "parameters agree with central differences; worst relative error" in out
    assert len(re.findall(r"^ +\d+ .*%", out, re.MULTILINE)) == 11  # the first, and each third
    assert curves.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run("predict", model, "--out", tmp_path / "answers.csv")
    assert status == 0
    assert out.startswith("1,797 predictions: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")
    assert float(re.search(r"accuracy ([\d.]+) %", out)[1]) >= 98
    answers = (tmp_path / "answers.csv").read_text().split()
    assert (len(answers), answers[:3]) == (1797, ["0", "1", "2"])
    status, out, _ = run("check", model, "--sample", "500")
    assert status == 0
    assert "ok" in out
    assert "500 of 50,826 parameters agree" in out


def test_a_run_repeats_bit_for_bit(run, tmp_path):
    for name in ("a", "b"):
        assert run("train", *QUICK, "--seed", 3, "--save", tmp_path / name)[0] == 0
    a, b = (np.load(tmp_path / name) for name in ("a", "b"))
    assert all(np.array_equal(a[k], b[k]) for k in a.files)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.array(["cat", "dog"])[np.arange(60) % 2], "2 classes"),
        (np.random.default_rng(0).integers(0, 2, (60, 4)), "4 sigmoid"),
        (np.linspace(-1, 1, 60), "1 identity"),
    ],
    ids=["text labels", "several labels", "numbers"],
)
def test_other_data(run, tmp_path, y, says):
    x = np.random.default_rng(1).standard_normal((60, 5))
    np.savez(tmp_path / "data.npz", X=x, y=y)
    model = tmp_path / "model.npz"
    status, out, err = run("train", "--data", tmp_path / "data.npz", *QUICK, "--save", model)
    assert (status, err) == (0, "")
    assert says in out
    assert run("predict", model, "--data", tmp_path / "data.npz")[0] == 0


def test_options(run):
    status, out, _ = run(
        "train", "--hidden", "12,9", "--activation", "tanh,leaky_relu(0.2)", "--init", "lecun_uniform",
        "--optimizer", "momentum", "--learning-rate", "0.05", "--epochs", "1", "--batch-size", "128",
        "--held-out", "0.5", "--standardize", "--output", "tanh+huber", "--no-check",
    )  # fmt: skip
    assert status == 0
    assert "64 - 12 tanh - 9 leaky_relu(0.2) - 1 tanh+huber" in out
    assert "momentum, learning rate 0.05, 1 epochs of 8 steps of 128" in out
    assert "rmse" in out


def test_patience_keeps_the_best_by_a_validation_set_of_its_own(run):
    """Held-out examples are looked at once, at the end."""
    status, out, _ = run(
        "train", "--hidden", "16", "--no-check", "--epochs", 200, "--patience", 2,
        "--learning-rate", 0.05, "--schedule", "warmup_cosine", "--class-weights", "balanced",
    )  # fmt: skip
    assert status == 0
    assert "1,294 to train on, 144 to validate on, 359 held out" in out
    assert "learning rate 0.05 (warmup_cosine)" in out
    stopped, best = map(
        int, re.search(r"after epoch (\d+): .*; epoch (\d+) is the best", out).groups()
    )
    assert stopped == best + 2 < 200
    assert re.search(r"accuracy [\d.]+ % on 359 held-out", out)


def test_a_checkpoint_goes_on_where_it_was(run, tmp_path):
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    options = ["--hidden", "16", "--no-check", "--validation", "0.3"]
    assert run("train", *options, "--epochs", 5, "--save", whole)[0] == 0
    options += ["--checkpoint", tmp_path / "checkpoints"]
    assert run("train", *options, "--epochs", 3, "--checkpoint-every", 2)[0] == 0
    _, out, _ = run("train", *options, "--epochs", 5, "--save", parts)
    assert "checkpoints: resumed after epoch 3" in out
    assert len(re.findall(r"^ +\d+ .*%", out, re.MULTILINE)) == 2
    whole, parts = np.load(whole), np.load(parts)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole.files)
    status, _, err = run("train", *options, "--hidden", "17")
    assert (status, err.count("\n")) == (2, 1)
    assert "has another network: 64 - 16 relu" in err


def test_balanced_classes_of_a_single_output(run, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    np.savez(tmp_path / "data.npz", X=x, y=(x[:, 0] > 1.5) * 1)
    options = ["--data", tmp_path / "data.npz", "--output", "sigmoid", *QUICK]
    plain, balanced = (
        run("train", *options, *more) for more in ([], ["--class-weights", "balanced"])
    )
    assert plain[0] == balanced[0] == 0
    assert plain[1] != balanced[1]
    np.savez(tmp_path / "data.npz", X=x, y=x[:, 0])
    status, _, err = run(
        "train", "--data", tmp_path / "data.npz", *QUICK, "--class-weights", "balanced"
    )
    assert status == 2
    assert "--class-weights balanced needs data with one class per example" in err


def test_softmax_regression_has_no_hidden_layer(run):
    _, out, _ = run("train", "--hidden", "none", "--epochs", "1", "--no-check")
    assert "64 - 10 softmax; 650 parameters" in out


def test_check_of_everything(run):
    status, out, _ = run("check", "--examples", "2")
    assert status == 0
    assert out.count("ok ") == len(out.splitlines()) >= 11 + 4 + 3


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A folder to stand in, with mine.py: an activation that is right and one that is wrong."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, deepprop as dp\n"
        "sine = dp.Activation('sine', jnp.sin, lambda Z, A: jnp.cos(Z))\n"
        "wrong = dp.Activation('wrong', jnp.sin, lambda Z, A: jnp.sin(Z))\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("own_module")
def test_check_of_an_activation_of_your_own(run):
    status, out, _ = run("check", "--activation", "mine:sine", "--hidden", "5")
    assert status == 0
    assert "8 - 5 sine - 4 softmax" in out
    status, out, _ = run("check", "--activation", "mine:wrong", "--hidden", "5")
    assert status == 1
    assert re.search(r"WRONG .*the gradient is wrong: at [Wb]\[1\]", out)


def test_a_cost_that_runs_away_is_a_failure(run):
    status, _, err = run("train", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e20")
    assert status == 1
    assert re.fullmatch(r"deepprop: the cost or a parameter is not finite in epoch 1: .*\n", err)


def test_the_health_of_layers(run, tmp_path):
    status, out, _ = run("train", *QUICK, "--diagnose", tmp_path / "layers.png")
    assert status == 0
    assert out.count("layer  units  activation") == out.count("nothing stands out") == 2
    assert (tmp_path / "layers.png").read_bytes()[1:4] == b"PNG"
    status, out, err = run(
        "train", *QUICK, "--optimizer", "sgd", "--learning-rate", 1e30, "--diagnose"
    )
    assert status == 1
    assert "not finite; try a smaller learning rate" in out.split("at the last recorded step")[1]
    assert "not finite in epoch 1" in err


def test_kfac_needs_no_learning_rate(run):
    status, out, _ = run("train", *QUICK, "--optimizer", "kfac")
    assert status == 0
    assert "training   kfac, no rate, 2 epochs" in out
    assert float(re.search(r"accuracy ([\d.]+) % on 359 held-out", out)[1]) > 90
    status, _, err = run("train", *QUICK, "--optimizer", "kfac", "--schedule", "cosine")
    assert (status, "--schedule needs --learning-rate" in err) == (2, True)


def test_a_model_without_classes_is_scored_by_number_and_shapes_are_compared(run, tmp_path):
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


def test_labels_of_every_script_and_with_commas_are_written_whole(run, tmp_path):
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
def test_a_model_file_with_odd_preparation(run, tmp_path, change, message):
    path = tmp_path / "model.npz"
    params = dp.init_params(jax.random.key(0), [64, 10])
    dp.save(path, params, scaling=(np.zeros(64), np.ones(64)), classes=np.arange(10))
    arrays = {**read_npz(path), **change}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    for argv in (["predict", path], ["export", path, "--out", tmp_path / "network.jax"]):
        status, out, err = run(*argv)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert re.search(message, err)


def test_a_model_from_python_that_holds_no_scaling_is_said_to(run, tmp_path):
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
    """Saved from Python, trained on scaled X, applied to X as it is: as by hand."""
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


def test_the_label_of_a_single_unit_is_no_answer(run, tmp_path):
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


def _line(out, name):
    return next((line for line in out.splitlines() if line.startswith(name)), "")


UNSCALED = {  # inputs, and what the line says of them
    "large": ([1e3, 800.0], "their size is up to 1e+03; scale them to about 1 (--standardize)"),
    "huge": ([1e30, 1.0], "their size is up to 1e+30; scale them to about 1 (--standardize)"),
    "small": ([1e-3, 1e-4], "their size is up to 0.001; scale them to about 1 (--standardize)"),
    "uneven": ([1e-3, 1e-3, 10.0], "the largest is"),
    "scaled": ([1.0, 0.5], ""),
}


@pytest.mark.parametrize("case", UNSCALED)
def test_unscaled_inputs_are_told_without_being_asked(run, tmp_path, case):
    sizes, says = UNSCALED[case]
    x = np.sign(np.random.default_rng(0).standard_normal((60, len(sizes)))) * sizes
    np.savez(tmp_path / "data.npz", X=x, y=np.arange(60) % 2)
    command = [
        "train",
        "--data",
        tmp_path / "data.npz",
        "--hidden",
        "none",
        "--epochs",
        1,
        "--no-check",
    ]
    _, out, _ = run(*command)
    assert says in _line(out, "inputs  ")
    assert (_line(out, "inputs  ") == "") == (says == "")
    assert _line(run(*command, "--standardize")[1], "inputs  ") == ""


def test_the_inputs_of_the_digits_are_scaled_and_those_of_breast_cancer_are_not(run, tmp_path):
    command = ["train", "--hidden", "none", "--epochs", 1, "--no-check"]
    _, out, _ = run(*command)
    assert _line(out, "inputs  ") == ""
    assert _line(out, "targets") == (
        "targets    10 classes, as y holds whole numbers (--output identity: numbers)"
    )
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    np.savez(tmp_path / "cancer.npz", X=x, y=y)
    _, out, _ = run(*command, "--data", tmp_path / "cancer.npz")
    assert "scale them to about 1 (--standardize)" in _line(out, "inputs  ")


def test_a_cost_that_runs_away_later_says_where_the_network_is(run, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 2))
    np.savez(tmp_path / "data.npz", X=x, y=x[:, 0])
    command = ["train", "--data", tmp_path / "data.npz", "--hidden", "none", "--batch-size", 48,
               "--optimizer", "sgd", "--learning-rate", 1e4]  # fmt: skip
    status, _, err = run(*command)
    assert status == 1
    assert re.fullmatch(
        r"deepprop: the cost or a parameter is not finite in epoch \d+: cost (inf|nan); try a smaller"
        r" --learning-rate; --save would have stored the network of the epoch before\n", err
    )  # fmt: skip
    status, _, err = run(*command, "--save", tmp_path / "m.npz")
    assert err.endswith(f"; the network of the epoch before is in {tmp_path / 'm.npz'}\n")
    assert all(np.isfinite(layer.W).all() for layer in dp.load(tmp_path / "m.npz"))


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_balanced_classes_weigh_the_validation_cost_too(run, tmp_path, monkeypatch, output):
    """By the classes of the training set, counted here, whatever is held out."""
    rng = np.random.default_rng(0)
    x, y, y_test = rng.standard_normal((40, 2)), np.arange(40) % 5 == 0, np.arange(40) % 2 == 0
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y * 1, x_test=x, y_test=y_test * 1)
    seen = {}

    def fit(*args, weights, validation, **options):
        seen.update(weights=np.asarray(weights), validation=validation)
        raise KeyboardInterrupt

    monkeypatch.setattr(dp, "fit", fit)
    command = ["train", "--data", tmp_path / "data.npz", "--output", output, *QUICK]
    assert run(*command, "--class-weights", "balanced")[0] == 130
    rare, usual = 40 / (2 * 8), 40 / (2 * 32)
    np.testing.assert_allclose(seen["weights"], np.where(y, rare, usual))
    X_test, _, weights = seen["validation"]
    np.testing.assert_allclose(X_test, x.T, rtol=1e-6)
    np.testing.assert_allclose(weights, np.where(y_test, rare, usual))


@pytest.fixture
def four_commands(tmp_path):
    """One command line of each command, which would work."""
    path = tmp_path / "model.npz"
    dp.save(path, dp.init_params(jax.random.key(0), [64, 10]))
    return [
        ["train", *QUICK],
        ["predict", path],
        ["check", path, "--sample", 3],
        ["export", path, "--out", tmp_path / "network.jax"],
    ]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AssertionError(), "jax found no device for JAX_PLATFORMS="),  # cuda without a GPU
        (RuntimeError("Unable to initialize backend 'nonsense'\nmore"), "backend 'nonsense'\n"),
    ],
)
def test_without_a_device_each_command_says_so(run, four_commands, monkeypatch, error, says):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    for argv in four_commands:
        status, out, err = run(*argv)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert says in err


def test_a_transfer_guard_ends_each_command_in_one_line(run, four_commands):
    for argv in four_commands:
        with jax.transfer_guard("disallow"):
            status, _, err = run(*argv)
        assert (status, err.count("\n")) == (1, 1)
        assert "Disallowed host-to-device transfer" in err


@pytest.mark.parametrize("setting", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=nonsense"])
def test_devices_that_are_not_there(setting):
    """In a process of its own: jax reads the variable as it is imported."""
    if setting == "JAX_PLATFORMS=cuda" and any(d.platform != "cpu" for d in jax.devices()):
        pytest.skip("there is one")
    name, value = setting.split("=")
    done = subprocess.run(
        [sys.executable, "-m", "deepprop", "check", "--hidden", "2"], capture_output=True,
        text=True, timeout=120, env={**os.environ, name: value},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert value in done.stderr


@pytest.mark.usefixtures("own_module")
def test_an_activation_of_your_own_from_training_to_prediction(run, tmp_path):
    quick = ["--hidden", "8", "--epochs", "1"]
    assert run("train", *quick, "--activation", "mine:sine", "--save", "m.npz")[0] == 0
    assert run("predict", "m.npz", "--own", "mine:sine")[0] == 0
    assert run("check", "m.npz", "--own", "mine:sine", "--sample", "50")[0] == 0
    status, _, err = run("train", *quick, "--activation", "mine:wrong", "--save", "w.npz")
    assert (status, "gradient is wrong" in err) == (1, True)
    assert (tmp_path / "w.npz").exists()  # what was trained is not lost


def test_ctrl_c_saves_what_there_is(tmp_path):
    command = [
        sys.executable,
        "-u",
        "-m",
        "deepprop",
        "train",
        "--epochs",
        "100000",
        "--save",
        "m.npz",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if line.startswith("    1 "):
                run.send_signal(signal.SIGINT)
                break
        out = run.stdout.read()
    assert run.returncode == 130
    assert "by Ctrl-C, after epoch" in out
    assert (tmp_path / "m.npz").exists()


BAD = {
    "no command": ([], "command"),
    "an unknown command": (["fly"], "invalid choice: 'fly'"),
    "an unknown option": (["train", "--colour", "red"], "unrecognized arguments"),
    "no epochs": (
        ["train", "--epochs", "0"],
        "must be a whole number above 0 (and below 2^31), got '0'",
    ),
    "a negative rate": (["train", "--learning-rate", "-1"], "must be a number above 0, got '-1'"),
    "a hidden layer of 0": (
        ["train", "--hidden", "8,0"],
        "must be a whole number above 0 (and below 2^31), got '0'",
    ),
    "an unknown optimizer": (["train", "--optimizer", "adamm"], "invalid choice: 'adamm'"),
    "an unknown activation": (["train", "--activation", "rulu"], "activation must be one of"),
    "an unknown output": (["train", "--output", "max"], "output must be one of"),
    "a large batch": (["train", "--batch-size", "9999"], "--batch-size must be at most the 1438"),
    "all to validate on": (
        ["train", "--validation", "1"],
        "--validation must be a share of the 1438 examples below 1, got 1.0",
    ),
    "an unknown schedule": (["train", "--schedule", "step"], "invalid choice"),
    "a share of 2": (["train", "--held-out", "2"], "held_out must be a share"),
    "no such file": (["train", "--data", "none.npz"], "No such file or directory: 'none.npz'"),
    "no such folder": (
        ["train", "--save", "no/such/model.npz"],
        "No such file or directory: 'no/such/model.npz'",
    ),
    "no such format": (["train", "--plot", "curves.xyz"], "curves.xyz must end in one of"),
    "no such model": (["predict", "none.npz"], "No such file or directory"),
    "no such module": (["check", "--activation", "nowhere:mine"], "No module named 'nowhere'"),
    "no such name": (
        ["check", "--activation", "math:mine"],
        "math:mine: the module math has no mine",
    ),
    "a number for softmax": (["train", "--output", "softmax(3)"], "output softmax takes no number"),
    "a seed below 0": (["train", "--seed", "-1"], "must be a whole number from 0"),
    "a seed of 2^64": (["check", "--seed", str(2**64)], "must be a whole number from 0"),
    "a share of infinity": (["train", "--held-out", "inf"], "must be a number above 0"),
    "a giant layer": (["train", "--hidden", "9" * 20], "must be a whole number above 0"),
    "a folder to save to": (["train", "--save", "."], "Is a directory: '.'"),
    "one file for two": (["train", "--save", "x.png", "--plot", "x.png"], "must be two files"),
    "a folder that is not there": (["predict", "m.npz", "--out", "no/x.csv"], "'no/x.csv'"),
    "a module that fails": (["check", "--activation", "antigravity_:x"], "ModuleNotFoundError"),
    "a model and more": (["check", "m.npz", "--hidden", "3"], "a saved network has its own"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_get_one_clear_line(run, case):
    argv, message = BAD[case]
    status, out, err = run(*argv)
    assert status == 2
    assert out == ""
    assert err.startswith("deepprop")
    assert err.count("\n") == 1
    assert message in err


def test_bad_files_get_one_clear_line(run, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "names.npz", a=np.ones(3))
    np.savez(tmp_path / "objects.npz", X=np.array([[None]]), y=np.ones(1))
    for name in ("text", "names", "objects"):
        for argv in (["train", "--data"], ["predict"]):
            status, out, err = run(*argv, tmp_path / f"{name}.npz")
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert f"{name}.npz" in err
            assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "argv", "status", "says"),
    [
        ("rich", ["--epochs", "1"], 0, "result"),
        ("matplotlib", ["--plot", "c.png"], 2, "pip install matplotlib"),
    ],
)
def test_without_the_extras(tmp_path, module, argv, status, says):
    """A fresh process in which the extra is not to be had."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from deepprop.command.cli import main\n"
        f"sys.exit(main(['train', '--hidden', '8', '--no-check', *{argv!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == status
    assert says in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


def test_a_terminal_gets_a_progress_bar():
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "deepprop", "train", "--hidden", "256", "--no-check"]
    with subprocess.Popen(
        command, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm"}
    ) as run:
        os.close(end)
        out = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while part := os.read(terminal, 4096):
                out += part
    os.close(terminal)
    assert run.returncode == 0
    assert re.search(rb"epoch \d+/30", out)
    assert b"result     accuracy" in out


def test_python_m_deepprop():
    run = subprocess.run(
        [sys.executable, "-m", "deepprop", "--version"], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.startswith("deepprop 0.")
