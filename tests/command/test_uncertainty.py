"""deepprop train --uncertainty and deepprop predict --uncertainty."""

import csv

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.cli import main

pytestmark = pytest.mark.usefixtures("optax_types")


def predicted(model, data, out, *options):
    assert main(["predict", str(model), "--data", str(data), "--out", str(out), *options]) == 0
    with out.open() as file:
        head, *lines = csv.reader(file)
    return head, np.array(lines)


def test_numbers_of_a_table(tmp_path, capsys):
    """In the target's unit, with the noise: 95 % of new targets lie within 1.96 deviations."""
    random = np.random.default_rng(0)

    def write(path, m):
        x = random.uniform(-1, 1, m)
        y = 5000 + 300 * x + 100 * random.standard_normal(m)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("x", "price"), *zip(x, y, strict=True)])
        return y

    train, new, model = tmp_path / "train.csv", tmp_path / "new.csv", tmp_path / "model.npz"
    write(train, 400)
    y = write(new, 400)
    options = [
        "--target",
        "price",
        "--hidden",
        "8",
        "--epochs",
        "60",
        "--no-check",
        "--uncertainty",
    ]
    assert main(["train", "--data", str(train), "--save", str(model), *options]) == 0
    head, lines = predicted(model, new, tmp_path / "with.csv", "--uncertainty")
    assert head == ["row", "prediction", "deviation"]
    mean, deviation = lines[:, 1].astype(float), lines[:, 2].astype(float)
    plain = predicted(model, new, tmp_path / "without.csv")[1][:, 1].astype(float)
    np.testing.assert_allclose(mean, plain, rtol=1e-5)
    assert np.median(deviation) == pytest.approx(100, rel=5 / np.sqrt(2 * 80))
    assert (abs(y - mean) < 1.96 * deviation).mean() > 0.85
    assert "deviation  1" in capsys.readouterr().out  # about 100, printed


def test_classes_get_probabilities_that_account_for_it(tmp_path):
    model, data = tmp_path / "model.npz", tmp_path / "data.npz"
    random = np.random.default_rng(1)
    x = random.standard_normal((200, 20))
    y = np.where(x[:, 0] + 0.8 * random.standard_normal(200) > 0, "yes", "no")
    np.savez(data, X=x, y=y)
    options = [
        "--hidden",
        "64",
        "--epochs",
        "100",
        "--learning-rate",
        "0.01",
        "--no-check",
        "--uncertainty",
    ]
    assert main(["train", "--data", str(data), "--save", str(model), *options]) == 0
    head, lines = predicted(model, data, tmp_path / "out.csv", "--uncertainty")
    assert head == ["example", "prediction", "probability of no", "probability of yes"]
    p = lines[:, 2:].astype(float)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    params, extra = dp.load(model), dp.load_extra(model)
    A = np.asarray(dp.predict(params, ((x - extra["shift"]) / extra["scale"]).T)).T
    assert (p.argmax(axis=1) == A.argmax(axis=1)).all()
    assert (p.max(axis=1) <= A.max(axis=1) + 1e-5).all()  # never surer than the network alone
    assert p.max(axis=1).mean() < A.max(axis=1).mean() - 1e-3


def test_errors(tmp_path, capsys):
    model = tmp_path / "model.npz"
    assert main(["train", "--uncertainty"]) == 2
    assert "--uncertainty needs --save" in capsys.readouterr().err
    args = ["train", "--uncertainty", "--save", str(model), "--output", "softmax+focal(1.0)"]
    assert main(args) == 2
    assert "--uncertainty needs the output softmax" in capsys.readouterr().err
    dp.save(model, dp.init_params(jax.random.key(0), [64, 4, 10]))
    assert main(["predict", str(model), "--uncertainty"]) == 2
    assert "holds no posterior, which --uncertainty needs" in capsys.readouterr().err
    numbers = np.ones(3)
    dp.save(model, dp.load(model), posterior_numbers=numbers)
    assert main(["predict", str(model), "--uncertainty"]) == 2
    assert "its posterior is damaged" in capsys.readouterr().err
    parts = {f"posterior_{name}": np.ones((2, 2)) for name in dp.Curvature._fields}
    dp.save(model, dp.load(model), posterior_numbers=numbers, **parts)
    assert main(["predict", str(model), "--uncertainty"]) == 2
    assert "its posterior is damaged" in capsys.readouterr().err
