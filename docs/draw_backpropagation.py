"""Draw _static/one_unit.svg and _static/outer_products.svg: python docs/draw_backpropagation.py.

The first is one unit forward and backward. The second is dW[1] of the network of backpropagation.md
as the mean of three outer products, with its numbers.
"""

from pathlib import Path

import numpy as np

STATIC = Path(__file__).parent / "_static"
UP, DOWN, INK, LINE = "#1b6ca8", "#b5482a", "#1d1d1b", "#8a877f"
FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"


def document(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return an SVG document on a white ground, which dark pages need."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{title}" font-family="{FONT}" font-size="17">'
    )
    marks = "".join(
        f'<marker id="{name}" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        f'<path d="M0 0L9 4L0 8z" fill="{color}"/></marker>'
        for name, color in (("up", UP), ("down", DOWN))
    )
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, f"<defs>{marks}</defs>", ground, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, color: str = INK, anchor: str = "middle") -> str:
    """Return a line of text, with a white edge so that it can lie on an arrow."""
    edge = 'stroke="white" stroke-width="6" paint-order="stroke"'
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}" {edge}>{words}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return an arrow of the forward ("up") or backward ("down") pass."""
    color = UP if kind == "up" else DOWN
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}"'
        f' stroke-width="2" marker-end="url(#{kind})"/>'
    )


def circle(x: float, y: float, words: str) -> str:
    """Return a circle with a name in it."""
    ring = f'<circle cx="{x:g}" cy="{y:g}" r="27" fill="#f1efea" stroke="{LINE}" stroke-width="2"/>'
    return ring + text(x, y + 6, words)


def one_unit() -> str:
    """Return the picture of one unit: a forward above, dz backward below each arrow."""
    parts = []
    for y, name in ((50, "a₁"), (180, "a₂"), (310, "a₃")):
        k = name[-1]
        end = 180 + (y - 180) * 0.12
        parts += [arrow(74, y - 6, 290, end - 8, "up"), arrow(288, end + 8, 76, y + 8, "down")]
        for share, shift, words, color in (
            (0.3, -2, f"w{k} a{k}", UP),
            (0.68, 14, f"dz w{k}", DOWN),
        ):
            parts += [text(74 + 216 * share, y + (end - y) * share + shift, words, color)]
        parts += [circle(45, y, name)]
    parts += [arrow(346, 174, 484, 174, "up"), arrow(484, 188, 348, 188, "down")]
    parts += [text(415, 162, "g(z)", UP), text(415, 212, "da · g'(z)", DOWN)]
    parts += [arrow(542, 174, 600, 174, "up"), arrow(600, 188, 544, 188, "down")]
    parts += [text(625, 172, "L", UP), text(627, 196, "da", DOWN)]
    parts += [circle(317, 180, "z"), circle(513, 180, "a")]
    parts += [
        text(317, 250, "dz", DOWN),
        text(317, 300, "dwₖ = dz aₖ", DOWN),
        text(317, 325, "db = dz", DOWN),
    ]
    return document(
        660, 345, "One unit: its sum and output forward, their derivatives backward", parts
    )


def worked() -> tuple[np.ndarray, np.ndarray]:
    """Return dZ[1] and X of the network of the page."""
    X, Y = np.array([[1.0, 2, -1], [0, 1, 1]]), np.array([[1.0, 0, 0]])
    W1, b1 = np.array([[1.0, -1], [0.5, 1], [-1, 0.5]]), np.array([[0.0], [0.5], [0.5]])
    W2, b2 = np.array([[1.0, -1, 0.5]]), 0.25
    Z1 = W1 @ X + b1
    A2 = 1 / (1 + np.exp(-(W2 @ np.maximum(0, Z1) + b2)))
    return W2.T @ (A2 - Y) * (Z1 > 0), X


def matrix(x: float, y: float, P: np.ndarray, color: str) -> str:
    """Return a matrix of numbers with its left upper corner at (x, y)."""
    n, k = P.shape
    cells = [
        text(
            x + 66 * (j + 1) - 8,
            y + 26 * i + 19,
            f"{P[i, j] + 0.0:.2f}".replace("-", "\u2212"),
            color,
            "end",
        )
        for i in range(n)
        for j in range(k)
    ]
    w, h = 66 * k + 4, 26 * n + 4
    sides = "".join(
        f'<path d="M{a:g} {y:g}H{b:g}V{y + h:g}H{a:g}" fill="none" stroke="{LINE}"/>'
        for a, b in ((x + 8, x), (x + w - 8, x + w))
    )
    return sides + "".join(cells)


def outer_products() -> str:
    """Return the picture of dW[1]: three outer products, one below the other, and their mean."""
    dZ, X = worked()
    parts = []
    for i in range(X.shape[1]):
        y = 20 + 105 * i
        dz, x = dZ[:, i : i + 1], X[:, i : i + 1]
        parts += [text(14, y + 48, f"i = {i + 1}", anchor="start"), matrix(90, y, dz, DOWN)]
        parts += [matrix(180, y + 26, x.T, UP), text(345, y + 48, "=")]
        parts += [matrix(370, y, dz @ x.T, INK)]
    y = 20 + 105 * 3
    parts += [f'<line x1="14" y1="{y - 10}" x2="515" y2="{y - 10}" stroke="{LINE}"/>']
    parts += [text(14, y + 48, "dW[1] = 1/3 of their sum", anchor="start"), text(345, y + 48, "=")]
    parts += [matrix(370, y, dZ @ X.T / X.shape[1], INK)]
    return document(530, y + 100, "dW as the mean of the outer products of three examples", parts)


if __name__ == "__main__":
    for name, draw in (("one_unit", one_unit), ("outer_products", outer_products)):
        (STATIC / f"{name}.svg").write_text(draw())
