"""A backward pass that someone else wrote: called, compared with the page, and explained."""

from deepprop.checking.check import check_backward
from deepprop.checking.report import BackwardReport

__all__ = ["BackwardReport", "check_backward"]
