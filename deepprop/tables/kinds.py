"""Whether a column of a table holds numbers or categories, or can't be used."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

MANY = 100  # levels; text with more, mostly different ones, is a name rather than a category
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
        known = ", ".join(map(str, frame.columns))
        raise ValueError(f"{option}{name!r} must be a column of the table, which has {known}")


def _kind(values: Any) -> str:
    return NUMBER if values.dtype.kind in "buif" else CATEGORY


def _reason(name: str, values: Any, chosen: bool) -> str:
    """Return why a column is left out, or "".

    Raises:
        ValueError: it holds dates.
    """
    distinct = values.nunique()
    if distinct < 2:
        return "one value" if distinct else "no value"
    if _are_dates(values):
        raise ValueError(
            f"the column {name!r} holds dates: leave it out with --ignore {name!r}, or make numbers"
            " of it first (the year, the month, days since an event)"
        )
    text = values.dtype.kind not in "buif"
    if text and not chosen and distinct > MANY and distinct > len(values) / 2:
        return f"text, {distinct:,} different values"
    return ""


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
    """Return values as text, with 1.0 as "1": a column of whole numbers is float if one is missing.

    Missing ones become "".
    """
    lacking = values.isna().to_numpy()
    if values.dtype.kind == "f":
        plain = [str(int(v)) if float(v).is_integer() else repr(float(v)) if v == v else ""
                 for v in values.tolist()]  # fmt: skip
    else:
        plain = [str(v) for v in values.tolist()]
    return np.where(lacking, "", np.array(plain, dtype=str))
