"""Pictures of predictions: confusion and calibration of classes, or true and predicted numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepprop.command.scores import confusion
from deepprop.files.archive import atomic_write
from deepprop.training.report import as_title, curve_panels

BINS = 10  # of a calibration
NUMBERED = 12  # classes whose cells and ticks have text


def plot_predictions(
    path: Path, history: Mapping[str, np.ndarray], metric: str, held_out: str, title: str,
    A: np.ndarray, Y: np.ndarray, classes: np.ndarray | None,
) -> None:  # fmt: skip
    """Draw the learning curves, and below them two plots of the held-out predictions.

    Args:
        path: the file; its extension determines the format.
        history: as for `plot_curves`.
        metric: the name of the metric.
        held_out: the name of the examples on which it was measured.
        title: the title of the picture.
        A: (n_L, m), the predictions.
        Y: (n_L, m), the targets.
        classes: (n_L,), or None if Y is numbers.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.6), layout="constrained")
    figure.suptitle(as_title(title))
    panels = figure.subplots(2, 2)
    curve_panels(panels[0], history, metric, held_out)
    if classes is None:
        _true_and_predicted(panels[1][0], A[0], Y[0])
        _errors(panels[1][1], A[0] - Y[0])
    else:
        _confusion(panels[1][0], confusion(A, Y), classes)
        _calibration(panels[1][1], A, Y)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def _confusion(axes: Any, counts: np.ndarray, classes: np.ndarray) -> None:
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("confusion, held out", fontsize="medium")
    if len(classes) > NUMBERED:
        return
    labels = [str(label)[:12].replace("$", r"\$") for label in classes]
    turned = 45 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(len(labels)), labels, rotation=turned)
    axes.set_yticks(range(len(labels)), labels)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{count}", ha="center", va="center", color=colour, fontsize="small")


def calibration(A: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin examples by their highest probability, and compare it with the accuracy.

    Args:
        A: (n_L, m), probabilities.
        Y: (n_L, m), one-hot.

    Returns:
        Per bin that is not empty: the mean of the highest probability, the accuracy, and the number
        of examples.
    """
    sure, right = A.max(axis=0), A.argmax(axis=0) == Y.argmax(axis=0)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    used = counts > 0
    mean, share = (
        np.bincount(bins, weights, minlength=BINS)[used] / counts[used] for weights in (sure, right)
    )
    return mean, share, counts[used]


def _calibration(axes: Any, A: np.ndarray, Y: np.ndarray) -> None:
    mean, share, counts = calibration(A, Y)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.scatter(mean, share, s=12 + 200 * counts / counts.sum(), color="C0", zorder=2)
    axes.plot(mean, share, color="C0", linewidth=1)
    axes.set_xlabel("probability of the prediction")
    axes.set_ylabel("share that is right")
    axes.set_title("calibration, held out", fontsize="medium")
    axes.set_xlim(min(0.95 * mean.min(), 1 / len(A)), 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)


def _true_and_predicted(axes: Any, a: np.ndarray, y: np.ndarray) -> None:
    ends = min(a.min(), y.min()), max(a.max(), y.max())
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.scatter(y, a, s=10, alpha=0.6)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.set_title("true and predicted, held out", fontsize="medium")
    axes.grid(alpha=0.3)


def _errors(axes: Any, errors: np.ndarray) -> None:
    axes.hist(errors, bins=30)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_xlabel("predicted - true")
    axes.set_ylabel("held-out rows")
    axes.set_title("errors", fontsize="medium")
