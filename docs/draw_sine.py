"""Draw the pictures of questions.md with its code: python docs/draw_sine.py."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import deepprop as dp
from deepprop.command.cli import main

DOCS = Path(__file__).parent
STATIC = DOCS / "_static"


def session() -> dict[str, Any]:
    """Run the blocks of the page, but for the audit; return their names."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in re.findall(r"```python\n(.*?)```", (DOCS / "questions.md").read_text(), re.S):
            if "dp.audit" not in block:
                exec(block, names)
    return names


def draw_sine(names: dict[str, Any]) -> None:
    """Draw the data, the mean, and the band of two standard deviations."""
    grid = np.linspace(-1.5, 1.5, 241)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, layers in zip(figure.subplots(1, 2, sharey=True), ("last", "all"), strict=True):
        posterior = names["posteriors"][layers]
        mean, variance = posterior.predict(grid[None])
        deviation = np.sqrt(variance + posterior.noise)[0]
        axes.fill_between(grid, mean[0] - 2 * deviation, mean[0] + 2 * deviation, alpha=0.3, lw=0)
        axes.plot(grid, mean[0])
        axes.plot(names["x"], names["y"], ".", color="black", markersize=3)
        axes.set_title(f'layers="{layers}"', fontsize="medium")
        axes.set_ylim(-4, 4)
    figure.savefig(STATIC / "sine.svg", metadata={"Date": None})


if __name__ == "__main__":
    of_page = session()
    draw_sine(of_page)
    dp.plot_attributions(
        STATIC / "attributions.png",
        of_page["images"],
        of_page["shares"],
        of_page["gradual"],
        names=["DeepLIFT", "integrated"],
    )
    main(["audit", "--plot", str(STATIC / "suspects.png")])
