"""How good predictions are: what `deepprop` prints of the held-out rows of a table."""

import numpy as np

MOST = 12  # classes in a confusion table
WIDE = 14  # characters of a label in it


def class_scores(A: np.ndarray, Y: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy and log loss of probabilities A (n_L, m) for one-hot Y."""
    found, labels = A.argmax(axis=0), Y.argmax(axis=0)
    right = found == labels
    recalls = [right[labels == c].mean() for c in np.unique(labels)]
    p = np.clip(A[labels, np.arange(len(labels))], np.finfo(np.float32).eps, 1)
    return {
        "accuracy": float(right.mean()),
        "balanced accuracy": float(np.mean(recalls)),
        "log loss": float(-np.log(p).mean()),
    }


def number_scores(A: np.ndarray, Y: np.ndarray) -> dict[str, float]:
    """Return rmse, R2 and mean absolute error of predictions A (n_L, m) for Y.

    R2 = 1 - sum (Y - A)^2 / sum (Y - mean Y)^2, the mean over the rows of Y; nan if Y is constant.
    """
    r = Y.astype(np.float64) - A
    spread = np.square(Y - Y.mean(axis=1, keepdims=True)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - np.square(r).sum(axis=1) / spread, np.nan)
    return {
        "rmse": float(np.sqrt(np.square(r).mean())),
        "R2": float(r2.mean()),
        "mean absolute error": float(np.abs(r).mean()),
    }


def confusion(A: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return how many examples of each class (rows) are taken for each class (columns)."""
    n_L = len(A)
    pairs = Y.argmax(axis=0) * n_L + A.argmax(axis=0)
    counts: np.ndarray = np.bincount(pairs, minlength=n_L * n_L).reshape(n_L, n_L)
    return counts


def confusion_lines(A: np.ndarray, Y: np.ndarray, classes: np.ndarray) -> list[str]:
    """Return the confusion table as lines, or none if there are many classes."""
    if len(classes) > MOST:
        return []
    labels = [str(label)[:WIDE] for label in classes]
    counts = confusion(A, Y)
    width = max(map(len, [*labels, str(counts.max())])) + 2
    head = " " * width + "".join(f"{label:>{width}}" for label in labels)
    rows = [
        f"{label:>{width}}" + "".join(f"{count:{width}}" for count in row)
        for label, row in zip(labels, counts.tolist(), strict=True)
    ]
    return ["confusion  rows are the labels, columns the predictions", head, *rows]
