"""What a gradient check found, and the error for a gradient that is wrong."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GradientReport:
    """The result of `check_gradients`. `str(report)` is one line.

    Attributes:
        worst: the largest relative error.
        where: the parameter it belongs to, such as "W[2][5, 17]": layer 2, unit 5, input 17.
        by_hand: the gradient of that parameter from the backward pass.
        by_differences: the same from central differences.
        checked: the number of parameters that were compared.
        parameters: the number of parameters of the network.
        at_kinks: the number left out, because their smallest step still carries a unit over a kink.
        tolerance: the allowed relative error.
        pattern: what the wrong gradients have in common, such as one layer or one factor, or "".
    """

    worst: float
    where: str
    by_hand: float
    by_differences: float
    checked: int
    parameters: int
    at_kinks: int
    tolerance: float
    pattern: str = ""

    @property
    def ok(self) -> bool:
        """Return whether at least one parameter was checked, and all that were agree."""
        return self.checked > 0 and self.worst <= self.tolerance

    def __str__(self) -> str:
        """Return one line: how many agree, the worst error, and where it is."""
        share = f"all {self.checked:,}" if self.checked == self.parameters else f"{self.checked:,}"
        of = "" if self.checked == self.parameters else f" of {self.parameters:,}"
        pattern = f"; {self.pattern}" if self.pattern else ""
        kinks = f", {self.at_kinks:,} left out at a kink" if self.at_kinks else ""
        if self.ok:
            return (
                f"{share}{of} parameters agree with central differences{kinks};"
                f" worst relative error {self.worst:.1e}, at {self.where}"
            )
        if not self.checked:
            return f"no gradient could be checked: all {self.at_kinks:,} parameters sit on kinks"
        return (
            f"the gradient is wrong: at {self.where} it is {self.by_hand:.10g}, and"
            f" {self.by_differences:.10g} by central differences; relative error {self.worst:.1e},"
            f" allowed {self.tolerance:.1e}; {share}{of} parameters checked{kinks}{pattern}"
        )


class GradientError(AssertionError):
    """A gradient disagrees with central differences; `report` says which one and by how much."""

    def __init__(self, report: GradientReport) -> None:
        """Take the report of the check that failed."""
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> Any:
        """Keep the report in a pickle or a copy, as a process pool makes them."""
        return type(self), (self.report,), self.__dict__
