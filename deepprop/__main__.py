"""python -m deepprop: the command line."""

import sys

from deepprop.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
