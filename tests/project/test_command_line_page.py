"""docs/command_line.md names every option, and its commands parse."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from deepprop.command.cli import _parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
if not DOCS.exists():
    pytest.skip("the source distribution has no docs", allow_module_level=True)
PAGE = (DOCS / "command_line.md").read_text()
COMMANDS = [
    (path.name, line)
    for path in sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
    for line in re.findall(r"(?:^|`|&& )(deepprop (?:train|predict|export|check)\b[^`\n]*)",
                           path.read_text().replace("\\\n", ""), re.MULTILINE)
]  # fmt: skip


def _commands():
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("name", sorted(_commands()))
def test_the_page_has_each_option_of(name):
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    text = "".join(part for part in section if part.startswith((f"deepprop {name}\n", "Kept pro")))
    named = set(re.findall(r"--[a-z][a-z-]*", text))
    for action in _commands()[name]._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            options = {option for option in action.option_strings if option.startswith("--")}
            assert options == {"--help"} or options <= named, options


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_each_command_parses(page, command):
    if "--help" not in command and "..." not in command:
        words = shlex.split(command)[1:]
        if words[0] == "export" and len(words) == 1:
            return  # the name of the command, in text
        if words[0] == "predict" and len(words) == 1:
            return
        _parser().parse_args(words)


def test_commands_are_found():
    assert len(COMMANDS) >= 6
