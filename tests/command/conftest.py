"""The command line, called in this process."""

import sys

import numpy as np
import pytest

from deepprop.command.cli import main


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


@pytest.fixture
def npz(tmp_path):
    """A function that writes a data file of arrays."""

    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return write


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Change to a folder with mine.py, which has a right and a wrong activation."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, deepprop as dp\n"
        "sine = dp.Activation('sine', jnp.sin, lambda Z, A: jnp.cos(Z))\n"
        "wrong = dp.Activation('wrong', jnp.sin, lambda Z, A: jnp.sin(Z))\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)
