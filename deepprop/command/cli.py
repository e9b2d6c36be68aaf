"""The command line: its five commands, its exit status, and its errors of one line each."""

import argparse
import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

import jax

import deepprop as dp
from deepprop.command import audit, check, export, options, predict, train
from deepprop.command.kept_programs import default_folder, kept_programs
from deepprop.training.streams import tolerant_streams

GARBAGE = 100_000  # new objects from one collection to the next


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments; None for those of the process, which then belongs to the command.

    Returns:
        0 for success, 1 for a failure such as a wrong gradient, 2 for bad input, 130 for Ctrl-C.
    """
    if argv is None:  # imports and tracing make many objects, and little of it is garbage
        gc.freeze()
        gc.set_threshold(GARBAGE)
    with tolerant_streams(whole_process=argv is None) as out:
        try:
            status = _status(argv, whole_process=argv is None)
        except SystemExit as end:  # argparse exits after a help text or for bad options
            status = int(end.code or 0)
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            status = _fail(status or 1, f"standard output: {out.error}")
    return status


def _status(argv: Sequence[str] | None, *, whole_process: bool) -> int:
    """Run the command and return its exit status; print an error in one line."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        is_file = "data" in args and not unknown[0].startswith("-")
        hint = f"; did you mean --data {unknown[0]}?" if is_file else ""
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    keep = whole_process and not args.no_kept_programs
    try:
        _check_device()
        with kept_programs(default_folder() if keep else None):
            return int(args.command(args))
    except (dp.GradientError, FloatingPointError) as error:
        return _fail(1, str(error))
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
        return _fail(2, " ".join(_message(error).split()))
    except (MemoryError, RuntimeError) as error:  # JAX's, such as when memory runs out
        message = (str(error).splitlines() or [""])[0][:300]
        return _fail(1, f"{type(error).__name__}: {message}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted")


def _message(error: Exception) -> str:
    """Return the message of an error; for a file, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename!r}"
    return str(error)


def _check_device() -> None:
    """Raise unless JAX finds a device.

    Raises:
        RuntimeError: it finds none for the platforms in JAX_PLATFORMS.
    """
    try:
        jax.devices()
    except AssertionError:  # what JAX raises for cuda if there is no GPU
        asked_for = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise RuntimeError(f"jax found no device for JAX_PLATFORMS={asked_for}") from None


def _fail(status: int, message: str) -> int:
    """Print the message to standard error and return the status."""
    print(f"deepprop: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    """Return the parser, which stores the function of the chosen command as `command`."""
    parser = _Parser(
        prog="deepprop", description=dp.__doc__,
        epilog="Run 'deepprop COMMAND --help' for the options of a command.",
    )  # fmt: skip
    parser.add_argument(
        "--version", action="version", version=f"deepprop {dp.__version__}",
        help="show the version and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, title="commands", metavar="command")
    for name, does, add_options, command in (
        ("train", "train a network", options.train_options, train.train),
        ("predict", "apply a saved network to examples", options.predict_options, predict.predict),
        ("audit", "find labels that are probably wrong", options.audit_options, audit.audit),
        ("export", "write a saved network as a program that runs without deepprop",
         options.export_options, export.export),
        ("check", "compare gradients with central differences, parameter by parameter",
         options.check_options, check.check),
    ):  # fmt: skip
        sub = commands.add_parser(name, help=does)
        sub.set_defaults(command=command, parser=sub)
        add_options(sub)
        options.add_common_options(sub)
    return parser
