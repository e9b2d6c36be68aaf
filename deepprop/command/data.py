"""Data for the command line: the handwritten digits, and the user's files of NumPy arrays.

Files have one example per row, as NumPy users write them; the X and Y returned have one per
column. A held-out set is split off first, and the scaling is computed from the training examples
alone, because the held-out ones must not influence what they are to measure. They are then scaled
with the same numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepprop._arguments import check_domain
from deepprop.command.targets import encoded, kind_of
from deepprop.costs import OUTPUTS
from deepprop.files.archive import as_text, npz_names, read_npz
from deepprop.tables.preparation import Preparation

LAYOUT = "x_train, y_train, x_test and y_test, or X and y"
HINT = "np.savez(path, X=X, y=y) writes one"
FEW_ULPS = 8  # a column that varies by no more than this is constant except for rounding


class Scaling(NamedTuple):
    """The scaling of the inputs of a file, X = (x - shift) / scale, each (n_0,)."""

    shift: np.ndarray
    scale: np.ndarray


class Data(NamedTuple):
    """A training set and a held-out set, one example per column.

    Attributes:
        name: the name to print.
        X: (n_0, m), Y: (n_L, m), to train on.
        X_test: (n_0, m_test), Y_test: (n_L, m_test), held out.
        scaling: the scaling that was applied.
        classes: (n_L,), the label of each output unit; None if Y is not classes.
        output: the output layer that fits Y.
        targets: in words, what Y holds, why, and which option changes it.
        preparation: of a table, what makes its columns inputs; None for arrays.
        unit: of a table's target that is a number, the scaling that was applied to it.
        notes: what else was inferred, as lines to print: a label and a text.
    """

    name: str
    X: np.ndarray
    Y: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    scaling: Scaling
    classes: np.ndarray | None
    output: str
    targets: str
    preparation: Preparation | None = None
    unit: Scaling | None = None
    notes: tuple[tuple[str, str], ...] = ()


class HeldOut(NamedTuple):
    """The examples to measure on after each epoch: the test set, or a part of the training set."""

    name: str
    X: np.ndarray
    Y: np.ndarray


def load_data(
    path: str | None,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    standardize: bool = False,
    output: str | None = None,
) -> Data:
    """Load the data of a .npz file, or the handwritten digits that come with deepprop.

    Args:
        path: a file with x_train, y_train, x_test and y_test, or with X and y; None for the digits.
        held_out: the share to hold out if the file has no test set.
        seed: the seed of the random choice of held-out examples.
        standardize: whether to scale each input to mean 0 and variance 1 on the training set.
            Otherwise integers are divided by the largest one, and floats are not changed.
        output: the output layer; None chooses softmax for labels (whole numbers or text) and
            one-hot rows, sigmoid for rows of several 0s and 1s, identity for other numbers.

    Returns:
        The data.

    Raises:
        ValueError: the file is not an archive of that layout, its arrays do not fit one another,
            or y holds whole numbers that may be classes or not.
        OSError: the file can't be read.
    """
    name = "handwritten digits (UCI)" if path is None else Path(path).name
    with file_of(path) as file:
        x, y, x_test, y_test = sets_of(file)
    classes, output, targets = kind_of(y, output)
    if x_test is None or y_test is None:
        x, y, x_test, y_test = _split(x, y, held_out, seed)
    scaling = archive_scaling(x, standardize)
    Y, Y_test = encoded(y, classes, "y_train"), encoded(y_test, classes, "y_test")
    if Y.shape[0] != Y_test.shape[0]:
        raise ValueError(f"y_train has {Y.shape[0]} numbers per example, y_test {Y_test.shape[0]}")
    if output in OUTPUTS:
        check_domain("y", Y.min(), Y.max(), OUTPUTS[output])
    X, X_test = scaled(x, scaling), scaled(x_test, scaling)
    return Data(name, X, Y, X_test, Y_test, scaling, classes, output, targets)


def load_examples(path: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Load examples to predict: the test set of a file if it has one, otherwise all of them.

    Args:
        path: a .npz file; None for the digits.

    Returns:
        x (m, n_0) and y (m, ...) or None, one example per row, not scaled.

    Raises:
        ValueError: the file is not an archive, or has no x.
        OSError: the file can't be read.
    """
    with file_of(path) as file:
        names = npz_names(file, HINT)
        for x_name, y_name in (("x_test", "y_test"), ("x", "y"), ("x_train", "y_train")):
            if any(name.lower() == x_name for name in names):
                arrays = arrays_of(file, names, x_name, y_name)
                return _rows(arrays[x_name], x_name), arrays.get(y_name)
    raise ValueError(f"{path}: must hold x_test or X, holds {', '.join(names) or 'nothing'}")


def scaled(x: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Return X (n_0, m) in float32 from examples x (m, n_0) in rows.

    Raises:
        ValueError: the number of features differs from the scaling's, or a value is too large.
    """
    n_0 = scaling.shift.size
    if x.shape[1] != n_0:
        raise ValueError(
            f"x must have {n_0} features per example, as in training, got {x.shape[1]}"
        )
    with np.errstate(over="ignore"):
        X = ((x - scaling.shift) / scaling.scale).astype(np.float32).T
    if not np.isfinite(X).all():
        raise ValueError("x must hold numbers within the range of float32, also after scaling")
    return np.ascontiguousarray(X)


@contextmanager
def file_of(path: str | None) -> Iterator[str]:
    """Yield the path of the file, or that of the digits for None."""
    if path is not None:
        yield path
        return
    with resources.as_file(resources.files("deepprop") / "digits" / "digits.npz") as digits:
        yield str(digits)


def arrays_of(path: str, names: Sequence[str], *wanted: str) -> dict[str, np.ndarray]:
    """Read the arrays with the wanted names, in upper or lower case, that the file has.

    Returns:
        The arrays by name in lower case.

    Raises:
        ValueError: two names differ only in case, or an array can't be read.
    """
    of_file = [name for name in names if name.lower() in wanted]
    for folded in wanted:
        found = [name for name in of_file if name.lower() == folded]
        if len(found) > 1:
            raise ValueError(f"{path}: holds both {' and '.join(found)}; keep one of them")
    arrays = read_npz(path, of_file, HINT)
    return {name.lower(): as_text(f"{path}: {name}", array) for name, array in arrays.items()}


def sets_of(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read x, y, x_test and y_test, one example per row; the last two are None if not in the file.

    Raises:
        ValueError: the file does not have one of the two layouts, or its arrays do not fit.
    """
    names = npz_names(path, HINT)
    folded = {name.lower() for name in names}
    train = ("x_train", "y_train") if "x_train" in folded else ("x", "y")
    if {"x", "y", "x_train", "y_train"} <= folded:
        raise ValueError(f"{path}: holds x_train and y_train, and X and y; keep one pair of them")
    if any(name not in folded for name in train):
        raise ValueError(f"{path}: must hold {LAYOUT}; holds {', '.join(names) or 'nothing'}")
    pairs: list[np.ndarray | None] = []
    for x_name, y_name in (train, ("x_test", "y_test")):
        if (x_name in folded) != (y_name in folded):
            raise ValueError(f"{path}: must hold both {x_name} and {y_name}, or neither")
        arrays = arrays_of(path, names, x_name, y_name)
        x, y = arrays.get(x_name), arrays.get(y_name)
        if x is not None and y is not None:
            if y.ndim == 0 or x.ndim == 0 or len(x) != len(y):
                raise ValueError(
                    f"{path}: {x_name} and {y_name} must have one example per row each, got shapes"
                    f" {x.shape} and {y.shape}"
                )
            x = _rows(x, f"{path}: {x_name}")
        pairs += [x, y]
    x, y, x_test, y_test = pairs
    assert x is not None
    assert y is not None
    return x, y, x_test, y_test


def _rows(x: np.ndarray, name: str) -> np.ndarray:
    """Return examples of any shape as rows of finite numbers (m, n_0)."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold real numbers, got dtype {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{name} must have shape (m, ...), at least one example, got {x.shape}")
    x = x.reshape(len(x), -1)
    nonfinite = np.argwhere(~np.isfinite(x))
    if nonfinite.size:
        i, j = nonfinite[0]
        raise ValueError(
            f"{name} must hold finite numbers, got {x[i, j]} at example {i}, input {j}"
        )
    return x


def _split(
    x: np.ndarray, y: np.ndarray, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hold out a random share of the rows: return x, y, x_test and y_test.

    Raises:
        ValueError: no example would be left on one side.
    """
    if not 0 < held_out < 1 or not 0 < round(len(x) * held_out) < len(x):
        raise ValueError(
            f"held_out must be a share that leaves examples on both sides, got {held_out:g} of"
            f" {len(x)} examples"
        )
    k = round(len(x) * held_out)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[:k], order[k:]
    return x[train], y[train], x[test], y[test]


def archive_scaling(x: np.ndarray, standardize: bool) -> Scaling:
    """Return the scaling of x (m, n_0): to mean 0 and variance 1, or integers by the largest."""
    n_0 = x.shape[1]
    if standardize:
        return standard(x)
    largest = max(abs(float(x.max())), abs(float(x.min()))) if x.dtype.kind != "f" else 1.0
    return Scaling(np.zeros(n_0), np.full(n_0, largest or 1.0))


def standard(x: np.ndarray) -> Scaling:
    """Return the mean of each input as shift, and its standard deviation as scale.

    The scale is 1 for an input that is constant except for rounding: dividing by a spread that is
    rounding alone would turn the input into noise of variance 1. There are two kinds of rounding.
    That of the sums, in float64, is bounded as in scikit-learn's StandardScaler: var <= m eps var +
    (m eps mean)^2. That of the stored numbers is a few eps of their dtype, for any m. It can't be
    bounded by m eps, which for float32 exceeds 1 at 8 million examples: every input would count as
    constant.
    """
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    size = np.maximum(np.abs(low), np.abs(high))
    size[size == 0] = 1  # x is divided by it, because the square of 1e300 is infinite
    mean, var = (moment(x / size, axis=0, dtype=np.float64) for moment in (np.mean, np.var))
    eps, m = float(np.finfo(np.float64).eps), len(x)
    of_stored = float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else 0.0
    constant = (var <= m * eps * var + (m * eps * mean) ** 2) | (
        high / size - low / size <= FEW_ULPS * of_stored
    )
    return Scaling(mean * size, np.where(constant, 1.0, np.sqrt(var) * size))
