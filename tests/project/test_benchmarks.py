"""benchmarks/: the folder of their results."""

import argparse
import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)

entry, report = map(importlib.import_module, ("benchmarks.__main__", "benchmarks.report"))


def _options(path):
    """Yield the arguments of each add_argument("--out") in a script."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if "--out" in names:
                yield {keyword.arg: keyword.value for keyword in node.keywords}


def test_every_script_makes_its_folder_when_it_reads_the_options():
    found = {path.name: list(_options(path)) for path in BENCHMARKS.glob("*.py")}
    found = {name: options for name, options in found.items() if options}
    assert len(found) >= 8
    for name, (option,) in found.items():
        assert getattr(option["type"], "id", "") == "folder", name
        assert getattr(option.get("default"), "id", "RESULTS") == "RESULTS", name


def test_each_benchmark_has_a_question_and_is_on_the_page():
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
    known = entry.questions()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(known)
    assert all(line.endswith(".") for line in known.values())


def test_the_entry_point_lists_the_benchmarks(monkeypatch, capsys):
    for argv, status in (
        (["--help"], 0),
        ([], 0),
        (["nothing"], "unknown benchmark 'nothing'"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *argv])
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert str(end.value.code or 0).strip() == str(status)
        assert "training" in capsys.readouterr().out


def test_a_missing_folder_is_made(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=report.folder, default=report.RESULTS)
    assert parser.parse_args(["--out", str(tmp_path / "a" / "b")]).out.is_dir()
    assert parser.parse_args([]).out == BENCHMARKS / "results"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(argparse.ArgumentTypeError, match="file"):
        report.folder(str(tmp_path / "file"))
