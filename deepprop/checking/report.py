"""What `check_backward` found, in words."""

import re
from dataclasses import dataclass

from deepprop._words import listed, verb


@dataclass(frozen=True)
class BackwardReport:
    """The result of `check_backward`. `print(report)` explains it; in a test, `assert report.ok`.

    Attributes:
        network: the networks it was checked on, such as "8-7-6-3, relu, softmax, m = 5".
        right: the quantities that are right in every network, such as "dW[2]".
        wrong: those that are not.
        equation: the first equation that fails, by its name: "Z", "A" or "A[L]" of the forward
            pass, if those are returned; then "dZ[L]", "dA", "dZ", "dW" or "db", from the output
            down.
        layer: the layer in which it fails.
        line: that equation, with the number of the layer.
        mistake: the name of the known mistake that explains the gradients, or "".
        yours: the line as people write it who make that mistake.
        should_be: the line as it should be.
        evidence: what the numbers show, one sentence each.
        hint: what to look at first, where the equation alone does not say it.
        notes: what is right but fragile, or differs without being wrong.
        error: the error that the function raised, with its line, or "".
    """

    network: str
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    equation: str = ""
    layer: int | None = None
    line: str = ""
    mistake: str = ""
    yours: str = ""
    should_be: str = ""
    evidence: tuple[str, ...] = ()
    hint: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Return whether every gradient is right, and none raised an error."""
        return not self.wrong and not self.error

    def __str__(self) -> str:
        """Return a few lines: what is right, what is wrong, and where to look first."""
        lines = [self._first_line()]
        if self.error:
            lines += self.error.splitlines()
        lines += self.evidence
        if self.line and not self.mistake:
            lines += [self._first_equation()]
        if self.mistake:
            lines += [f"Known mistake: {self.mistake}.", f"    yours:  {self.yours}"]
            lines += [f"    right:  {self.should_be}"]
        lines += [self.hint] * bool(self.hint)
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Checked on {self.network}."]
        return "\n  ".join(lines)

    def _first_equation(self) -> str:
        forward = self.equation in ("Z", "A", "A[L]")
        where = "In the forward pass" if forward else "Going down from the output"
        if self.error:
            where = f"In networks of equal widths, where it runs: {where[0].lower()}{where[1:]}"
        return f"{where}, the first equation that fails is {self.line}."

    def _first_line(self) -> str:
        if self.ok:
            return f"RIGHT: {listed(self.right)} are right."
        if not self.wrong:
            return "ERROR: backward raised an error."
        right = f"; {listed(self.right)} {verb(self.right)} right" if self.right else ""
        return f"WRONG: {listed(self.wrong)} {verb(self.wrong)} wrong{right}."


def at_layer(line: str, l: int) -> str:
    """Put the number of the layer into a line: "dW[l] = 1/m dZ[l] A[l-1]^T" for l = 2."""
    return re.sub(r"\[l([+-]1)?\]", lambda found: f"[{l + int(found[1] or 0)}]", line)
