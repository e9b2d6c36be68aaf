"""What the benchmark prints, writes and draws."""

import argparse
import datetime
import itertools
import os
import platform
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from contenders import BASE, CONTENDERS, on_gpu

RESULTS = str(Path(__file__).parent / "results")
PACKAGES = ["deepprop", "jax", "jaxlib", "optax", "numpy"]
PACKAGES += ["equinox", "flax", "keras", "torch", "scikit-learn"]
PACKAGES += ["opacus", "backpack-for-pytorch", "kfac-jax"]
LOOKS = [  # told apart without colour too; the colours are Okabe's and Ito's
    ("#000000", "o"), ("#0072B2", "s"), ("#56B4E9", "^"), ("#009E73", "v"),
    ("#E69F00", "D"), ("#D55E00", "P"), ("#CC79A7", "X"), ("#7F7F7F", "*"),
]  # fmt: skip
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]


class Network(NamedTuple):
    sizes: list
    batch_size: int
    steps: int  # an epoch

    def shape(self):
        if len(self.sizes) > 8:
            return f"{len(self.sizes) - 1} layers of {self.sizes[0]}"
        return "-".join(map(str, self.sizes))

    def operations(self):
        """Of the matrix products of a step: Z, dA and dW of each layer, but not dA[0]."""
        products = [n * k for n, k in itertools.pairwise(self.sizes)]
        return 2 * self.batch_size * (3 * sum(products) - products[0])


class Measured(NamedTuple):
    seconds: np.ndarray  # a step, round by round
    first_step: float
    temporary: int | None


class Machine(NamedTuple):
    rate: float  # operations a second of a matrix product
    others: float | None  # share of the processors that other processes had meanwhile


def ratios(measured):
    """Of each contender: its time by deepprop's, round by round."""
    return {name: m.seconds / measured[BASE].seconds for name, m in measured.items()}


def spread(values, form):
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(results):
    """One line a network: the median ratios."""
    rows = []
    for network, measured, _ in results.values():
        ratio = ratios(measured)
        cells = [f"{np.median(ratio[c]):.2f}" if c in ratio else "—" for c in CONTENDERS]
        rows.append([f"{network.shape()}, {network.batch_size}", *cells[1:]])
    return markdown(["network, batch", *list(CONTENDERS)[1:]], rows)


def table(results):
    """One line a network and contender: everything."""
    head = ["network, batch", "", "us a step: median (min to max)"]
    head += ["time by deepprop's: median (min to max)", "time to first step, s"]
    head += ["of the matrix-product rate", "peak temporary MB"]
    rows = []
    for name, (network, measured, machine) in results.items():
        ratio = ratios(measured)
        for contender, (seconds, first_step, temporary) in measured.items():
            rows.append([
                f"{name}: {network.shape()}, {network.batch_size}",
                contender,
                spread(1e6 * seconds, ",.0f"),
                spread(ratio[contender], ".2f"),
                f"{first_step:.2f}",
                f"{network.operations() / np.median(seconds) / machine.rate:.1%}",
                "—" if temporary is None else f"{temporary / 1e6:.2f}",
            ])  # fmt: skip
    return markdown(head, rows)


def today():
    return datetime.date.today().isoformat()


def stem(what):
    device = jax.devices()[0].device_kind.replace(" ", "-")
    return f"{what}-{today()}-jax-{jax.__version__}-{device}"


def folder(name):
    """The folder of that name, for `--out`: made when the options are read, not after the run."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def write(text, what, out):
    """The text as benchmarks/results/WHAT-DATE-jax-VERSION-DEVICE.md, or in the folder `out`."""
    path = out / f"{stem(what)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text, f"written to {path}", sep="\n")


def setting():
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} processors, {platform.machine()}"
    return f"{device}, Python {platform.python_version()}; {', '.join(found)}"


def text(results, rounds):
    full = " Matrix products in full float32 for all, no TensorFloat-32." if on_gpu() else ""
    return f"""# Training, {today()}

{setting()}.

Adam, float32, {rounds} rounds; in each, the contenders in a new order.{full}

## Time by deepprop's, medians

Above 1, `dp.fit` is faster.

{summary(results)}

## All that was measured

A ratio is of one round. Time to first step: building, tracing and compiling, with nothing compiled
by an earlier run, until a first step is done; imports aside. Peak temporary memory is what XLA
reserves beside arguments and results for the compiled program, which is an epoch of `dp.fit` and of
`jax.grad, scanned`, and a step of the others; "—" is not measured.

{table(results)}

## The machine meanwhile

The rate of a square matrix product in JAX, and how much of the processors other programs had: they
slow all, but most those whose threads wait for one another (PyTorch, scikit-learn), so that ratios
are to be trusted only where it is little.

{meanwhile(results)}
"""


def meanwhile(results):
    """One line a network: the machine during its rounds."""
    rows = []
    for name, (_, _, machine) in results.items():
        others = "—" if machine.others is None else f"{machine.others:.0%}"
        rows.append([name, f"{machine.rate / 1e9:,.0f}", others])
    return markdown(["network", "matrix product, GFLOP/s", "other programs"], rows)


def picture(results, path):
    """Time a step by deepprop's: a group a network, a marker a contender, whiskers min to max."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    peers = [name for name in CONTENDERS if name != BASE]
    figure, axes = plt.subplots(figsize=(9, 4.6), dpi=200, layout="constrained")
    frame(axes, results)
    for k, (peer, (colour, marker)) in enumerate(zip(peers, LOOKS, strict=True)):
        groups = [(i, ratios(result[1])) for i, result in enumerate(results.values())]
        drawn = [(i, ratio[peer]) for i, ratio in groups if peer in ratio]
        if not drawn:
            continue
        place = [i + (k - (len(peers) - 1) / 2) * 0.1 for i, _ in drawn]
        low, middle, high = np.transpose([np.quantile(r, [0, 0.5, 1]) for _, r in drawn])
        axes.errorbar(
            place, middle, (middle - low, high - middle),
            fmt=marker, color=colour, label=peer, markersize=6, elinewidth=1.2,
        )  # fmt: skip
    ticks = [t for t in TICKS if np.prod(np.array(axes.get_ylim()) / t - 1) < 0]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)
    print(f"drawn to {path}")


def frame(axes, results):
    """What stands around the markers: groups, names, the line of deepprop."""
    names = []
    for name, (network, *_) in results.items():
        shape = textwrap.fill(network.shape(), 16)
        names.append(f"{name}\nbatch {network.batch_size}\n{shape}")
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    for i in range(1, len(names)):
        axes.axvline(i - 0.5, color="0.85", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("time a step, dp.fit = 1\n(median, min to max)")
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.axhline(1, color="0.3", linewidth=1.5, zorder=1)
    axes.annotate("dp.fit", (1.005, 1), xycoords=("axes fraction", "data"), va="center")
