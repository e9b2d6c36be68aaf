"""Run one benchmark: python -m benchmarks NAME [options]. Without a name, list them."""

import ast
import importlib
import sys
from pathlib import Path


def questions():
    """Return the first line of each benchmark's docstring, by its name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = ast.get_docstring(tree).splitlines()[0]
    found.pop("__main__")
    return found


def main():
    """Run the benchmark that the command line names."""
    known = questions()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
        width = max(map(len, known))
        print(
            __doc__ + "\n\n" + "\n".join(f"{name:{width}}  {line}" for name, line in known.items())
        )
        sys.exit(0 if asked in ("-h", "--help") else f"\nunknown benchmark {asked!r}")
    name, *options = sys.argv[1:]
    sys.argv = [f"python -m benchmarks {name}", *options]
    importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
