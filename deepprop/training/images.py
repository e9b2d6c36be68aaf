"""Pictures of examples that are images: what their inputs contributed, and suspicious labels."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from deepprop._checks import real_array
from deepprop.files.archive import atomic_write
from deepprop.training.report import as_title, require_matplotlib

ACROSS = 10  # images in a row


def plot_attributions(
    path: str | os.PathLike[str],
    X: ArrayLike,
    *shares: ArrayLike,
    names: Sequence[str] = (),
    titles: Sequence[str] = (),
    shape: Sequence[int] | None = None,
) -> None:
    """Draw examples as images, with the shares of their pixels below them, and save the picture.

    Red pixels raised the score, blue ones lowered it. Each map is scaled by its largest absolute
    value.

    Args:
        path: the file; its ending determines the format.
        X: (n_0, m), the examples, one column of the picture for each.
        shares: arrays (n_0, m), such as `deep_lift` and `integrated_gradients` return, one row of
            the picture for each.
        names: of the rows of shares.
        titles: of the examples.
        shape: (height, width) or (height, width, 3) of an image; None takes a square.

    Raises:
        ValueError: the arrays have different shapes, or are not images of that shape; or matplotlib
            can't write that format.
        TypeError: they are not real numbers, or `path` is not a path, or names or titles are one
            text.
        ImportError: matplotlib is missing; the message says what to install.
        OSError: the file can't be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be that of the file to write, got {type(path).__name__}")
    path = Path(path)
    require_matplotlib(path, "plot_attributions")
    arrays = [np.asarray(real_array(f"shares[{i}]", given)) for i, given in enumerate(shares)]
    pixels = np.asarray(real_array("X", X))
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(
            f"X must have shape (n_0, m), one example per column, got shape {pixels.shape}"
        )
    if isinstance(names, str) or isinstance(titles, str):
        raise TypeError('names and titles must be lists, such as ["DeepLIFT"], got one text')
    if len(names) > len(arrays):
        raise ValueError(f"names must be at most {len(arrays)}, one per row, got {len(names)}")
    for i, array in enumerate(arrays):
        if array.shape != pixels.shape:
            raise ValueError(
                f"shares[{i}] must have the shape of X, {pixels.shape}, got {array.shape}"
            )
    size = image_shape(len(pixels), shape)
    panels, figure = _panels(1 + len(arrays), pixels.shape[1])
    for column in range(pixels.shape[1]):
        _image(panels[0][column], pixels[:, column].reshape(size))
        if column < len(titles):
            panels[0][column].set_title(as_title(str(titles[column])), fontsize="small")
        for row, array in enumerate(arrays, start=1):
            _shares(panels[row][column], array[:, column].reshape(size))
    for row, name in enumerate(names, start=1):
        panels[row][0].set_ylabel(name, fontsize="small")
    _save(figure, path)


def plot_suspects(path: Path, images: np.ndarray, titles: Sequence[str], title: str) -> None:
    """Draw images with a title each, such as a label and what is suggested instead.

    Args:
        path: the file; its ending determines the format.
        images: (examples, height, width) or (examples, height, width, 3).
        titles: one for each.
        title: of the picture.

    Raises:
        OSError: the file can't be written.
    """
    across = min(ACROSS, len(images))
    panels, figure = _panels(math.ceil(len(images) / across), across)
    figure.suptitle(as_title(title))
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, image, text in zip(panels.flat, images, titles, strict=False):
        _image(axes, image)
        axes.set_title(as_title(text), fontsize="small")
    _save(figure, path)


def image_shape(n_0: int, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the shape of an image of n_0 numbers: the one given, or a square.

    Raises:
        ValueError: n_0 numbers don't make such an image.
    """
    side = math.isqrt(n_0)
    size = (side, side) if shape is None else tuple(map(int, shape))
    colors = len(size) == 2 or (len(size) == 3 and size[2] == 3)
    if not colors or math.prod(size) != n_0:
        due = "(height, width) or (height, width, 3)"
        if shape is None:
            raise ValueError(f"{n_0} numbers per example are not a square image: give shape={due}")
        raise ValueError(f"shape must be the {due} of an image of {n_0} numbers, got {shape}")
    return size


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * columns + 0.4, 1.25 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return panels, figure


def _image(axes: Any, image: np.ndarray) -> None:
    low, high = float(image.min()), float(image.max())
    unit = (image - low) / ((high - low) or 1.0)
    axes.imshow(unit, cmap="gray_r", vmin=0, vmax=1)


def _shares(axes: Any, shares: np.ndarray) -> None:
    total = shares.sum(axis=2) if shares.ndim == 3 else shares
    largest = float(np.abs(total).max()) or 1.0
    axes.imshow(total, cmap="bwr", vmin=-largest, vmax=largest)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
