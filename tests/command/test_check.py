"""`deepprop check`."""

import re
import sys

import pytest

pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.mark.thorough
def test_check_of_everything(run):
    status, out, _ = run("check", "--examples", "2")
    assert status == 0, out
    assert out.count("ok ") == len(out.splitlines()) >= 11 + 4 + 3


@pytest.mark.thorough
@pytest.mark.usefixtures("own_module")
def test_check_of_your_own_activation(run):
    status, out, _ = run("check", "--activation", "mine:sine", "--hidden", "5")
    assert status == 0
    assert "8 - 5 sine - 4 softmax" in out
    status, out, _ = run("check", "--activation", "mine:wrong", "--hidden", "5")
    assert status == 1
    assert re.search(r"WRONG .*the gradient is wrong: at [Wb]\[1\]", out)


@pytest.fixture
def own_path(monkeypatch):
    """The command adds the file's folder to sys.path, for its process; here for one test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


MINE = '''
from __future__ import annotations
from dataclasses import dataclass
import numpy as np

@dataclass
class Settings:
    factor: float = 1.0

def backward(parameters, X, Y):
    E = np.exp(parameters["W1"] @ X + parameters["b1"])
    dZ = E / E.sum(axis=0) - Y
    return {"dW1": dZ @ X.T / X.shape[1], "db1": dZ.sum(axis=1, keepdims=True) * Settings().factor / X.shape[1]}

def leaves(parameters, X, Y):
    raise SystemExit("bye")
'''  # fmt: skip


@pytest.mark.usefixtures("own_path")
def test_a_backward_pass_in_a_file(run, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "wrong.py").write_text(MINE.replace(" / X.shape[1]", ""))
    check = lambda name, *more: run("check", "--backward", f"{tmp_path}/{name}", "--hidden", "none", *more)  # noqa: E731  # fmt: skip
    status, out, _ = check("mine.py:backward")
    assert status == 0
    assert out.startswith("RIGHT: dW[1] and db[1] are right.")
    status, out, _ = check("wrong.py:backward")
    assert status == 1
    assert "Known mistake: 1/m is missing." in out
    status, out, _ = check("mine.py:leaves")
    assert status == 1
    assert "SystemExit in line" in out
    status, out, _ = check("mine.py:backward", "--parameters", "pairs")
    assert status == 1
    assert "parameters holds 1 pairs (W, b), layer 1 first" in out


@pytest.mark.usefixtures("own_path")
def test_a_file_that_can_not_be_used_is_bad_input(run, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "leaves.py").write_text("raise SystemExit('bye')")
    for name, said in (
        ("mine.py:forward", "has no forward"),
        ("mine.py", "must name a function, as file.py:name"),
        ("mine.py:np", "must name a function"),
        ("no.py:backward", "FileNotFoundError"),
        ("leaves.py:backward", "SystemExit: bye"),
    ):
        status, _, err = run("check", "--backward", f"{tmp_path}/{name}")
        assert status == 2
        assert said in err
        assert err.count("\n") == 1
    status, _, err = run("check", "model.npz", "--backward", f"{tmp_path}/mine.py:backward")
    assert (status, "small networks of its own" in err) == (2, True)
