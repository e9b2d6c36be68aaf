"""`deepprop train`."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import deepprop as dp

QUICK = ["--hidden", "16", "--epochs", "2", "--no-check"]


pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.mark.thorough
def test_the_main_job(run, tmp_path):
    """Only output options: train to 97 % on the digits, print, check, draw, save, predict."""
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
    assert "momentum, learning rate 0.05, 1 epoch of 8 steps of 128" in out
    assert "rmse" in out


def test_normalisation_and_dropout_from_training_to_prediction(run, tmp_path):
    model, program = tmp_path / "m.npz", tmp_path / "m.jax"
    status, out, _ = run(
        "train", "--hidden", "16,16", "--normalize", "layer", "--dropout", "0.1", "--epochs", "3",
        "--save", model,
    )  # fmt: skip
    assert status == 0
    assert (
        "64 - 16 relu - 16 relu layer norm dropout 0.1 - 10 softmax layer norm dropout 0.1" in out
    )
    assert "parameters agree with central differences" in out
    assert [layer.dropout for layer in dp.load(model)] == [0, 0.1, 0.1]
    assert run("predict", model)[0] == 0
    assert run("check", model, "--sample", "100")[0] == 0
    assert run("export", model, "--out", program)[0] == 0
    for option, value, says in (
        ("--dropout", "1", "must be a number from 0 to below 1, got '1'"),
        ("--normalize", "batch", "invalid choice: 'batch'"),
        ("--output", "gaussian", "has another number of units than targets"),
    ):
        status, _, err = run("train", option, value)
        assert status == 2 or status == 1
        assert says in err


def test_patience_returns_the_best_epoch_on_a_separate_validation_set(run):
    """The held-out examples are used only once, at the end."""
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


@pytest.mark.thorough
def test_a_checkpoint_resumes(run, tmp_path):
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


@pytest.mark.thorough
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


def test_a_diverging_cost_is_a_failure(run):
    status, _, err = run("train", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e20")
    assert status == 1
    assert re.fullmatch(r"deepprop: the cost or a parameter is not finite in epoch 1: .*\n", err)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_kfac_needs_no_learning_rate(run):
    status, out, _ = run("train", *QUICK, "--optimizer", "kfac")
    assert status == 0
    assert "training   kfac, no learning rate, 2 epochs" in out
    assert float(re.search(r"accuracy ([\d.]+) % on 359 held-out", out)[1]) > 90
    status, _, err = run("train", *QUICK, "--optimizer", "kfac", "--schedule", "cosine")
    assert (status, "--schedule needs --learning-rate" in err) == (2, True)


def _line(out, name):
    return next((line for line in out.splitlines() if line.startswith(name)), "")


UNSCALED = {  # the sizes of inputs, and what the line says about them
    "large": ([1e3, 800.0], "their size is up to 1e+03; scale them to about 1 (--standardize)"),
    "huge": ([1e30, 1.0], "their size is up to 1e+30; scale them to about 1 (--standardize)"),
    "small": ([1e-3, 1e-4], "their size is up to 0.001; scale them to about 1 (--standardize)"),
    "uneven": ([1e-3, 1e-3, 10.0], "the largest is"),
    "scaled": ([1.0, 0.5], ""),
}


@pytest.mark.parametrize("case", UNSCALED)
def test_unscaled_inputs_are_always_reported(run, tmp_path, case):
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
        "targets    10 classes, as y holds whole numbers (--output identity for numbers)"
    )
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    np.savez(tmp_path / "cancer.npz", X=x, y=y)
    _, out, _ = run(*command, "--data", tmp_path / "cancer.npz")
    assert "scale them to about 1 (--standardize)" in _line(out, "inputs  ")


def test_a_cost_that_diverges_later_says_where_the_network_is(run, tmp_path):
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
def test_balanced_classes_also_weight_the_validation_cost(run, tmp_path, monkeypatch, output):
    """By the class counts of the training set, for any held-out set."""
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
    X_test, weights = seen["validation"].X, seen["validation"].weights
    np.testing.assert_allclose(X_test, x.T, rtol=1e-6)
    np.testing.assert_allclose(weights, np.where(y_test, rare, usual))


@pytest.mark.usefixtures("own_module")
def test_your_own_activation_from_training_to_prediction(run, tmp_path):
    quick = ["--hidden", "8", "--epochs", "1"]
    assert run("train", *quick, "--activation", "mine:sine", "--save", "m.npz")[0] == 0
    assert run("predict", "m.npz", "--own", "mine:sine")[0] == 0
    assert run("check", "m.npz", "--own", "mine:sine", "--sample", "50")[0] == 0
    status, _, err = run("train", *quick, "--activation", "mine:wrong", "--save", "w.npz")
    assert (status, "gradient is wrong" in err) == (1, True)
    assert (tmp_path / "w.npz").exists()  # what was trained is not lost


@pytest.mark.thorough
def test_ctrl_c_saves_the_network(tmp_path):
    command = [sys.executable, "-u", "-m", "deepprop", "train", "--epochs", "100000"]
    command += ["--save", "m.npz"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        try:
            for line in run.stdout:
                if line.startswith("    1 "):
                    run.send_signal(signal.SIGINT)
                    break
            out, _ = run.communicate(timeout=120)
        finally:
            run.kill()  # without effect where it has ended
    assert run.returncode == 130
    assert "by Ctrl-C, after epoch" in out
    assert (tmp_path / "m.npz").exists()


def test_the_command_compiles_few_programs():
    """Each costs a person 10 to 1,000 ms; before they were counted, there were 124."""
    command = [sys.executable, "-m", "deepprop", "train", "--epochs", "2", "--no-kept-programs"]
    of_jax = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(of_jax)}
    done = subprocess.run(
        command, env={**environment, "JAX_LOG_COMPILES": "1"}, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    assert "parameters agree" in done.stdout
    assert 5 < done.stderr.count("Finished XLA compilation of") <= 15
