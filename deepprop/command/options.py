"""The options of each command, their help texts, and what counts as a valid value."""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepprop._arguments import NORMALIZATIONS
from deepprop.activations import ACTIVATIONS
from deepprop.checking.run import FORMS
from deepprop.command import train
from deepprop.costs import COSTS, OUTPUTS
from deepprop.files.program import PLATFORMS
from deepprop.initialisers import INITIALISERS
from deepprop.optimizers.by_name import OPTIMIZERS, SCHEDULES

NARROW = ["bfloat16", "float16"]
DIGITS = "default: the handwritten digits that come with deepprop"


class _FormerName(argparse.Action):
    """An option under its former name: stores the value, and prints the new name."""

    def __call__(self, parser: Any, namespace: Any, value: Any, name: str | None = None) -> None:
        """Store the value under the new name."""
        print(f"{name} is now --{self.dest.replace('_', '-')}", file=sys.stderr)
        setattr(namespace, self.dest, value)


def train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `deepprop train`."""
    parser.usage = "%(prog)s [options]"
    parser.description = "Train a network, print its progress, and check its gradients at the end."
    _data_options(parser.add_argument_group("data"))
    network = parser.add_argument_group("network")
    _network_options(network, train.TRAINED, hidden="256,128", output="the one that suits the data")
    _depth_options(network)
    _optimizer_options(parser.add_argument_group("training"))
    _output_options(parser.add_argument_group("output"))


def _data_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data", metavar="FILE", help=".npz: the arrays x_train, y_train, x_test and y_test, or X"
        f" and y, with one example per row; .csv, .tsv or .parquet: a table, with --target"
        f" ({DIGITS})")  # fmt: skip
    _column_options(group, target="to predict")
    add("--standardize", action="store_true",
        help="scale each input to mean 0 and variance 1; of tables, all numbers are")  # fmt: skip
    add("--held-out", type=_positive, default=0.2, metavar="SHARE", help="share of the examples to"
        " hold out if the data has no test set (default: %(default)s)")  # fmt: skip
    add("--class-weights", choices=["balanced"], help="weight the classes equally, however many"
        " examples they have")  # fmt: skip
    add("--validation", type=_positive, metavar="SHARE", help="share of the training examples to"
        " measure on after each epoch, instead of the held-out ones (default: none; with --patience"
        f" or --search {train.VALIDATION})")  # fmt: skip


def _column_options(group: argparse._ArgumentGroup, target: str) -> None:
    """Add the options that say what the columns of a table are."""
    add = group.add_argument
    add("--target", metavar="COLUMN", help=f"the column of a table {target}")
    add("--categories", type=_names, default=[], metavar="COLUMN,...", help="columns of a table"
        " that hold categories, whatever they look like (default: those with text)")  # fmt: skip
    add("--numbers", type=_names, default=[], metavar="COLUMN,...", help="columns of a table that"
        " hold numbers; text counts as missing (default: those with numbers)")  # fmt: skip
    _decimal_option(group)
    add("--ignore", type=_names, default=[], metavar="COLUMN,...",
        help="columns of a table to leave out")  # fmt: skip


def _network_options(
    group: argparse._ActionsContainer, outputs: Iterable[str], hidden: str | None, output: str
) -> None:
    default = "16,12" if hidden is None else hidden
    group.add_argument(
        "--hidden", type=_sizes, default=hidden, metavar="N,N,...",
        help="units of each hidden layer; 64x20 means 20 layers of 64, none means no hidden layer"
        f" (default: {default})",
    )  # fmt: skip
    group.add_argument(
        "--activation", metavar="NAME",
        help=f"{', '.join(ACTIVATIONS)}, or module:name for your own; one name for all"
        " hidden layers, or one per hidden layer, separated by commas (default: relu)",
    )  # fmt: skip
    group.add_argument(
        "--output", metavar="NAME",
        help=f"{', '.join(outputs)}; activation+cost, where the costs are {', '.join(COSTS)}; or"
        f" module:name for your own (default: {output})",
    )  # fmt: skip


def _depth_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--init", choices=sorted(INITIALISERS), metavar="NAME", help="initial weights:"
        f" {', '.join(sorted(INITIALISERS))} (default: the one that suits each"
        " activation)")  # fmt: skip
    add("--residual", action="store_true", help="add the input of a hidden layer to its output"
        " where both have the same size, and store equal layers as a stack; deep networks need"
        " this, and a smaller --learning-rate")  # fmt: skip
    add("--keep", type=_keep, metavar="K", help="store equal hidden layers as a stack, keep A of"
        " every K-th layer for the backward pass, and recompute the others; 'sqrt' takes about"
        " the square root of their number")  # fmt: skip
    add(
        "--normalize",
        choices=NORMALIZATIONS,
        help="normalise what enters each layer but the"
        " first, over its units: layer to mean 0 and variance 1, rms to mean square 1",
    )
    add("--dropout", type=_share, default=0.0, metavar="P", help="in training, drop an entry of"
        " what enters each layer but the first with this probability"
        " (default: %(default)g)")  # fmt: skip
    add("--compute-dtype", choices=[*NARROW, "auto"], help="dtype of the factors of matrix"
        " products; auto measures whether bfloat16 is faster (default: float32)")  # fmt: skip
    add("--products", dest="compute_dtype", action=_FormerName, choices=NARROW,
        help=argparse.SUPPRESS)  # fmt: skip


def _optimizer_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adam", metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)} (default: %(default)s)")  # fmt: skip
    add("--learning-rate", type=_positive, metavar="RATE",
        help=f"default: {train.LEARNING_RATE}; kfac needs none")  # fmt: skip
    add("--schedule", choices=SCHEDULES, default="constant", metavar="NAME",
        help="schedule of the learning rate over all steps:"
        f" {', '.join(SCHEDULES)} (default: %(default)s)")  # fmt: skip
    add("--epochs", type=_count, metavar="N", help="passes through the training examples (default:"
        f" {train.EPOCHS}; for a small table, as many as make {train.STEPS:,} steps)")  # fmt: skip
    add("--batch-size", type=_count, metavar="N", help="examples per step (default:"
        f" {train.BATCH_SIZE}, or all if there are fewer)")  # fmt: skip
    add("--seed", type=_seed, default=0, metavar="N", help="seed of the held-out examples, the"
        " initial parameters and the order of the examples (default: %(default)s)")  # fmt: skip
    add("--search", type=_count, metavar="N", help="train N networks at once, with random learning"
        " rates and weight decays, and take the best by the validation cost")  # fmt: skip
    add("--patience", type=_count, metavar="EPOCHS", help="stop when the validation cost has not"
        " fallen for this many epochs, and return the network of the best epoch")  # fmt: skip


def _output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--save", type=Path, metavar="MODEL.npz", help="write the trained network, with the scaling"
        " and the classes")  # fmt: skip
    add("--uncertainty", action="store_true", help="also store the posterior of the last layer, for"
        " predict --uncertainty; the held-out or validation examples say how sure it may"
        " be")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FOLDER",
        help="write checkpoints there, and resume from the newest")  # fmt: skip
    add("--checkpoint-every", type=_count, default=1, metavar="EPOCHS",
        help="epochs from one checkpoint to the next (default: %(default)s)")  # fmt: skip
    add("--plot", type=Path, metavar="FILE.png",
        help="draw the cost and the accuracy of each epoch")  # fmt: skip
    add("--diagnose", type=Path, nargs="?", const=True, metavar="FILE.png", help="print the health"
        " of each layer at the first and the last recorded step; with a file, draw it"
        " too")  # fmt: skip
    add("--no-check", action="store_true",
        help="skip the gradient check at the end")  # fmt: skip


def predict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `deepprop predict`."""
    parser.add_argument("model", metavar="MODEL.npz", help="the saved network")
    parser.add_argument(
        "--data", metavar="FILE",
        help="the examples, x_test or X of an .npz file, and their labels if there are any; a table"
        f" if the network was trained on one ({DIGITS})",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="write every prediction, one example per line;"
        " of a table with the id of its row and the probability of each class"
    )  # fmt: skip
    parser.add_argument(
        "--uncertainty", action="store_true", help="account for the uncertainty of the parameters:"
        " numbers get a standard deviation, and class probabilities are averaged over it; the"
        " network must have been trained with --uncertainty"
    )  # fmt: skip
    _decimal_option(parser)
    parser.add_argument(
        "--id", metavar="COLUMN", help="the column of a table with the ids to write (default: the"
        " number of the row, from 1 below the names)"
    )  # fmt: skip
    _own_option(parser)


def audit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `deepprop audit`."""
    parser.usage = "%(prog)s [options]"
    parser.description = (
        "Find labels that are probably wrong: train networks on parts of the examples, let each"
        " judge the labels that it has not seen, and print the most suspicious ones."
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="FILE", help=".npz: x_train and y_train, or X and"
        f" y, one example per row; .csv, .tsv or .parquet: a table, with --target"
        f" ({DIGITS})")  # fmt: skip
    _column_options(data, target="with the labels")
    data.add_argument("--id", metavar="COLUMN", help="the column of a table with the ids to write"
        " (default: the number of the row, from 1 below the names)")  # fmt: skip
    add = parser.add_argument_group("networks").add_argument
    add("--hidden", type=_sizes, default="128", metavar="N,N,...",
        help="units of each hidden layer (default: %(default)s)")  # fmt: skip
    add("--folds", type=_count, default=5, metavar="N",
        help="parts; for each, a network is trained on the others (default:"
        " %(default)s)")  # fmt: skip
    add("--repeats", type=_count, default=2, metavar="N", help="times to divide and train; more are"
        " slower and a little better (default: %(default)s)")  # fmt: skip
    add("--epochs", type=_count, metavar="N",
        help="passes through the examples (default: as many as make 1,000 steps, at least"
        " 5)")  # fmt: skip
    add("--seed", type=_seed, default=0, metavar="N",
        help="seed of the parts, the parameters and the order of the examples (default:"
        " %(default)s)")  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="FILE.csv", help="write every example with its label, the label"
        " suggested instead, and the probability that it is wrong, the most suspicious"
        " first")  # fmt: skip
    add("--plot", type=Path, metavar="FILE.png",
        help="draw the most suspicious images with label and suggestion")  # fmt: skip


def export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `deepprop export`."""
    parser.description = (
        "Write a saved network as a StableHLO program, which runs without deepprop. The program"
        " takes raw inputs: it scales them itself."
    )
    parser.add_argument("model", metavar="MODEL.npz", help="the saved network")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="the file to write the program to"
    )
    parser.add_argument(
        "--platforms", default=",".join(PLATFORMS), metavar="NAME,NAME,...",
        help="platforms that the program runs on (default: %(default)s)",
    )  # fmt: skip
    _own_option(parser)


def check_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `deepprop check`."""
    parser.usage = "%(prog)s [MODEL.npz | --backward FILE.py:NAME] [options]"
    parser.description = (
        "Compare gradients with central differences, parameter by parameter: those of a saved"
        " network, of a new network with the given --hidden, --activation and --output, or, without"
        " arguments, of small networks with every activation, output and cost. With --backward,"
        " check a backward pass that you wrote, and explain what is wrong with it."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL.npz", help="a saved network")
    add = parser.add_argument
    add("--backward", metavar="FILE.py:NAME",
        help="your function of (parameters, X, Y) that returns the gradients")  # fmt: skip
    add("--parameters", choices=FORMS, default="dict", help="what it takes and returns: W1, b1, ..."
        " to dW1, db1, ...; pairs (W, b) to pairs (dW, db); or deepprop's layers"
        " (default: %(default)s)")  # fmt: skip
    _own_option(parser)
    _network_options(parser, OUTPUTS, hidden=None, output="softmax")
    add("--examples", type=_count, default=8, metavar="N",
        help="number of random examples, without --backward (default: %(default)s)")  # fmt: skip
    add("--sample", type=_count, metavar="N",
        help="number of parameters to check, evenly spread, without --backward"
        " (default: all)")  # fmt: skip
    add("--tolerance", type=_positive, default=1e-5, metavar="T",
        help="allowed relative error, without --backward (default: %(default)s)")  # fmt: skip
    add("--seed", type=_seed, default=0, metavar="N",
        help="seed of the parameters and the examples (default: %(default)s)")  # fmt: skip


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
    parser.add_argument(
        "--no-kept-programs", action="store_true",
        help="neither use compiled programs of earlier runs nor keep those of this one",
    )  # fmt: skip


def _decimal_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--decimal", choices=[".", ","], default=".",
        help="the decimal mark in a CSV file (default: %(default)s)",
    )  # fmt: skip


def _own_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--own", action="append", default=[], metavar="module:name",
        help="your own activation, cost or output in the saved network; repeat it for each one",
    )  # fmt: skip


def _names(text: str) -> list[str]:
    """Return the names between commas; a name with a comma is written in double quotes."""
    return [
        name.strip() for name in next(csv.reader([text], skipinitialspace=True)) if name.strip()
    ]


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(
            f"must be a whole number above 0 (and below 2^31), got {text!r}"
        )
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    """Return a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, got {text!r}")
    return value


def _keep(text: str) -> int | str:
    return text if text == "sqrt" else _count(text)


def _sizes(text: str) -> list[int]:
    """Return the units of each layer, from text such as 256,64x20: 64x20 means 20 layers of 64."""
    if text.strip() in ("", "none"):
        return []
    sizes = []
    for part in text.split(","):
        n, _, times = (piece.strip() for piece in part.partition("x"))
        if not n:
            raise argparse.ArgumentTypeError(
                f"must be numbers of units separated by commas, such as 256,64x20, got {text!r}"
            )
        sizes += [_count(n)] * _count(times or "1")
    return sizes
