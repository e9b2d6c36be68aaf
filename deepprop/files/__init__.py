"""Models in files: saved and loaded, or exported as programs that run without deepprop."""

from deepprop.files.model import load, load_extra, save
from deepprop.files.program import export

__all__ = ["export", "load", "load_extra", "save"]
