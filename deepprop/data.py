"""The former place of `deepprop.command.data`: its names still work, with a warning."""

import warnings
from typing import Any

from deepprop.command import data


def __getattr__(name: str) -> Any:
    found = getattr(data, name)
    if not name.startswith("__"):
        warnings.warn(f"deepprop.data.{name} is now deepprop.command.data.{name}",
                      DeprecationWarning, stacklevel=2)  # fmt: skip
    return found
