"""Encode the columns of a table as inputs; a model file stores the preparation as arrays.

A number is one input, and a missing one is replaced by the median of the training rows. A category
is one-hot encoded: one input per level. If a column has missing values in the training rows, one
more input marks them. A missing category, or a level not seen in training, is 0 in every level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepprop.tables.kinds import CATEGORY, Kinds, listed, looks_like_a_number, text_of

LEVELS = 100  # per column, the most frequent; rarer ones are encoded as unknown, with all 0
PREFIX = "table_"  # of the arrays in a model file


@dataclass(frozen=True)
class Preparation:
    """How the columns of a table become inputs.

    Attributes:
        target: the column to predict.
        columns: the columns that enter, in their order.
        fill: (columns,), the median of each column of numbers; 0 for categories.
        missing: (columns,), whether the column lacked values in training.
        levels: of each column, the levels in the order of their inputs; none for numbers.
    """

    target: str
    columns: tuple[str, ...]
    fill: np.ndarray
    missing: np.ndarray
    levels: tuple[tuple[str, ...], ...]

    def names(self) -> list[str]:
        """Return the name of each input, such as "city=Paris" or "age missing"."""
        names = []
        for name, levels, lacks in zip(self.columns, self.levels, self.missing, strict=True):
            names += [f"{name}={level}" for level in levels] or [name]
            names += [f"{name} missing"] * bool(lacks)
        return names

    def are_numbers(self) -> np.ndarray:
        """Return whether each input is a number, rather than 0 or 1, (n_0,)."""
        counts = [len(levels) or 1 for levels in self.levels]
        of_columns = [
            [not levels] * count + [False] * bool(lacks)
            for levels, count, lacks in zip(self.levels, counts, self.missing, strict=True)
        ]
        return np.concatenate(of_columns)

    def encoded(self, frame: Any) -> np.ndarray:
        """Return the inputs x (m, n_0) of a table, not scaled.

        Raises:
            ValueError: it lacks a column, or holds an infinite number.
        """
        lacking = [name for name in self.columns if name not in frame.columns]
        if lacking:
            raise ValueError(
                f"the table must have the columns {listed(lacking)}, too, which are inputs; it has"
                f" {listed(frame.columns)}"
            )
        parts = []
        for name, levels, fill, lacks in zip(
            self.columns, self.levels, self.fill, self.missing, strict=True
        ):
            values, gone = _values(frame[name], levels)
            if levels:
                parts.append(values[:, None] == np.array(levels)[None, :])
            else:
                parts.append(np.where(gone, fill, values)[:, None])
            if lacks:
                parts.append(gone[:, None])
        return np.concatenate([part.astype(np.float64) for part in parts], axis=1)

    def surprises(self, frame: Any) -> list[tuple[str, str]]:
        """Return what had to be made up for the rows of a table, as lines: a label and a text.

        Raises:
            ValueError: a column of numbers holds nothing but text, as with another decimal mark or
                with units: its values would all be imputed.
        """
        imputed, unseen, unread = [], [], []
        for name, levels in zip(self.columns, self.levels, strict=True):
            values, gone = _values(frame[name], levels)
            text = [word for word in text_of(frame[name][gone]).tolist() if word]
            if text and gone.all() and (len(text) > 1 or looks_like_a_number(text[0])):
                raise ValueError(
                    f"the column {name!r} must hold numbers, as in training, got text such as"
                    f" {text[0]!r} (--decimal , reads decimal commas)"
                )
            if text:
                unread.append(f"{listed([name])} {len(text):,}, text such as {text[0]!r}")
            if gone.sum() > len(text):
                imputed.append(f"{listed([name])} {gone.sum() - len(text):,}")
            new = sorted({*values[~gone].tolist()} - {*levels}) if levels else []
            if new:
                unseen.append(f"{listed([name])} {', '.join(map(repr, new[:3]))}")
        lines = []
        if imputed:
            lines.append(("missing", f"{', '.join(imputed)} of {len(frame):,}: imputed"))
        if unread:
            lines.append(("no number", f"{'; '.join(unread)}: imputed"))
        return lines + ([("not seen", f"{'; '.join(unseen)} in training")] if unseen else [])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the preparation as arrays of numbers and text, for a model file."""
        flat = [level for levels in self.levels for level in levels]
        arrays = {
            "target": np.array(self.target),
            "columns": np.array(self.columns),
            "fill": self.fill,
            "missing": self.missing,
            "levels": np.array(flat, dtype=str),
            "counts": np.array([len(levels) for levels in self.levels]),
        }
        return {PREFIX + name: array for name, array in arrays.items()}


def fitted(frame: Any, kinds: Kinds, target: str) -> Preparation:
    """Return the preparation that suits the training rows of a table.

    Args:
        frame: the training rows.
        kinds: the columns that enter.
        target: the column to predict.

    Raises:
        ValueError: a column of numbers holds none.
    """
    fill, lacks, levels = [], [], []
    for name, kind in kinds.of.items():
        if kind == CATEGORY:
            values = text_of(frame[name])
            found, counts = np.unique(values[values != ""], return_counts=True)
            frequent = found[np.argsort(-counts, kind="stable")[:LEVELS]]
            levels.append(tuple(sorted(frequent.tolist())))
            fill.append(0.0)
            lacks.append((values == "").any())
        else:
            number = numbers_of(frame[name])
            known = number[~np.isnan(number)]
            if not known.size:
                raise ValueError(f"the column {name!r} must hold a number in a training row")
            levels.append(())
            fill.append(float(np.median(known)))
            lacks.append(known.size < number.size)
    return Preparation(target, tuple(kinds.of), np.array(fill), np.array(lacks), tuple(levels))


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Preparation | None:
    """Return the preparation in the extras of a model file; None if it has none.

    Raises:
        ValueError: its arrays do not fit one another: a file may come from anywhere.
    """
    if PREFIX + "columns" not in arrays:
        return None
    try:
        target, columns, fill, lacks, levels, counts = (
            np.asarray(arrays[PREFIX + name])
            for name in ("target", "columns", "fill", "missing", "levels", "counts")
        )
        k = columns.size
        kinds = [array.dtype.kind for array in (target, columns, fill, lacks, counts)]
        fits = target.ndim == 0 and kinds == ["U", "U", "f", "b", "i"] and k > 0
        fits = fits and all(array.shape == (k,) for array in (columns, fill, lacks, counts))
        fits = fits and bool(np.isfinite(fill).all()) and levels.dtype.kind == "U"
        if not fits or (counts < 0).any() or levels.shape != (counts.sum(),):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError("the preparation of its table is damaged") from None
    of_columns = [tuple(part.tolist()) for part in np.split(levels, np.cumsum(counts)[:-1])]
    return Preparation(str(target), tuple(map(str, columns)), fill, lacks, tuple(of_columns))


def _values(column: Any, levels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return a column as text if it has levels, otherwise as numbers; and which are missing."""
    if levels:
        text = text_of(column)
        return text, text == ""
    number = numbers_of(column)
    return number, np.isnan(number)


def numbers_of(values: Any) -> np.ndarray:
    """Return a column as float64, with nan where it is missing or is not a number.

    Raises:
        ValueError: a number is infinite.
    """
    import pandas

    if values.dtype.kind not in "buif":
        truth = {"true": "1", "false": "0"}
        values = values.map(lambda value: truth.get(str(value).lower(), value), na_action="ignore")
    coerced = pandas.to_numeric(values, errors="coerce")
    number: np.ndarray = coerced.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(number).any():
        i = int(np.argmax(np.isinf(number)))
        row = values.index[i] + 1  # of the file, whatever rows these are
        raise ValueError(f"{values.name} must hold finite numbers, got {number[i]} in row {row}")
    return number
