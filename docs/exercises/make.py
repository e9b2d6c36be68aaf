"""Make the exercises from their solutions: python docs/exercises/make.py.

A line of a solution that ends in "#: a hint" becomes a blank: "name = ...  # a hint". The files are
notebooks in plain text (percent format): `jupytext --to notebook docs/exercises/1_one_unit.py`.
"""

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def exercise(solution):
    """Return the text of an exercise, with blanks for the lines that have a hint."""
    lines = []
    for line in solution.splitlines():
        if "  #: " not in line:
            lines.append(line)
            continue
        code, hint = line.split("  #: ")
        before = re.match(r'\s*(return |"\w+": |[\w\[\]{}"\' ,.-]+? = )', code)[0]
        comma = "," * code.endswith(",")
        lines.append(f"{before}...{comma}  # {hint}")
    return "\n".join(lines) + "\n"


def main():
    """Write every exercise."""
    for path in sorted((FOLDER / "solutions").glob("*.py")):
        (FOLDER / path.name).write_text(exercise(path.read_text()))


if __name__ == "__main__":
    main()
