"""`deepprop check`."""

import re

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
