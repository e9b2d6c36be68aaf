"""benchmarks/: the folder of their results."""

import argparse
import ast
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)


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


def test_a_missing_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=report.folder, default=report.RESULTS)
    assert parser.parse_args(["--out", str(tmp_path / "a" / "b")]).out.is_dir()
    assert parser.parse_args([]).out == BENCHMARKS / "results"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(argparse.ArgumentTypeError, match="file"):
        report.folder(str(tmp_path / "file"))
