"""Tables for the command line: --target names the column to predict, the others become inputs."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from deepprop._arguments import check_domain
from deepprop.command.data import Data, Scaling, scaled, standard
from deepprop.command.targets import MANY, encoded, kind_of
from deepprop.costs import OUTPUTS
from deepprop.tables.kinds import (
    CATEGORY,
    NUMBER,
    Kinds,
    check_column,
    kinds_of,
    listed,
    text_of,
)
from deepprop.tables.preparation import Preparation, fitted, numbers_of
from deepprop.tables.read import read_table, typed

FEW = 20  # different whole numbers in a target; more are numbers to predict
SHOWN = 8  # names in a line
LARGEST_SHIFT = 1e4  # the mean of a target over its standard deviation


def load_table(args: argparse.Namespace, output: str | None) -> Data:
    """Read the table, prepare its columns, and hold out a share of the rows.

    The preparation and the scaling are computed from the training rows alone.

    Args:
        args: data, target, categories, numbers, ignore, held_out and seed.
        output: the name of the output layer; None for the one that suits the target.

    Raises:
        ValueError: the file is not a table, a column is not there or can't be used, or too few rows
            are left.
        OSError, ImportError: as `read_table`.
    """
    frame = typed(read_table(args.data, decimal=args.decimal))
    if args.target is None:
        raise ValueError(
            f"--target must name the column to predict: one of {few(map(quoted, frame.columns))}"
        )
    check_column(frame, args.target, "--target ")
    kinds = kinds_of(
        frame, args.target, categories=args.categories, numbers=args.numbers, ignore=args.ignore
    )
    known = frame[args.target].notna().to_numpy()
    frame = frame[known]
    y = target_of(frame[args.target], dropped=not known.all())
    output, why = _output(y, output)
    classes, output, targets = kind_of(y, output)
    labels = None if classes is None else y
    test, train = divided(len(y), labels, args.held_out, args.seed)

    preparation = fitted(frame.iloc[train], kinds, args.target)
    x, x_test = (preparation.encoded(frame.iloc[part]) for part in (train, test))
    scaling = scaling_of(x, preparation.are_numbers())
    unit = None
    if classes is None and output.split("+")[0] == "identity":  # A[L] is in the target's unit then
        unit = _unit(args.target, y[train])
        y = (y.astype(np.float64) - unit.shift) / unit.scale
    Y, Y_test = (encoded(y[part], classes, args.target) for part in (train, test))
    if output in OUTPUTS:
        check_domain(args.target, Y.min(), Y.max(), OUTPUTS[output])
    return Data(
        Path(args.data).name, scaled(x, scaling), Y.astype(np.float32), scaled(x_test, scaling),
        Y_test.astype(np.float32), scaling, classes, output,
        f"{args.target}: {why or targets.replace(' y holds', ' it holds')}", preparation, unit,
        notes_of(frame, kinds, preparation, int((~known).sum())),
    )  # fmt: skip


def table_examples(
    path: str, preparation: Preparation, row_id: str | None, decimal: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[tuple[str, str]]]:
    """Read a table to predict.

    Args:
        path: the file.
        preparation: that of the model.
        row_id: the column with the ids; None numbers the rows from 1.
        decimal: the decimal mark of a CSV file.

    Returns:
        x (m, n_0); the targets if it has them, or None; each row's id; and what had to be made up,
        as lines to print: a label and a text.

    Raises:
        ValueError: it lacks a column.
        OSError, ImportError: as `read_table`.
    """
    frame = read_table(path, decimal=decimal)
    if row_id is not None:
        check_column(frame, row_id, "--id ")
    ids = np.arange(1, len(frame) + 1) if row_id is None else frame[row_id].fillna("").to_numpy()
    y = frame[preparation.target] if preparation.target in frame.columns else None
    if y is not None and y.isna().any():
        y = None  # some rows have no target, so there is no score
    x = preparation.encoded(frame)
    target = None if y is None else target_of(typed(y.to_frame())[y.name], dropped=False)
    return x, target, ids, preparation.surprises(frame)


def divided(
    m: int, labels: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the held-out rows and of the others, stratified by class.

    Args:
        m: the number of rows.
        labels: (m,), the class of each row; None without classes.
        share: of the rows to hold out.
        seed: of the random choice.

    Raises:
        ValueError: no row would be left on one side.
    """
    k = round(m * share)
    if not 0 < share < 1 or not 0 < k < m:
        raise ValueError(
            f"--held-out must be a share that leaves rows on both sides, got {share:g} of {m} rows"
        )
    order = np.random.default_rng(seed).permutation(m)
    if labels is None:
        return order[:k], order[k:]
    # Rows of one class lie together, in a random order, and every (m / k)-th is held out.
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.arange(1, m + 1) * k // m
    held_out = np.diff(counts, prepend=0) > 0
    return by_class[held_out], by_class[~held_out]


def target_of(values: Any, *, dropped: bool) -> np.ndarray:
    """Return the target as numbers or text; whole numbers again if rows without one were dropped.

    Raises:
        ValueError: it holds dates, or infinite numbers.
    """
    kind = values.dtype.kind
    if kind == "M":
        raise ValueError(f"the target {values.name!r} must be classes or numbers, and holds dates")
    if kind not in "buif":
        return text_of(values)
    if values.dtype.name in ("bool", "boolean"):
        return np.asarray(values.to_numpy(bool))
    if kind in "ui" and not values.isna().any():
        return np.asarray(values.to_numpy(np.int64))
    number = numbers_of(values)
    whole = dropped and bool((number == np.round(number)).all())
    return number.astype(np.int64) if whole else number


def _unit(name: str, y: np.ndarray) -> Scaling:
    """Return the mean and the standard deviation of a target that is a number.

    Raises:
        ValueError: float32, in which networks are stored, does not tell its values apart.
    """
    unit = standard(y.reshape(len(y), -1).astype(np.float64))
    if (np.abs(unit.shift) > LARGEST_SHIFT * unit.scale).any():
        raise ValueError(
            f"the target {name!r} must vary more: its mean is {unit.shift[0]:g}, its deviation"
            f" {unit.scale[0]:g}; subtract a number from it first"
        )
    return unit


def _output(y: np.ndarray, output: str | None) -> tuple[str | None, str]:
    """Return the output layer, and why if the target is many whole numbers: see `FEW`.

    Raises:
        ValueError: the target is text that hardly ever occurs twice.
    """
    distinct = len(np.unique(y))
    if y.dtype.kind == "U" and distinct > MANY and distinct > len(y) / 2:
        raise ValueError(
            f"the --target must be classes or numbers, and holds text with {distinct} different"
            f" values in {len(y)} rows"
        )
    if output is not None or y.dtype.kind != "i" or distinct <= FEW:
        return output, ""
    return "identity", (
        f"numbers, 1 per example, as it holds {distinct} different whole numbers"
        " (--output softmax for classes)"
    )


def scaling_of(x: np.ndarray, are_numbers: np.ndarray) -> Scaling:
    """Return the scaling of numbers to mean 0 and variance 1; 0 and 1 stay as they are."""
    shift, scale = standard(x)
    return Scaling(np.where(are_numbers, shift, 0.0), np.where(are_numbers, scale, 1.0))


def notes_of(
    frame: Any, kinds: Kinds, preparation: Preparation, dropped: int
) -> tuple[tuple[str, str], ...]:
    """Return what was inferred, as lines to print: a label and a text."""
    by_kind = {kind: [name for name, k in kinds.of.items() if k == kind]
               for kind in (NUMBER, CATEGORY)}  # fmt: skip
    change = {NUMBER: "--categories changes it", CATEGORY: "--numbers changes it"}
    labels = {NUMBER: "numbers", CATEGORY: "categories"}
    notes = [
        (labels[kind], f"{few(map(quoted, names))} ({change[kind]})")
        for kind, names in by_kind.items()
        if names
    ]
    counts = {name: _missing(frame[name], kind) for name, kind in kinds.of.items()}
    lacking = [f"{listed([name])} {count:,}" for name, count in counts.items() if count]
    if lacking:
        notes.append(("missing", f"{few(lacking)}: imputed; an extra input marks them"))
    left_out = [f"{listed([name])} ({reason})" for name, reason in kinds.left_out.items()]
    if left_out:
        notes.append(("left out", f"{few(left_out)} (--categories or --numbers includes it)"))
    if dropped:
        notes.append(
            ("dropped", f"{dropped:,} row{'s' * (dropped > 1)} without {preparation.target}")
        )
    return tuple(notes)


def _missing(values: Any, kind: str) -> int:
    """Return how many values of a column are missing; of numbers, text counts as missing."""
    if kind == CATEGORY:
        return int(values.isna().sum())
    return int(np.isnan(numbers_of(values)).sum())


def quoted(name: Any) -> str:
    """Return a column's name as it is listed."""
    return listed([name])


def few(names: Any) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    names = [str(name) for name in names]
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
