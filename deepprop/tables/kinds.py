"""Whether a column of a table holds numbers or categories, or can't be used."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from deepprop.tables.read import CODE

MANY = 100  # levels; text with more, mostly different ones, is a name rather than a category
FEW = 20  # levels; text with more that looks like numbers is refused rather than made categories
MOSTLY = 0.8  # of the values of a column
WRITTEN = re.compile(r"\s*[^\w\s.,+-]?\s*[+-]?\d[\d.,' ]*\s*\D{0,4}$")  # 12 kg, $1,234.50, 55%
NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
PLAIN = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?$")  # a number, rather than a code such as 007
DATE = re.compile(r"\s*(\d{4}-\d{1,2}-\d{1,2}|\d{1,4}[./]\d{1,2}[./]\d{1,4})([ T].*)?$")
NUMBER, CATEGORY = "number", "category"


class Kinds(NamedTuple):
    """The columns that enter the network, with their kinds, and those that don't, with reasons."""

    of: dict[str, str]
    left_out: dict[str, str]


def kinds_of(
    frame: Any,
    target: str,
    *,
    categories: Iterable[str] = (),
    numbers: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Kinds:
    """Infer what each column holds, except for those that the caller names.

    Args:
        frame: the table.
        target: the column to predict.
        categories: columns that hold categories, whatever they look like.
        numbers: columns that hold numbers; text in them counts as missing.
        ignore: columns to leave out.

    Raises:
        ValueError: a name is not a column, or has two kinds, a column holds dates, or no column is
            left.
    """
    chosen = dict.fromkeys(categories, CATEGORY)
    for name in numbers:
        if name in chosen:
            raise ValueError(f"--categories and --numbers must differ, got {name} in both")
        chosen[name] = NUMBER
    for name in (*chosen, *ignore):
        check_column(frame, name)
        if name == target:
            raise ValueError(f"{name} is the --target, and can't be an input")
    ignored = set(ignore)
    kinds = Kinds({}, {})
    for name in frame.columns:
        if name == target or name in ignored:
            continue
        values = frame[name].dropna()
        reason = _reason(name, values, name in chosen)
        if reason:
            kinds.left_out[name] = reason
        else:
            kinds.of[name] = chosen.get(name) or _kind(values)
    if not kinds.of:
        raise ValueError("the table must have a column that can be an input besides the --target")
    return kinds


def check_column(frame: Any, name: str, option: str = "") -> None:
    """Raise unless the table has the column.

    Raises:
        ValueError: it has not; the message lists those that it has.
    """
    if name not in frame.columns:
        raise ValueError(
            f"{option}{name!r} must be a column of the table, which has {listed(frame.columns)}"
        )


def listed(names: Iterable[Any]) -> str:
    """Return names in a line; one with a comma is in quotes, as the options take it."""
    return ", ".join(f'"{name}"' if "," in str(name) else str(name) for name in names)


def _kind(values: Any) -> str:
    """Return the kind of a column; a few words among numbers count as missing."""
    are_numbers = values.dtype.kind in "buif" or _share_of_numbers(values) >= MOSTLY
    return NUMBER if are_numbers else CATEGORY


def _share_of_numbers(values: Any) -> float:
    """Return the share of numbers; text with digits after a leading 0 is a code."""
    text = values.astype(str)
    return float((text.str.match(NUMERAL) & ~text.str.match(CODE)).mean())


def _reason(name: str, values: Any, chosen: bool) -> str:
    """Return why a column is left out, or "".

    Raises:
        ValueError: it holds dates, numbers with units or marks, or anything but numbers and text.
    """
    try:
        distinct = values.nunique()
    except TypeError:  # such as lists, which Parquet has
        raise ValueError(
            f"the column {name!r} must hold numbers or text, got {type(values.iloc[0]).__name__}:"
            f" leave it out with --ignore {name!r}"
        ) from None
    if distinct < 2:
        return "one value" if distinct else "no value"
    if _are_dates(values):
        raise ValueError(
            f"the column {name!r} holds dates: leave it out with --ignore {name!r}, or make numbers"
            " of it first (the year, the month, days since an event)"
        )
    if chosen:
        return ""
    if values.dtype.kind in "buif":
        return "it numbers the rows" if _numbers_the_rows(values) else ""
    if _share_of_numbers(values) >= MOSTLY:
        return ""
    if distinct > FEW and values.astype(str).map(looks_like_a_number).mean() >= MOSTLY:
        raise ValueError(
            f"the column {name!r} holds text such as {str(values.iloc[0])!r}: make plain numbers of"
            f" it (--decimal , reads decimal commas), or choose --categories or --ignore for it"
        )
    if distinct > MANY and distinct > len(values) / 2:
        return f"text, {distinct:,} different values"
    return ""


def looks_like_a_number(text: str) -> bool:
    """Return whether text is a number with a unit, a currency sign or other marks."""
    return WRITTEN.match(text) is not None


def _numbers_the_rows(values: Any) -> bool:
    """Return whether a column counts 0, 1, 2, ... or from another number on, such as an index."""
    number = values.to_numpy(np.float64)
    return bool(len(number) > FEW and (np.diff(number) == 1).all())


def _are_dates(values: Any) -> bool:
    """Return whether a column has a type of dates, or all of its text looks like dates."""
    if (
        values.dtype.kind in "mM"
        or "period" in str(values.dtype)
        or "datetime" in str(values.dtype)
    ):
        return True
    if values.dtype.kind in "buif":
        return False
    return all(DATE.match(str(value)) for value in values.iloc[:MANY])


def text_of(values: Any) -> np.ndarray:
    """Return values as text, and missing ones as "".

    A value has one text in every file, whatever the others in its column are: 1.0 is "1", and True
    is "true".
    """
    lacking = values.isna().to_numpy()
    return np.array(
        ["" if gone else _text(v) for v, gone in zip(values, lacking, strict=True)], str
    )


def _text(value: Any) -> str:
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if isinstance(value, str) and not PLAIN.match(text):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text
