"""README and docs are true: their code prints what they say, and their links lead where they say."""

import re
from pathlib import Path

import jax
import pytest

import deepprop as dp

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
ROWS = re.findall(
    r"^\| `(.+?)` \| \[.*?\]\((.+?)#L(\d+)\) \| \[(.+?)\]\((.+?)\) \|$",
    README.read_text(),
    re.MULTILINE,
)
# Rounding, and what it makes of training, differs from machine to machine in the last digits.
INEXACT = r"\d\.\de-\d\d, at [Wb]\S+ \d+\]|\d(?=, right)|\.\d(?=%)|(?<=J = \d\.\d\d)\d"

# Settings that a page changes.
OF_JAX = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=name)
def test_code_prints_what_is_shown(page, capsys, tmp_path, monkeypatch, request):
    """The blocks of a page are one session, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings = {name: getattr(jax.config, name) for name in OF_JAX}
    request.addfinalizer(lambda: [jax.config.update(*setting) for setting in settings.items()])
    session = {}
    for code, output in BLOCK.findall(page.read_text()):
        exec(compile(code, name(page), "exec"), session)
        printed = capsys.readouterr().out
        assert re.sub(INEXACT, "", printed) == re.sub(INEXACT, "", output), code


def test_all_code_is_run_but_for_what_needs_several_hosts_or_other_libraries():
    elsewhere = {name(p): p.read_text().count("```py\n") for p in PAGES}
    assert {page: n for page, n in elsewhere.items() if n} == {
        "docs/many_devices.md": 3,
        "docs/questions.md": 1,  # draw_sine.py runs it
        "docs/recipes.md": 2,  # test_recipes.py runs them
    }
    for page in PAGES:
        text = page.read_text()
        assert len(BLOCK.findall(text)) == text.count("```python")


@pytest.mark.parametrize(("equation", "file", "line", "test", "test_file"), ROWS)
def test_each_equation_is_on_its_line_and_has_its_test(equation, file, line, test, test_file):
    lines = (ROOT / file).read_text().splitlines()
    found = [n for n, text in enumerate(lines, 1) if text.partition("# ")[2] == equation]
    assert found == [int(line)], f"{equation} is in {file}, line {found}"
    assert f"def {test}(" in (ROOT / test_file).read_text()


def test_the_page_of_equations_names_the_same_tests():
    rows = re.findall(
        r"^\| `(.+?)` \| `(\w+)\.(\w+)` \| `(\w+)` \|$",
        (ROOT / "docs" / "equations.md").read_text(),
        re.MULTILINE,
    )
    assert [(row[0], row[3]) for row in rows] == [(row[0], row[3]) for row in ROWS]
    for equation, file, function, _ in rows:
        code = (ROOT / "deepprop" / f"{file}.py").read_text()
        body = code.split(f"def {function}(")[1].split("\ndef ")[0]
        assert f"# {equation}\n" in body


def test_readme_is_three_screens():
    assert len(README.read_text().splitlines()) <= 150
    assert len(ROWS) == 10


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    text = re.sub(r"`[^`\n]*`|^ {4}.*$", "", page.read_text(), flags=re.MULTILINE)  # not code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        assert target.startswith("https://") or not path or (page.parent / path).exists(), target


def test_every_public_name_is_in_the_reference_once():
    pages = [page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")]
    listed = re.findall(r"\.\. auto(?:function|class):: deepprop\.(\w+)$", "".join(pages), re.M)
    groups = {"files", "optimizers", "scale", "signals", "training"}
    public = set(dp.__all__) - groups
    assert not public - set(listed), "these are missing in docs/api"
    assert not set(listed) - public, "these are in docs/api, but not in deepprop.__all__"
    assert len(listed) == len(public), "a name is in docs/api twice"


def test_nobody_is_told_to_install_what_is_on_no_registry():
    sources = [*PAGES, *(ROOT / "deepprop").rglob("*.py")]
    for source in sources:
        assert "pip install deepprop" not in source.read_text(), source
        assert "pip install 'deepprop" not in source.read_text(), source


def test_ci_calls_the_commands_of_the_readme():
    commands = re.findall(r"```sh\n(.+)\n```", README.read_text())
    assert commands == [
        "pip install '.[demo]' && deepprop train",
        "pip install -e '.[test]' && pytest",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[test]' && pytest" in script
    assert "deepprop train" in script
