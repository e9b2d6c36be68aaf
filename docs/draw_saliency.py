"""Draw _static/saliency.svg with the code of recipes.md: python docs/draw_saliency.py.

Each column is a digit of the test set. Below it are the saliency map and the integrated gradients
of its class, each divided by its largest entry: red is positive, blue is negative.
"""

import contextlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parent
EXAMPLES = 0, 3, 4, 9  # of the test set
DARK, RED, BLUE = (0x1D, 0x1D, 0x1B), (0xB5, 0x48, 0x2A), (0x1B, 0x6C, 0xA8)
LEVELS = 16  # of each color
CELL, GAP, LEFT, TOP = 15, 18, 236, 50


def session() -> dict[str, Any]:
    """Run the first block of the page and that of integrated gradients; return their names."""
    first, *blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / "recipes.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(first, names)
        exec(next(code for code in blocks if "def integrated_gradients" in code), names)
    return names


def color(value: float, above: tuple[int, ...], below: tuple[int, ...] = BLUE) -> str:
    """Return the color of a number in [-1, 1]: white for 0."""
    share = round(abs(value) * LEVELS) / LEVELS
    rgb = above if value > 0 else below
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in rgb)


def panel(pixels: np.ndarray, x: int, y: int, above: tuple[int, ...]) -> str:
    """Return the SVG of 8 x 8 numbers: one path per color."""
    cells = defaultdict(list)
    for (row, column), value in np.ndenumerate(pixels.reshape(8, 8) / np.abs(pixels).max()):
        cells[color(float(value), above)].append(f"M{column} {row}h1v1h-1z")
    paths = "".join(f'<path fill="{fill}" d="{"".join(d)}"/>' for fill, d in sorted(cells.items()))
    return f'<g transform="translate({x} {y}) scale({CELL})">{paths}</g>\n'


def picture() -> str:
    """Return the SVG."""
    names = session()
    jnp, params = names["jnp"], names["fit"].params
    width = LEFT + len(EXAMPLES) * (8 * CELL + GAP)
    height = TOP + 3 * (8 * CELL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="16" role="img"'
        ' aria-label="Saliency and integrated gradients of four digits">\n'
        f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12" fill="#fbfaf7"'
        ' stroke="#d8d4ca"/>\n<g fill="#1d1d1b">\n'
    ]
    for row, text in enumerate(("the digit", "saliency, dA[0]", "integrated gradients")):
        y = TOP + row * (8 * CELL + GAP) + 4 * CELL + 6
        parts.append(f'<text x="{LEFT - GAP}" y="{y}" text-anchor="end">{text}</text>\n')
    for column, example in enumerate(EXAMPLES):
        x, k = names["X_test"][:, example], int(names["labels_test"][example])
        left = LEFT + column * (8 * CELL + GAP)
        parts.append(f'<text x="{left + 4 * CELL}" y="32" text-anchor="middle">class {k}</text>\n')
        saliency = names["score"](params, x[:, None], k)[1][:, 0]
        attributions = names["integrated_gradients"](params, x, k)
        rows = ((jnp.asarray(x), DARK), (saliency, RED), (attributions, RED))
        for row, (pixels, above) in enumerate(rows):
            y = TOP + row * (8 * CELL + GAP)
            parts.append(panel(np.asarray(pixels), left, y, above))
    return "".join(parts) + "</g>\n</svg>\n"


if __name__ == "__main__":
    (DOCS / "_static" / "saliency.svg").write_text(picture())
