"""Words for messages and reports: what something is, lists of names, and factors."""

from collections.abc import Mapping, Sequence
from typing import Any


def kind(value: Any) -> str:
    """Say what a value is: "None", "a tuple of 2 entries", or "a dict"."""
    if value is None:
        return "None"
    if value is Ellipsis:
        return "still a blank"
    count = f" of {len(value)} entries" if type(value) in (tuple, list) else ""
    return f"a {type(value).__name__}{count}"


def listed(names: Sequence[str]) -> str:
    """Join names as in a sentence: dW[1] and db[1]; dW[1], db[1] and dW[2]."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verb(names: Sequence[object]) -> str:
    """Return the verb for so many names."""
    return "is" if len(names) == 1 else "are"


def factor_in_words(
    arrays: str, c: float, sizes: Mapping[str, float], *, several: bool = True
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
        return f"{these} correct except for the sign"
    size = max(abs(c), 1 / abs(c))
    equal = [
        f", and {name} is {n:g}" for name, n in sizes.items() if n > 1 and abs(size - n) < 1e-3 * n
    ]
    sign = "of the wrong sign and " if c < 0 else ""
    direction = "large" if abs(c) > 1 else "small"
    return f"{these} {sign}{size:.4g} times too {direction}{''.join(equal[:1])}"
