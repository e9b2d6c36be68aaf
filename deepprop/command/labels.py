"""Labelled examples to audit: all rows of a table, or the training arrays of an archive."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepprop.command.data import (
    HINT,
    archive_scaling,
    arrays_of,
    file_of,
    scaled,
    sets_of,
)
from deepprop.command.table_data import few, notes_of, quoted, scaling_of, target_of
from deepprop.command.targets import encoded, kind_of
from deepprop.files.archive import npz_names
from deepprop.tables.kinds import check_column, kinds_of
from deepprop.tables.preparation import fitted
from deepprop.tables.read import read_table, typed

VALUES = 6  # of a row, in a line


class Labelled(NamedTuple):
    """Examples with labels, one per column, not divided.

    Attributes:
        name: the name to print.
        X: (n_0, m).
        Y: (n_L, m), one-hot.
        classes: (n_L,), the labels.
        ids: (m,), what to call each example.
        id: the name of the ids.
        shape: of one example, if it is an image; None for a square.
        row: returns the values of an example's row as text; None for arrays.
        notes: what was inferred, as lines to print: a label and a text.
    """

    name: str
    X: np.ndarray
    Y: np.ndarray
    classes: np.ndarray
    ids: np.ndarray
    id: str = "example"
    shape: tuple[int, ...] | None = None
    row: Callable[[int], str] | None = None
    notes: tuple[tuple[str, str], ...] = ()


def labelled_archive(path: str | None) -> Labelled:
    """Load x_train and y_train, or X and y, of a .npz file; or the digits that come with deepprop.

    Whole numbers are divided by the largest; each input of other numbers is standardised.

    Args:
        path: the file; None for the digits.

    Raises:
        ValueError: the file is not an archive of that layout, or y does not hold classes.
        OSError: the file can't be read.
    """
    name = "handwritten digits (UCI)" if path is None else Path(path).name
    with file_of(path) as file:
        x, y, x_test, _ = sets_of(file)
        stored = arrays_of(file, npz_names(file, HINT), "x_train", "x")
    whole = stored.get("x_train", stored.get("x"))
    shape = whole.shape[1:] if whole is not None and whole.ndim > 2 else None
    scaling = archive_scaling(x, standardize=x.dtype.kind == "f")
    notes = () if x_test is None else (("test set", "not audited"),)
    classes = _classes(y)
    return Labelled(
        name, scaled(x, scaling),
        encoded(y, classes, "y"), classes, np.arange(len(x)), shape=shape, notes=notes,
    )  # fmt: skip


def labelled_table(args: argparse.Namespace) -> Labelled:
    """Load all rows of a table that have a label, and prepare its other columns.

    Args:
        args: data, target, categories, numbers, ignore, decimal and id.

    Raises:
        ValueError: the file is not a table, a column is not there or can't be used, or the target
            does not hold classes.
        OSError, ImportError: as `read_table`.
    """
    if args.data is None:
        raise ValueError("--target needs --data, a table")
    frame = typed(read_table(args.data, decimal=args.decimal))
    if args.target is None:
        raise ValueError(
            f"--target must name the column with the labels: one of {few(map(quoted, frame))}"
        )
    check_column(frame, args.target, "--target ")
    if args.id is not None:
        check_column(frame, args.id, "--id ")
        if args.id == args.target:
            raise ValueError(f"--id must be another column than --target, got {args.id!r}")
    ignored = [*args.ignore, *([] if args.id is None else [args.id])]
    kinds = kinds_of(
        frame, args.target, categories=args.categories, numbers=args.numbers, ignore=ignored
    )
    known = frame[args.target].notna().to_numpy()
    ids = np.arange(1, len(frame) + 1)
    if args.id is not None:
        ids = frame[args.id].fillna("").to_numpy()
    frame, ids = frame[known], ids[known]
    y = target_of(frame[args.target], dropped=not known.all())
    classes = _classes(y)
    preparation = fitted(frame, kinds, args.target)
    x = preparation.encoded(frame)
    inputs = frame[list(preparation.columns)[:VALUES]]

    def row(i: int) -> str:
        return ", ".join(f"{name}={_shown(value)}" for name, value in inputs.iloc[int(i)].items())

    notes = notes_of(frame, kinds, preparation, int((~known).sum()))
    return Labelled(
        Path(args.data).name, scaled(x, scaling_of(x, preparation.are_numbers())),
        encoded(y, classes, args.target), classes, ids, args.id or "row", None, row, notes,
    )  # fmt: skip


def _shown(value: Any) -> str:
    """Return a value of a table as text, a number with six digits."""
    if isinstance(value, float):
        return "missing" if np.isnan(value) else f"{value:g}"
    return str(value)


def _classes(y: np.ndarray) -> np.ndarray:
    """Return the labels.

    Raises:
        ValueError: y is not classes.
    """
    if y.dtype.kind == "f" and y[0].size == 1 and not np.isin(y, (0, 1)).all():
        raise ValueError(
            "the labels must be classes (whole numbers, text, or True and False), got floats such"
            f" as {y[~np.isin(y, (0, 1))][0]:g}, which are numbers to predict"
        )
    classes, *_ = kind_of(y, "softmax")
    assert classes is not None
    if len(classes) > len(y) / 2:
        raise ValueError(
            "the labels must be classes, with several examples each, got"
            f" {len(classes)} different values in {len(y)} examples"
        )
    counts = np.unique_counts(y) if y.ndim == 1 else None
    if counts is not None and counts.counts.min() < 2:
        alone = counts.values[counts.counts < 2]
        raise ValueError(
            "each label must occur at least twice; these occur once, leave them out:"
            f" {', '.join(map(str, alone[:5]))}"
        )
    return classes
