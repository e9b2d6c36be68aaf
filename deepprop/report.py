"""What a person sees of a training run: lines, a progress bar, and curves."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepprop.files import atomic_write


@contextmanager
def epoch_lines(epochs: int) -> Iterator[Callable[[int, str], None]]:
    """A function (epoch, line) to call after each epoch; about ten of the lines are printed.

    Under them stands a progress bar, where rich is installed and there is a terminal.

    Args:
        epochs: how many there will be.
    """
    every = math.ceil(epochs / 10)

    def due(epoch: int) -> bool:
        return epoch == 1 or epoch % every == 0 or epoch == epochs

    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        bar = None
    else:
        columns = TextColumn("epoch {task.completed}/{task.total}"), BarColumn()
        bar = Progress(*columns, TimeRemainingColumn(), transient=True)
    if bar is None or not sys.stdout.isatty():
        yield lambda epoch, line: print(line, flush=True) if due(epoch) else None
        return
    with bar:
        task = bar.add_task("", total=epochs)

        def advance(epoch: int, line: str) -> None:
            if due(epoch):
                bar.console.print(line, highlight=False)
            bar.update(task, completed=epoch)

        yield advance


def require_matplotlib(path: Path) -> None:
    """Raise unless matplotlib is there and can write that file, before any work is done.

    Raises:
        ImportError: it is not; the message names the extra that brings it.
        ValueError: the ending of the file is no format that matplotlib writes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'deepprop[plots]'") from None
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path} must end in one of {', '.join(sorted(formats))}")


def plot_curves(path: Path, history: Sequence[dict[str, float]], metric: str, title: str) -> None:
    """Draw cost and metric against the epoch, for training and held-out data, into a file.

    Args:
        path: the picture; its ending says the format.
        history: a row an epoch, with "cost", "test cost", metric and "test " + metric.
        metric: "accuracy" or another name in the rows.
        title: what stands above.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.figure import Figure

    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))  # no mathematics in a file name
    for axes, name in zip(figure.subplots(1, 2), ("cost", metric), strict=True):
        for prefix, label, style in (("", "training", "-"), ("test ", "held out", "--")):
            values = [row[prefix + name] for row in history]
            axes.plot(epochs, values, style, marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    if min(row["cost"] for row in history) > 0:
        figure.axes[0].set_yscale("log")
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
