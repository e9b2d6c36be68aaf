"""Whether y of a file holds classes or numbers to predict, and its encoding for training."""

import numpy as np

MANY = 100  # classes; more distinct whole numbers than this may be numbers to predict


def kind_of(y: np.ndarray, output: str | None) -> tuple[np.ndarray | None, str, str]:
    """Infer whether y of a file holds classes or numbers, and which output suits it.

    Args:
        y: (m,) labels or numbers, or (m, n_L) rows.
        output: the name of the output layer; None for the one that suits y.

    Returns:
        The classes (n_L,), or None if y holds numbers; the name of the output layer; and both in
        words, with the option that changes them.

    Raises:
        ValueError: y does not fit the output, or could be classes as well as numbers.
    """
    if y.ndim > 2 or y.size == 0:
        raise ValueError(f"y must have shape (m,) or (m, n_L), got {y.shape}")
    if y.dtype.kind not in "buifU":
        raise ValueError(f"y must hold labels or numbers, got dtype {y.dtype}")
    if output is None:
        output, holds, option = _inferred(y)
        why = f"as y holds {holds}{option}"
    else:
        why = "by --output"
    n_L = y[0].size
    if output != "softmax":
        if y.dtype.kind == "U":
            raise ValueError(f"y holds text, which needs the output softmax, got {output!r}")
        kind = {"sigmoid": "probabilities"}.get(output, "numbers")
        return None, output, f"{kind}, {n_L} per example, {why}"
    if n_L > 1:
        if not _one_hot(y):
            raise ValueError("y must hold labels or one-hot rows for the output softmax")
        return np.arange(n_L), output, f"{n_L} classes, {why}"
    classes = np.unique(y)
    if y.dtype.kind == "f" and not np.isfinite(classes).all():
        raise ValueError(f"y must hold finite labels, got {classes[~np.isfinite(classes)][0]}")
    if classes.size < 2:
        raise ValueError(f"y must hold at least two classes, got only {classes}")
    return classes, output, f"{classes.size} classes, {why}"


def _inferred(y: np.ndarray) -> tuple[str, str, str]:
    """Return the output layer that suits y, what y holds, and the option that changes it.

    Raises:
        ValueError: y holds whole numbers that could be classes as well as numbers to predict.
    """
    if y[0].size > 1:
        if _one_hot(y):
            return "softmax", "one-hot rows", " (--output sigmoid if several may be 1)"
        if np.isin(y, (0, 1)).all():
            return "sigmoid", "rows of 0 and 1", " (--output identity for any numbers)"
        return "identity", "rows of numbers", ""
    if y.dtype.kind == "f":
        if np.isin(y, (0, 1)).all():
            floats = (
                "floats, all 0 or 1",
                " (--output softmax for classes, sigmoid for a probability)",
            )
        else:
            floats = "floats", " (--output softmax for classes)"
        return "identity", *floats
    if y.dtype.kind == "b":
        return "softmax", "True and False", " (--output sigmoid for a probability)"
    if y.dtype.kind == "U":
        return "softmax", "text", ""
    labels, counts = np.unique(y, return_counts=True)
    once = int((counts == 1).sum())
    if once > labels.size / 2 or labels.size > max(MANY, len(y) // 2):
        raise ValueError(
            f"y holds {labels.size} whole numbers in {len(y)} examples, {once} of them only once:"
            " choose --output identity for numbers to predict, or --output softmax for classes"
        )
    return "softmax", "whole numbers", " (--output identity for numbers)"


def encoded(y: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """Return Y (n_L, m) in float32 from labels or rows of numbers; one-hot for classes.

    Args:
        y: (m,) labels or numbers, or (m, n_L) one-hot rows or numbers.
        classes: (n_L,), the label of each output unit, in any order; None for numbers.
        name: the name of y in an error.

    Raises:
        ValueError: a label is not among the classes, or a number exceeds the range of float32.
    """
    if y.ndim == 0 or y.size == 0:
        raise ValueError(f"{name} must have one example per row, got shape {y.shape}")
    if classes is None:
        return _numbers(y, name)
    if y[0].size > 1:
        if not _one_hot(y) or y.shape[1] != classes.size:
            raise ValueError(
                f"{name} must hold labels or one-hot rows of {classes.size}, got shape {y.shape}"
            )
        return np.ascontiguousarray(y.T, np.float32)
    labels, inverse = np.unique(y.reshape(-1), return_inverse=True)
    unit = {label: i for i, label in enumerate(classes.tolist())}  # 1, 1.0 and True are equal keys
    unknown = [label for label in labels.tolist() if label not in unit]
    if unknown:
        raise ValueError(f"{name} holds the label {unknown[0]!s}, which is not in training")
    Y = np.zeros((classes.size, inverse.size), np.float32)
    Y[np.array([unit[label] for label in labels.tolist()])[inverse], np.arange(inverse.size)] = 1
    return Y


def _numbers(y: np.ndarray, name: str) -> np.ndarray:
    """Return Y (n_L, m) in float32 from numbers."""
    if y.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers, got dtype {y.dtype}")
    Y = y.reshape(len(y), -1).T
    with np.errstate(over="ignore"):
        narrow = Y.astype(np.float32)
    nonfinite = np.argwhere(~np.isfinite(narrow))
    if nonfinite.size:
        j, i = nonfinite[0]
        raise ValueError(
            f"{name} must hold finite numbers within the range of float32, got {Y[j, i]:g} at"
            f" example {i}"
        )
    return narrow


def _one_hot(y: np.ndarray) -> bool:
    """Return whether y is a matrix of 0 and 1 with exactly one 1 per row."""
    binary = y.ndim == 2 and y.dtype.kind in "buif" and np.isin(y, (0, 1)).all()
    return bool(binary and (y.sum(axis=1) == 1).all())
