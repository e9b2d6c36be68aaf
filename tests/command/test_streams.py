"""The work is done even if standard output or error is closed, full, or lacks a character."""

import errno
import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.cli import main
from deepprop.training.report import epoch_lines
from deepprop.training.streams import Tolerant

CLASSES = ["chi\u00e9n", "\u732b"]  # a dog that Latin-1 has, a cat that it has not
pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with data.npz, and a model.npz for it."""
    folder = tmp_path_factory.mktemp("streams")
    x = np.random.default_rng(0).standard_normal((60, 2))
    np.savez(folder / "data.npz", X=x, y=np.array(CLASSES)[np.arange(60) % 2])
    params = dp.init_params(jax.random.key(0), [2, 2])
    dp.save(folder / "model.npz", params, classes=CLASSES)
    return folder


COMMANDS = {  # and what each writes
    "train": (["train", "--data", "data.npz", "--hidden", "none", "--epochs", "1", "--no-check",
               "--plot", "curves.png", "--save", "new.npz"], ["new.npz", "curves.png"]),
    "predict": (["predict", "model.npz", "--data", "data.npz", "--out", "new.csv"], ["new.csv"]),
    "check": (["check", "model.npz", "--examples", "2"], []),
    "export": (["export", "model.npz", "--platforms", "cpu", "--out", "new.jax"], ["new.jax"]),
}  # fmt: skip


class Failing(io.StringIO):
    """A stream of which writing, or only flushing, fails."""

    def __init__(self, number, method):
        super().__init__()
        self.error, self.method = OSError(number, os.strerror(number)), method

    def write(self, text):
        if self.method == "write":
            raise self.error
        return len(text)

    def flush(self):
        raise self.error


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def of(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding)


STREAMS = {  # and the status of a command that does its work
    "none": (lambda: None, 0),
    "closed": (closed, 1),
    "full": (lambda: Failing(errno.ENOSPC, "write"), 1),
    "full at a flush": (lambda: Failing(errno.ENOSPC, "flush"), 1),
    "a pipe that ends": (lambda: Failing(errno.EPIPE, "write"), 0),
    "a pipe that ends at a flush": (lambda: Failing(errno.EPIPE, "flush"), 0),
    "ascii": (lambda: of("ascii"), 0),
    "cp1252": (lambda: of("cp1252"), 0),
    "latin-1": (lambda: of("latin-1"), 0),
}


FEW = ["none", "full at a flush", "a pipe that ends", "ascii"]  # for the commands that take long
TABLE = [(s, c) for s in STREAMS for c in COMMANDS if s in FEW or c in ("predict", "check")]


@pytest.mark.parametrize(("stream", "command"), TABLE)
def test_the_work_is_done_for_any_standard_output(folder, monkeypatch, stream, command):
    argv, files = COMMANDS[command]
    make, status = STREAMS[stream]
    monkeypatch.chdir(folder)
    out, err = make(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(argv) == status
    assert (sys.stdout, sys.stderr) == (out, err)
    assert err.getvalue().count("\n") == status
    assert err.getvalue().startswith("deepprop: standard output: " if status else "")
    for name in files:
        (folder / name).unlink()
    if isinstance(out, io.TextIOWrapper) and command == "predict":
        shown = [name.encode(out.encoding, "backslashreplace") for name in CLASSES]
        assert any(name in out.buffer.getvalue() for name in shown)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_status_is_the_same_for_any_standard_error(folder, monkeypatch, stream):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", STREAMS[stream][0]())
    assert main(["predict", "no\u732b.npz"]) == 2
    assert main(["fly"]) == 2
    assert main(COMMANDS["predict"][0]) == 0


@pytest.mark.parametrize("stream", STREAMS)
def test_a_callback_that_cannot_write_does_not_end_training(monkeypatch, stream):
    params = dp.init_params(jax.random.key(0), [1, 1], output="identity")
    X = jnp.ones((1, 4))
    monkeypatch.setattr(sys, "stdout", STREAMS[stream][0]())
    with dp.progress_bar(3) as bar, epoch_lines(3) as line:
        fit = dp.fit(
            params, optax.sgd(0.1), X, X, epochs=3, batch_size=4, key=jax.random.key(1),
            callbacks=[bar, lambda epoch, row, params: line(epoch, f"{epoch} \u732b")],
        )  # fmt: skip
    assert fit.stopped == "epochs"


def test_everything_writable_is_written_and_the_first_failure_reported():
    out = io.StringIO()
    stream = Tolerant(out)
    print("a", file=stream, flush=True)
    assert (out.getvalue(), stream.error, stream.isatty()) == ("a\n", None, False)
    stream = Tolerant(Failing(errno.ENOSPC, "write"))
    assert stream.write("abc") == 3
    assert stream.error.errno == errno.ENOSPC
    stream._stream = out
    stream.write("dropped")
    assert out.getvalue() == "a\n"


NEEDS_FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
PROCESSES = {  # redirections of a shell; the command, its status, and lines on standard error
    "both closed": (">&- 2>&-", "train", 0, 0),
    "full": (">/dev/full", "predict", 1, 1),
    "both full": (">/dev/full 2>&1", "check", 1, 0),
    "a pipe that ends": ("| true", "export", 0, 0),
    "standard error full": ("2>/dev/full", "predict", 0, 0),
    "ascii": (">out", "predict", 0, 0),
}


@pytest.mark.thorough
@NEEDS_FULL
@pytest.mark.parametrize("case", PROCESSES)
def test_a_new_process_prints_nothing_at_exit(folder, case):
    """At exit, Python flushes the streams again."""
    redirections, command, status, lines = PROCESSES[case]
    argv, files = COMMANDS[command]
    shell = f'"{sys.executable}" -m deepprop {" ".join(argv)} {redirections}'
    if redirections == "| true":  # true has ended long before
        shell += "; exit ${PIPESTATUS[0]}"
    run = subprocess.run(
        ["bash", "-c", shell], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii" if case == "ascii" else "utf-8"},
    )  # fmt: skip
    assert run.returncode == status, run.stderr
    assert run.stderr.count("\n") == lines, run.stderr
    for name in files:
        assert (folder / name).stat().st_size > 0
    if command == "train":  # what is printed is not in it
        assert dp.load(folder / "new.npz")[0].W.shape == (2, 2)
    for name in files:
        (folder / name).unlink()


@NEEDS_FULL
def test_a_help_text_for_a_full_disk():
    command = f'"{sys.executable}" -m deepprop --help >/dev/full'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
