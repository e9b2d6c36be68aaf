"""The page and a training step, compiled as users' programs are: with LLVM's optimizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [
    "page/test_equations.py",
    "page/test_gradients.py::test_every_activation_with_every_output",
    "page/test_gradients.py::test_random_networks",
    "training/test_epoch.py",
]
SET_HERE = ("XLA_FLAGS", "PYTEST_", "JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


@pytest.mark.thorough
def test_equations_gradients_and_steps_hold_in_optimised_programs():
    """In a process of its own, as XLA reads its flags once; all tests: `pytest --optimised`."""
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--optimised",
         *(str(tests / file) for file in FILES)],
        cwd=tests.parent, capture_output=True, text=True, timeout=600,
        env={name: value for name, value in os.environ.items() if not name.startswith(SET_HERE)},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
