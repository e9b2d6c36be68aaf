"""The command line: bad options and files, devices, terminals, missing packages."""

import contextlib
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import deepprop as dp

QUICK = ["--hidden", "16", "--epochs", "2", "--no-check"]


pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.fixture
def four_commands(tmp_path):
    """Return a valid command line for each command."""
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
def test_each_command_reports_a_missing_device(run, four_commands, monkeypatch, error, says):
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


@pytest.mark.thorough
@pytest.mark.parametrize("setting", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=nonsense"])
def test_missing_devices(setting):
    """In a new process, because jax reads the variable when it is imported."""
    if setting == "JAX_PLATFORMS=cuda" and any(d.platform != "cpu" for d in jax.devices()):
        pytest.skip("there is one")
    name, value = setting.split("=")
    done = subprocess.run(
        [sys.executable, "-m", "deepprop", "check", "--hidden", "2"], capture_output=True,
        text=True, timeout=120, env={**os.environ, name: value},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert value in done.stderr


BAD = {
    "no command": ([], "command"),
    "an unknown command": (["fly"], "invalid choice: 'fly'"),
    "an unknown option": (["train", "--colour", "red"], "unrecognized arguments"),
    "a file without --data": (
        ["audit", "images.npz"],
        "deepprop audit: unrecognized arguments: images.npz; did you mean --data images.npz?"
        " (see deepprop audit --help)",
    ),
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


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "argv", "status", "says"),
    [
        ("rich", ["--epochs", "1"], 0, "result"),
        ("matplotlib", ["--plot", "c.png"], 2, "pip install matplotlib"),
    ],
)
def test_without_the_extras(tmp_path, module, argv, status, says):
    """In a new process in which the package can't be imported."""
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_python_m_deepprop():
    run = subprocess.run(
        [sys.executable, "-m", "deepprop", "--version"], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.startswith("deepprop 0.")
