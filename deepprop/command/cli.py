"""The command line: deepprop train, deepprop predict, deepprop export, deepprop check."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

import deepprop as dp
from deepprop.activations import ACTIVATIONS
from deepprop.command import check, export, predict, train
from deepprop.costs import COSTS, OUTPUTS
from deepprop.files.program import PLATFORMS
from deepprop.network import INITIALISERS
from deepprop.training.streams import tolerant_streams

NARROW = ["bfloat16", "float16"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failure, 2 for bad input.

    Args:
        argv: the arguments; None for those of the process, which then belongs to the command.
    """
    with tolerant_streams(whole_process=argv is None) as out:
        try:
            status = _status(argv)
        except SystemExit as end:  # argparse exits after a help text or for bad options
            status = int(end.code or 0)
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            status = _fail(status or 1, f"standard output: {out.error}")
    return status


def _status(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        _check_device()
        return int(args.command(args))
    except dp.GradientError as error:
        return _fail(1, str(error))
    except FloatingPointError as error:
        return _fail(1, str(error))
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
        return _fail(2, " ".join(str(error).split()))
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # JAX's, if the device's memory is too small
        message = (str(error).splitlines() or [""])[0][:300]
        return _fail(1, f"{type(error).__name__}: {message}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted")


def _check_device() -> None:
    """Raise unless JAX has a device.

    Raises:
        RuntimeError: it has none of those in JAX_PLATFORMS.
    """
    try:
        jax.devices()
    except AssertionError:  # JAX raises it for cuda without a GPU
        asked_for = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise RuntimeError(f"jax found no device for JAX_PLATFORMS={asked_for}") from None


def _fail(status: int, message: str) -> int:
    print(f"deepprop: {message}", file=sys.stderr)
    return status


class _FormerName(argparse.Action):
    """An option under its former name: stores the value, and prints the new name."""

    def __call__(self, parser: Any, namespace: Any, value: Any, name: str | None = None) -> None:
        """Store the value under the new name."""
        print(f"{name} is now --{self.dest.replace('_', '-')}", file=sys.stderr)
        setattr(namespace, self.dest, value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepprop", description=dp.__doc__)
    parser.add_argument("--version", action="version", version=f"deepprop {dp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add_command in (_add_train, _add_predict, _add_export, _add_check):
        add_command(commands.add_parser)
    return parser


def _add_train(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser("train", help="train a network")
    parser.set_defaults(command=train.train)
    _training_options(parser)


def _add_predict(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser("predict", help="apply a saved network to examples")
    parser.set_defaults(command=predict.predict)
    parser.add_argument("model", metavar="MODEL.npz")
    parser.add_argument("--data", metavar="FILE.npz", help="x_test or X, and labels if there are"
                         " any (default: the handwritten digits that ship)")  # fmt: skip
    _own_option(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write every prediction")


def _add_export(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "export", help="write a saved network as a program that runs without deepprop",
        description="StableHLO, by jax.export. The program takes raw, unscaled inputs.",
    )  # fmt: skip
    parser.set_defaults(command=export.export)
    parser.add_argument("model", metavar="MODEL.npz")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="to write it to")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), metavar="NAME,NAME,...",
                        help="to run on (default %(default)s)")  # fmt: skip
    _own_option(parser)


def _add_check(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "check", help="compare gradients with central differences, parameter by parameter",
        description="Without an argument: small networks with every activation, output and cost.",
    )  # fmt: skip
    parser.set_defaults(command=check.check)
    parser.add_argument("model", nargs="?", metavar="MODEL.npz", help="a saved network")
    _own_option(parser)
    _network_options(parser, hidden=None)
    parser.add_argument("--examples", type=_count, default=8, help="default %(default)s")
    parser.add_argument("--sample", type=_count, help="how many parameters (default: all)")
    parser.add_argument("--tolerance", type=_positive, default=1e-5, help="default %(default)s")
    parser.add_argument("--seed", type=_seed, default=0, help="default %(default)s")


def _training_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FILE.npz", help="x_train, y_train, x_test, y_test; or X and y, one"
        " example per row (default: the handwritten digits that ship)")  # fmt: skip
    add("--standardize", action="store_true", help="scale each input to mean 0 and variance 1")
    add("--held-out", type=_positive, default=0.2, metavar="SHARE", help="to hold out if there is"
        " no test set (default %(default)s)")  # fmt: skip
    _network_options(parser, hidden="256,128")
    add("--init", choices=sorted(INITIALISERS), help="default: the one that suits each activation")
    add("--residual", action="store_true", help="hidden layers with as many units as inputs add"
        " their input; equal ones are stored as a stack. Deep networks need this, and a smaller"
        " --learning-rate")  # fmt: skip
    add("--keep", type=_keep, metavar="K", help="store equal hidden layers as a stack, and A of"
        " every K-th for the backward pass, or sqrt; the others are computed again")  # fmt: skip
    add("--compute-dtype", choices=NARROW, help="dtype of the factors of matrix products (default:"
        " float32)")  # fmt: skip
    add(
        "--products",
        dest="compute_dtype",
        action=_FormerName,
        choices=NARROW,
        help=argparse.SUPPRESS,
    )
    add("--optimizer", choices=train.OPTIMIZERS, default="adam", help="default %(default)s")
    add("--learning-rate", type=_positive, help=f"default {train.LEARNING_RATE}; kfac needs"
        " none")  # fmt: skip
    add("--schedule", choices=train.SCHEDULES, default="constant", help="of the learning"
        " rate, over all steps (default %(default)s)")  # fmt: skip
    add("--epochs", type=_count, default=30, help="default %(default)s")
    add(
        "--batch-size",
        type=_count,
        help=f"default {train.BATCH_SIZE}, or all where there are fewer",
    )
    add("--seed", type=_seed, default=0, help="default %(default)s")
    add("--class-weights", choices=["balanced"], help="weight the classes equally, however many"
        " examples they have")  # fmt: skip
    add("--validation", type=_positive, metavar="SHARE", help="of the training examples to measure"
        " on after each epoch, instead of the held-out ones (default: none; with --patience"
        f" {train.VALIDATION})")  # fmt: skip
    add("--patience", type=_count, metavar="EPOCHS", help="stop when the validation cost has not"
        " fallen for that many, and return the best epoch")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FOLDER", help="write checkpoints there, and resume"
        " from the newest")  # fmt: skip
    add("--checkpoint-every", type=_count, default=1, metavar="EPOCHS", help="default %(default)s")
    add("--plot", type=Path, metavar="FILE.png", help="draw cost and accuracy, epoch by epoch")
    add("--diagnose", type=Path, nargs="?", const=True, metavar="FILE.png", help="print the health"
        " of each layer at the beginning and at the end; with a file, draw it")  # fmt: skip
    add("--save", type=Path, metavar="MODEL.npz", help="write the trained network")
    add("--no-check", action="store_true", help="skip the gradient check at the end")


def _network_options(parser: argparse.ArgumentParser, hidden: str | None) -> None:
    parser.add_argument(
        "--hidden", type=_sizes, default=hidden, metavar="N,N,...",
        help="units of each hidden layer, 64x20 for 20 of 64; none for no hidden layer"
        + (f" (default {hidden})" if hidden else ""),
    )  # fmt: skip
    parser.add_argument(
        "--activation", metavar="NAME",
        help=f"{', '.join(ACTIVATIONS)}; one, or one per hidden layer with commas; or module:name for"
        " one of your own (default relu)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="NAME",
        help=f"{', '.join(OUTPUTS)}, or activation+cost with the costs {', '.join(COSTS)}; or"
        " module:name (default: what fits the data)",
    )  # fmt: skip


def _own_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--own", action="append", default=[], metavar="module:name",
        help="an activation or a cost of your own that the saved network has",
    )  # fmt: skip


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


def _keep(text: str) -> int | str:
    return text if text == "sqrt" else _count(text)


def _sizes(text: str) -> list[int]:
    if text.strip() in ("", "none"):
        return []
    parts = [part.partition("x") for part in text.split(",")]
    return [_count(n.strip()) for n, _, times in parts for _ in range(_count(times.strip() or "1"))]
