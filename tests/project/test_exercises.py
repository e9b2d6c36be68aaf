"""The exercises: each is its solution with blanks; solutions are right, and blanks are explained."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "exercises"
NAMES = sorted(path.name for path in (FOLDER / "solutions").glob("*.py"))


def printed(path):
    """Run a file as a user does, and return the last lines that it prints."""
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, env=os.environ)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_there_are_five():
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_is_its_solution_with_blanks(name):
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    solution = (FOLDER / "solutions" / name).read_text()
    assert make.exercise(solution) == (FOLDER / name).read_text()
    assert solution.count("  #: ") >= 3
    assert f"({name})" in (FOLDER / "index.md").read_text()


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_solution_is_right(name):
    out = printed(FOLDER / "solutions" / name)
    assert out.startswith("RIGHT")
    assert "Note" not in out


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES[:4])
def test_what_is_still_blank_is_said_with_its_line(name):
    out = printed(FOLDER / name)
    assert "still a blank" in out or f"of {name}" in out


@pytest.mark.thorough
def test_the_last_exercise_names_the_term_that_is_missing(tmp_path):
    text = (FOLDER / "solutions" / NAMES[-1]).read_text()
    for term, said in ((" - dN.mean(axis=0)", "Mean(dn) is missing"), (" - N * (N * dN).mean(axis=0)", "N mean(n dn) is missing")):  # fmt: skip
        assert text.count(f"(dN{term}") or text.count(f"{term}) / S  #:")
        changed = text.replace(term, "", 1)
        (tmp_path / "mine.py").write_text(changed)
        assert said in printed(tmp_path / "mine.py")
