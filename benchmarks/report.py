"""Tables, texts, files and pictures of the benchmarks."""

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

from benchmarks.contenders import BASE, on_gpu

RESULTS = str(Path(__file__).parent / "results")
PACKAGES = ["deepprop", "jax", "jaxlib", "optax", "numpy"]
PACKAGES += ["equinox", "flax", "keras", "torch", "scikit-learn"]
PACKAGES += ["opacus", "backpack-for-pytorch", "kfac-jax"]
LOOKS = [  # distinct without colour as well; the colours are those of Okabe and Ito
    ("#000000", "o"), ("#0072B2", "s"), ("#56B4E9", "^"), ("#009E73", "v"),
    ("#E69F00", "D"), ("#D55E00", "P"), ("#CC79A7", "X"), ("#7F7F7F", "*"),
]  # fmt: skip
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]


class Network(NamedTuple):
    """A network and its training."""

    sizes: list
    batch_size: int
    steps: int  # per epoch

    def shape(self):
        """Return the sizes in words, such as "784-32-10"."""
        if len(self.sizes) > 8:
            return f"{len(self.sizes) - 1} layers of {self.sizes[0]}"
        return "-".join(map(str, self.sizes))

    def operations(self):
        """Count the operations of a step's products: Z, dA and dW of each layer, without dA[0]."""
        products = [n * k for n, k in itertools.pairwise(self.sizes)]
        return 2 * self.batch_size * (3 * sum(products) - products[0])


class Measured(NamedTuple):
    """The measurements of one contender."""

    seconds: np.ndarray  # per step, round by round
    first_step: float  # seconds until the first step is done
    temporary: int | None  # bytes


class Machine(NamedTuple):
    """The machine during the rounds of one network."""

    rate: float  # operations per second of a matrix product
    others: float | None  # share of the processors that other processes used


def ratios(measured):
    """Return the time of each contender relative to deepprop's, round by round."""
    return {name: m.seconds / measured[BASE].seconds for name, m in measured.items()}


def peers(results):
    """Return the names of all contenders except deepprop's, in their order."""
    names = dict.fromkeys(name for _, measured, _ in results.values() for name in measured)
    return [name for name in names if name != BASE]


def spread(values, form):
    """Return the median, with minimum and maximum in brackets."""
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


def markdown(head, rows):
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(results):
    """Return the table of median ratios, a line per network."""
    rows = []
    for network, measured, _ in results.values():
        ratio = ratios(measured)
        cells = [f"{np.median(ratio[c]):.2f}" if c in ratio else "—" for c in peers(results)]
        rows.append([f"{network.shape()}, {network.batch_size}", *cells])
    return markdown(["network, batch", *peers(results)], rows)


def table(results):
    """Return the table of all measurements, a line per network and contender."""
    head = ["network, batch", "", "us per step: median (min to max)"]
    head += ["time relative to deepprop's: median (min to max)", "time to first step, s"]
    head += ["share of the matrix-product rate", "peak temporary MB"]
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
    """Return the date, such as "2026-11-23"."""
    return datetime.date.today().isoformat()


def stem(what):
    """Return the name of a result without its ending: WHAT-DATE-jax-VERSION-DEVICE."""
    device = jax.devices()[0].device_kind.replace(" ", "-")
    return f"{what}-{today()}-jax-{jax.__version__}-{device}"


def folder(name):
    """Return the folder for `--out`, created now: a bad name must fail before the run, not after."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def arguments(doc, networks, rounds, flags=()):
    """Return the arguments of a benchmark of several networks: networks, rounds, out and flags."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(networks), metavar="NETWORK",
                        help=f"some of {', '.join(networks)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=folder, default=RESULTS)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(networks):
        parser.error(f"unknown network: {', '.join(unknown)}")
    return args


def write(text, what, out):
    """Write the text to WHAT-DATE-jax-VERSION-DEVICE.md in the folder `out`, and print it."""
    path = out / f"{stem(what)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text, f"written to {path}", sep="\n")


def setting():
    """Return the device, the Python version and the packages, in a line."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} processors, {platform.machine()}"
    return f"{device}, Python {platform.python_version()}; {', '.join(found)}"


def text(results, rounds, precision):
    """Return the report of training.py."""
    full = " All matrix products are in full float32, without TensorFloat-32." if on_gpu() else ""
    name = "Training" if precision == "float32" else f"Training in {precision}"
    return f"""# {name}, {today()}

{setting()}.

Adam, {precision}, {rounds} rounds, each in a new order of the contenders.{full}

## Time relative to deepprop's, medians

Above 1, `dp.fit` is faster.

{summary(results)}

## All measurements

Ratios are taken within a round. The time to the first step covers building, tracing and compiling,
with empty compilation caches, and one step; imports are excluded. Peak temporary memory is what XLA
reserves for the compiled program besides arguments and results. That program is an epoch for
`dp.fit` and `jax.grad, scanned`, and a step for the others. "—" means not measured.

{table(results)}

## The machine during the rounds

The rate of a square matrix product in JAX, and the share of the processors that other programs used.
Other programs slow down all contenders, most of all those whose threads wait for one another
(PyTorch, scikit-learn). Trust the ratios only if this share is small.

{meanwhile(results)}
"""


def meanwhile(results):
    """Return the table of the machine, a line per network."""
    rows = []
    for name, (_, _, machine) in results.items():
        others = "—" if machine.others is None else f"{machine.others:.0%}"
        rows.append([name, f"{machine.rate / 1e9:,.0f}", others])
    return markdown(["network", "matrix product, GFLOP/s", "other programs"], rows)


def picture(results, path):
    """Draw times relative to deepprop's: a group per network, a marker per contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = peers(results)
    figure, axes = plt.subplots(figsize=(9, 4.6), dpi=200, layout="constrained")
    frame(axes, results)
    for k, (peer, (colour, marker)) in enumerate(zip(names, LOOKS, strict=False)):
        groups = [(i, ratios(result[1])) for i, result in enumerate(results.values())]
        drawn = [(i, ratio[peer]) for i, ratio in groups if peer in ratio]
        if not drawn:
            continue
        place = [i + (k - (len(names) - 1) / 2) * 0.1 for i, _ in drawn]
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
    """Draw everything except the markers: the groups, their names and the line of dp.fit."""
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
    axes.set_ylabel("time per step, dp.fit = 1\n(median, min to max)")
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.axhline(1, color="0.3", linewidth=1.5, zorder=1)
    axes.annotate("dp.fit", (1.005, 1), xycoords=("axes fraction", "data"), va="center")
