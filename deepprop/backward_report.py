"""What `check_backward` found, in words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BackwardReport:
    """The result of `check_backward`. `print(report)` explains it; in a test, `assert report.ok`.

    Attributes:
        network: the networks it was checked on, such as "8-7-6-3, relu, softmax, m = 5".
        right: the quantities that are right in every network, such as "dW[2]".
        wrong: those that are not.
        equation: the first equation that fails, from the top layer down, by its name: "dZ[L]",
            "dA", "dZ", "dW" or "db", or "Z" or "A" of the forward pass; "" if none does.
        layer: the layer in which it fails.
        line: that equation, with the number of the layer.
        mistake: the name of the known mistake that explains the gradients, or "".
        yours: the line as that mistake makes it.
        should_be: the line as it should be.
        evidence: what the numbers show, one sentence each.
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
            lines += [f"From the top, the first equation that fails is {self.line}."]
        if self.mistake:
            lines += [f"Known mistake: {self.mistake}.", f"    yours:  {self.yours}"]
            lines += [f"    right:  {self.should_be}"]
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Checked on {self.network}."]
        return "\n  ".join(lines)

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


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Join names as in a sentence: dW[1] and db[1]; dW[1], db[1] and dW[2]."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verb(names: tuple[str, ...] | list[str]) -> str:
    """Return the verb for so many names."""
    return "is" if len(names) == 1 else "are"


def factor_in_words(
    arrays: str, c: float, sizes: Mapping[str, int], *, several: bool = True
) -> str:
    """Say that arrays are c times what they should be: "5 times too large, and m is 5".

    Args:
        arrays: their names, as a subject.
        c: the factor.
        sizes: numbers by their names, which c or 1/c may equal.
        several: whether the subject is in the plural.
    """
    these = f"{arrays} {'are' if several else 'is'}"
    if abs(c) < 1e-9:
        return f"{these} 0"
    if abs(c + 1) < 1e-3:
        return f"{these} right but for the sign"
    size = max(abs(c), 1 / abs(c))
    equal = [f", and {name} is {n}" for name, n in sizes.items() if abs(size - n) < 1e-3 * n]
    sign = "of the wrong sign and " if c < 0 else ""
    direction = "large" if abs(c) > 1 else "small"
    return f"{these} {sign}{size:.4g} times too {direction}{''.join(equal[:1])}"
