"""Data for the command line: the digits that ship, and files of NumPy arrays.

Files hold one example a row, as NumPy users write them; what comes out has one example a column.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepprop.files import read_npz

DOMAIN = {"sigmoid": (0.0, 1.0), "exp": (0.0, np.inf)}  # of Y, where the output bounds it
LAYOUT = "x_train, y_train, x_test and y_test, or X and y"


class Scaling(NamedTuple):
    """X = (x - shift) / scale, each (n_0,): what turns the numbers of a file into inputs."""

    shift: np.ndarray
    scale: np.ndarray


class Data(NamedTuple):
    """A training set and a held-out set, one example a column.

    Attributes:
        name: what it is, for the report.
        X: (n_0, m), Y: (n_L, m), to train on.
        X_test: (n_0, m_test), Y_test: (n_L, m_test), held out.
        scaling: what made X of the numbers in the file.
        classes: (n_L,), the label of each output unit; None where Y is no class.
        output: the output layer that fits Y.
    """

    name: str
    X: np.ndarray
    Y: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    scaling: Scaling
    classes: np.ndarray | None
    output: str


def load_data(
    path: str | None,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    standardize: bool = False,
    output: str | None = None,
) -> Data:
    """The data in a .npz file, or without one the handwritten digits that ship with deepprop.

    Args:
        path: a file with x_train, y_train, x_test and y_test, or with X and y; None is the digits.
        held_out: the share that is held out where the file has no test set.
        seed: draws which are held out.
        standardize: give each input mean 0 and variance 1 on the training set. Otherwise integers
            are divided by the largest one, and floats stay as they are.
        output: the output layer; None takes softmax for labels and one-hot rows, sigmoid for rows
            of several 0s and 1s, identity for other numbers.

    Returns:
        The data.

    Raises:
        ValueError: the file is no archive of that layout, or its arrays do not fit one another.
        OSError: the file can't be read.
    """
    if path is None:
        arrays, name = _digits(), "handwritten digits (UCI)"
    else:
        arrays, name = read_npz(path), Path(path).name
    x, y, x_test, y_test = _parts(arrays, path or name)
    classes, output = _kind(y, output)
    if x_test is None or y_test is None:
        x, y, x_test, y_test = _split(x, y, held_out, seed)
    scaling = _scaling(x, standardize)
    Y, Y_test = encoded(y, classes, "y_train"), encoded(y_test, classes, "y_test")
    if Y.shape[0] != Y_test.shape[0]:
        raise ValueError(f"y_train has {Y.shape[0]} numbers an example, y_test {Y_test.shape[0]}")
    low, high = DOMAIN.get(output, (-np.inf, np.inf))
    if Y.min() < low or Y.max() > high:
        raise ValueError(
            f"y must lie in [{low:g}, {high:g}] for the output {output}, got"
            f" {Y.min():g} to {Y.max():g}"
        )
    X, X_test = scaled(x, scaling), scaled(x_test, scaling)
    return Data(name, X, Y, X_test, Y_test, scaling, classes, output)


def load_examples(path: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples to predict: (x, y) of the test set in a file, or all of it; y may be None.

    Args:
        path: a .npz file; None is the digits that ship.

    Returns:
        x (m, n_0) and y (m, ...) or None, one example a row, as they stand in the file.

    Raises:
        ValueError: the file is no archive, or has no x.
        OSError: the file can't be read.
    """
    arrays = _digits() if path is None else read_npz(path)
    folded = {name.lower(): value for name, value in arrays.items()}
    for x_name, y_name in (("x_test", "y_test"), ("x", "y"), ("x_train", "y_train")):
        if x_name in folded:
            return _rows(folded[x_name], x_name), folded.get(y_name)
    raise ValueError(f"{path}: must hold x_test or X, holds {', '.join(arrays) or 'nothing'}")


def scaled(x: np.ndarray, scaling: Scaling) -> np.ndarray:
    """X (n_0, m) float32 from examples x (m, n_0) in rows.

    Raises:
        ValueError: the number of features is another than the scaling's, or a number too large.
    """
    n_0 = scaling.shift.size
    if x.shape[1] != n_0:
        raise ValueError(f"x must have {n_0} features an example, as in training, got {x.shape[1]}")
    with np.errstate(over="ignore"):
        X = ((x - scaling.shift) / scaling.scale).astype(np.float32).T
    if not np.isfinite(X).all():
        raise ValueError("x must hold numbers that float32 can hold, also after scaling")
    return np.ascontiguousarray(X)


def encoded(y: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """Y (n_L, m) float32 from labels or rows of numbers: one-hot where there are classes.

    Raises:
        ValueError: a label is not among the classes, or a number is not finite.
    """
    if classes is None:
        Y = y.reshape(len(y), -1).astype(np.float32).T
        if not np.isfinite(Y).all():
            raise ValueError(f"{name} must hold finite numbers")
        return Y
    labels = _labels(y)
    index = np.clip(np.searchsorted(classes, labels), 0, classes.size - 1)
    strange = np.flatnonzero(classes[index] != labels)
    if strange.size:
        raise ValueError(f"{name} holds the label {labels[strange[0]]!s}, which is not in training")
    Y = np.zeros((classes.size, labels.size), np.float32)
    Y[index, np.arange(labels.size)] = 1
    return Y


def _digits() -> dict[str, np.ndarray]:
    with resources.as_file(resources.files("deepprop") / "digits" / "digits.npz") as path:
        return read_npz(path)


def _parts(
    arrays: Mapping[str, np.ndarray], path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    folded = {name.lower(): value for name, value in arrays.items()}
    train = ("x_train", "y_train") if "x_train" in folded else ("x", "y")
    if any(name not in folded for name in train):
        raise ValueError(f"{path}: must hold {LAYOUT}; holds {', '.join(arrays) or 'nothing'}")
    pairs = []
    for x_name, y_name in (train, ("x_test", "y_test")):
        x, y = folded.get(x_name), folded.get(y_name)
        if (x is None) != (y is None):
            raise ValueError(f"{path}: must hold both {x_name} and {y_name}, or neither")
        if x is not None and y is not None:
            if y.ndim == 0 or x.ndim == 0 or len(x) != len(y):
                raise ValueError(
                    f"{path}: {x_name} and {y_name} must have an example a row each, got shapes"
                    f" {x.shape} and {y.shape}"
                )
            x = _rows(x, f"{path}: {x_name}")
        pairs += [x, y]
    x, y, x_test, y_test = pairs
    assert x is not None
    assert y is not None
    return x, y, x_test, y_test


def _rows(x: np.ndarray, name: str) -> np.ndarray:
    """Examples of any shape as rows of finite numbers (m, n_0)."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold real numbers, got dtype {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{name} must have shape (m, ...), at least one example, got {x.shape}")
    x = x.reshape(len(x), -1)
    strange = np.argwhere(~np.isfinite(x))
    if strange.size:
        i, j = strange[0]
        raise ValueError(
            f"{name} must hold finite numbers, got {x[i, j]} at example {i}, input {j}"
        )
    return x


def _split(
    x: np.ndarray, y: np.ndarray, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not 0 < held_out < 1 or not 0 < round(len(x) * held_out) < len(x):
        raise ValueError(
            f"held_out must be a share that leaves examples on both sides, got {held_out:g} of"
            f" {len(x)} examples"
        )
    k = round(len(x) * held_out)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[:k], order[k:]
    return x[train], y[train], x[test], y[test]


def _scaling(x: np.ndarray, standardize: bool) -> Scaling:
    n_0 = x.shape[1]
    if standardize:
        spread = np.where(x.max(axis=0) > x.min(axis=0), x.std(axis=0, dtype=np.float64), 1.0)
        return Scaling(x.mean(axis=0, dtype=np.float64), spread)
    largest = max(abs(float(x.max())), abs(float(x.min()))) if x.dtype.kind != "f" else 1.0
    return Scaling(np.zeros(n_0), np.full(n_0, largest or 1.0))


def _kind(y: np.ndarray, output: str | None) -> tuple[np.ndarray | None, str]:
    """The classes in y, if it holds classes, and the output layer that fits it."""
    rows = y.ndim > 1 and y[0].size > 1
    if y.ndim > 2 or y.size == 0:
        raise ValueError(f"y must have shape (m,) or (m, n_L), got {y.shape}")
    if y.dtype.kind not in "buifUS":
        raise ValueError(f"y must hold labels or numbers, got dtype {y.dtype}")
    if output is None:
        if rows and _one_hot(y):
            output = "softmax"
        elif rows and bool(np.isin(y, (0, 1)).all()):
            output = "sigmoid"
        else:
            output = "identity" if rows or y.dtype.kind == "f" else "softmax"
    if output != "softmax":
        if y.dtype.kind in "US":
            raise ValueError(f"y holds text, which only the output softmax takes, got {output!r}")
        return None, output
    if not rows:
        classes = np.unique(y)
        if classes.size < 2:
            raise ValueError(f"y must hold at least two classes, got only {classes}")
        if classes.size > max(100, len(y) // 2):
            raise ValueError(
                f"y holds {classes.size} labels in {len(y)} examples: for numbers to predict,"
                " choose the output identity"
            )
        return classes, output
    if not _one_hot(y):
        raise ValueError("y must hold labels or one-hot rows for the output softmax")
    return np.arange(y.shape[1]), output


def _labels(y: np.ndarray) -> np.ndarray:
    """One label an example, (m,), from labels or one-hot rows."""
    labels: np.ndarray = y.reshape(-1)
    if labels.size == len(y):
        return labels
    if not _one_hot(y):
        raise ValueError(f"y must hold labels or one-hot rows, got shape {y.shape}")
    index: np.ndarray = y.argmax(axis=1)
    return index


def _one_hot(y: np.ndarray) -> bool:
    binary = y.ndim == 2 and y.dtype.kind in "buif" and np.isin(y, (0, 1)).all()
    return bool(binary and (y.sum(axis=1) == 1).all())
