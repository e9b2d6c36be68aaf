"""Showing a run: printed lines, a progress bar, and plots."""

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deepprop._checks import missing
from deepprop.files.archive import atomic_write
from deepprop.signals.diagnosis import check_recorded
from deepprop.training.streams import Tolerant

MARKED = 60  # epochs; more have no markers in a picture
LAYER_PANELS = {
    "A": "size of A",
    "dZ": "norm of dZ",
    "update": "update / W",
    "dead": "share of dead units",
}


@contextmanager
def progress_bar(epochs: int) -> Iterator[Callable[[int, Mapping[str, float], Any], None]]:
    """Yield a callback that shows a progress bar: epochs, time left, and the latest costs.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 1], output="identity")
    >>> X = jnp.ones((1, 4))
    >>> with dp.progress_bar(epochs=3) as bar:  # doctest: +ELLIPSIS
    ...     fit = dp.fit(params, optax.sgd(0.1), X, X, epochs=3, batch_size=4,
    ...                  key=jax.random.key(1), callbacks=[bar])
    epoch 3/3 ...

    Args:
        epochs: the number of epochs.

    Yields:
        A function for `callbacks`.

    Raises:
        ImportError: rich is missing; the message says what to install.
    """
    with _bar("epoch {task.completed}/{task.total}", "{task.description}") as bar:
        task = bar.add_task("", total=epochs)

        def advance(epoch: int, row: Mapping[str, float], params: Any) -> None:
            values = (f"{name} {value:.4g}" for name, value in row.items() if np.ndim(value) == 0)
            bar.update(task, completed=epoch, description=", ".join(values))

        yield advance


@contextmanager
def epoch_lines(epochs: int) -> Iterator[Callable[[int, str], None]]:
    """Yield a function (epoch, line) to call after each epoch; about ten lines are printed.

    On a terminal, with rich installed, a progress bar is shown below them.

    Args:
        epochs: the number of epochs.
    """
    every = math.ceil(epochs / 10)

    def due(epoch: int) -> bool:
        return epoch == 1 or epoch % every == 0 or epoch == epochs

    out = Tolerant(sys.stdout)
    try:
        bar = _bar("epoch {task.completed}/{task.total}", transient=True)
    except ImportError:
        bar = None
    if bar is None or not out.isatty():
        yield lambda epoch, line: print(line, file=out, flush=True) if due(epoch) else None
        return
    with bar:
        task = bar.add_task("", total=epochs)

        def advance(epoch: int, line: str) -> None:
            if due(epoch):
                bar.console.print(line, highlight=False)
            bar.update(task, completed=epoch)

        yield advance


def _bar(before: str, *after: str, transient: bool = False) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise missing("a progress bar", "rich", "progress") from None
    columns = TextColumn(before), BarColumn(), TimeRemainingColumn(), *map(TextColumn, after)
    console = Console(file=Tolerant(sys.stdout))  # type: ignore[arg-type]
    return Progress(*columns, transient=transient, console=console)


def require_matplotlib(path: Path, option: str = "--plot") -> None:
    """Raise unless matplotlib is installed and can write the file's format.

    Args:
        path: the file to be written.
        option: what needs matplotlib, for the message.

    Raises:
        ImportError: it is missing; the message says what to install.
        ValueError: matplotlib can't write files with this ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing(option, "matplotlib", "plots") from None
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path} must end in one of {', '.join(sorted(formats))}")


def plot_curves(
    path: Path, history: Mapping[str, np.ndarray], metric: str, held_out: str, title: str
) -> None:
    """Plot the cost and a metric against the epoch, and save the picture.

    Args:
        path: the file; its ending determines the format.
        history: the history of a `Fit`, with "cost", "val_cost" and "val_" + metric.
        metric: the name of the metric, such as "accuracy".
        held_out: what to call the examples on which it was measured, such as "test".
        title: the title.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(as_title(title))
    curve_panels(figure.subplots(1, 2), history, metric, held_out)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def curve_panels(
    panels: Any, history: Mapping[str, np.ndarray], metric: str, held_out: str
) -> None:
    """Draw the cost and a metric against the epoch into two axes of matplotlib.

    Args:
        panels: the two axes.
        history: as for `plot_curves`, like the others.
        metric: the name of the metric.
        held_out: what to call the examples on which it was measured.
    """
    epochs = range(1, len(history["cost"]) + 1)
    marker = "." if len(epochs) <= MARKED else ""
    cost, score = panels
    cost.plot(epochs, history["cost"], "-", marker=marker, label="training")
    for axes, name in ((cost, "cost"), (score, metric)):
        axes.plot(epochs, history[f"val_{name}"], "C1--", marker=marker, label=held_out)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    if min(history["cost"].min(), history["val_cost"].min()) > 0:
        cost.set_yscale("log")


def plot_layers(path: str | Path, history: Mapping[str, np.ndarray], title: str = "") -> None:
    """Plot the health of each layer against the epoch, and save the picture.

    The panels are the size of A, the norm of dZ, the update over W, and the share of dead units.

    Args:
        path: the file; its ending determines the format.
        history: the history of a `Fit` with `record=dp.diagnose`.
        title: the title.

    Raises:
        ValueError: the history has no such record, or matplotlib can't write that format.
        ImportError: matplotlib is missing; the message says what to install.
        OSError: the file can't be written.
    """
    path = Path(path)
    require_matplotlib(path, "plot_layers")
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    check_recorded(history)
    epochs, _, L = history["dead"].shape
    figure = Figure(figsize=(9, 2.6 + 0.12 * L), layout="constrained")
    figure.suptitle(as_title(title))
    shown = {name: label for name, label in LAYER_PANELS.items() if name in history}
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, (name, label) in zip(panels, shown.items(), strict=True):
        values = np.concatenate(history[name]).T  # (L, entries)
        positive = values[(values > 0) & np.isfinite(values)]
        on_logarithms = name != "dead" and positive.size > 0
        low, high = (positive.min(), positive.max()) if on_logarithms else (0.0, 1.0)
        image = axes.imshow(
            values, aspect="auto", interpolation="nearest", extent=(0, epochs, L + 0.5, 0.5),
            norm=LogNorm(low, high) if on_logarithms else Normalize(low, high),
        )  # fmt: skip
        axes.set_title(label, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.yaxis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(image, ax=axes, location="bottom")
        bar.set_ticks([low, high], labels=[f"{low:.2g}", f"{high:.2g}"])
        bar.minorticks_off()
    panels[0].set_ylabel("layer")
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def as_title(text: str) -> str:
    """Wrap the text, and escape $, which would start a formula in matplotlib."""
    return textwrap.fill(text.replace("$", r"\$"), 100)
