"""README is true: its code prints what it says, and its links lead to the lines they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
ROWS = re.findall(
    r"^\| `(.+?)` \| \[.*?\]\((.+?)#L(\d+)\) \| \[(.+?)\]\((.+?)\) \|$", README, re.MULTILINE
)


@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_code_prints_what_is_shown(code, output, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a file
    exec(compile(code, "README.md", "exec"), {})
    # Rounding, and what it makes of training, differs from machine to machine in the last digits.
    inexact = r"\d\.\de-\d\d, at [Wb]\S+ \d+\]|\d(?=, right)|\.\d(?=%)"
    printed = capsys.readouterr().out
    assert re.sub(inexact, "", printed) == re.sub(inexact, "", output)


@pytest.mark.parametrize(("equation", "file", "line", "test", "test_file"), ROWS)
def test_each_equation_stands_in_its_line_and_has_its_test(equation, file, line, test, test_file):
    lines = (ROOT / file).read_text().splitlines()
    found = [n for n, text in enumerate(lines, 1) if text.partition("# ")[2] == equation]
    assert found == [int(line)], f"{equation} stands in {file}, line {found}"
    assert f"def {test}(" in (ROOT / test_file).read_text()


def test_all_rows_and_blocks_are_read():
    assert len(ROWS) == 9
    assert len(BLOCKS) == README.count("```python") == 5


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([\w./:-]*[./][\w./:-]*)(?:#L\d+)?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_ci_calls_the_commands_of_the_readme():
    commands = re.findall(r"```sh\n(.+)\n```", README)
    assert commands == [
        "pip install '.[demo]' && deepprop train",
        "pip install -e '.[test]' && pytest",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[test]' && pytest" in script
    assert "deepprop train" in script
