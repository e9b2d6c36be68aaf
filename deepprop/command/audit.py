"""deepprop audit: which labels of a file are probably wrong."""

import argparse
import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax

import deepprop as dp
from deepprop.command.labels import Labelled, labelled_archive, labelled_table
from deepprop.command.train import check_paths
from deepprop.files.archive import atomic_write
from deepprop.tables.read import is_table
from deepprop.training.images import image_shape, plot_suspects
from deepprop.training.label_audit import foresight

SHOWN = 10  # examples printed
DRAWN = 50  # images in the picture
LONGEST = 8  # letters of a label above an image


def audit(args: argparse.Namespace) -> int:
    """Audit the labels of a file, print the most suspicious ones, and write all scores."""
    check_paths({"--out": args.out, "--plot": args.plot})
    data = _data(args)
    shape, m = None if args.plot is None else _shape(data), data.X.shape[1]
    if not 2 <= args.folds <= m:
        raise ValueError(f"--folds must be from 2 to {m:,} for {m:,} examples, got {args.folds}")
    print(f"data       {data.name}: {m:,} examples, {data.X.shape[0]} inputs")
    for label, text in data.notes:
        print(f"{label:10} {text}")
    networks = args.folds * args.repeats
    print(
        f"labels     {len(data.classes)} classes; {networks} networks judge what they have not seen"
    )
    found = dp.audit(
        data.X, data.Y, key=jax.random.key(args.seed), network=args.hidden, folds=args.folds,
        repeats=args.repeats, epochs=args.epochs,
    )  # fmt: skip
    print(_table(found, data))
    if args.out is not None:
        with atomic_write(args.out) as file:
            lines = io.TextIOWrapper(file, "utf-8", newline="")
            csv.writer(lines, lineterminator="\n").writerows(_lines(found, data))
            lines.detach()
        print(f"saved      {args.out}")
    if args.plot is not None:
        _plot(args.plot, found, data, shape)
        print(f"picture    {args.plot}")
    return 0


def _shape(data: Labelled) -> tuple[int, ...]:
    """Return the shape of an image.

    Raises:
        ValueError: the examples are not images.
    """
    if data.row is not None:
        raise ValueError(f"--plot needs images, and {data.name} is a table")
    try:
        return image_shape(len(data.X), data.shape)
    except ValueError as error:
        raise ValueError(f"--plot needs images: {error}") from None


def _data(args: argparse.Namespace) -> Labelled:
    """Return the examples of a table, of an archive of arrays, or the digits."""
    if args.target is not None or is_table(args.data):
        return labelled_table(args)
    for option in ("categories", "numbers", "ignore", "id"):
        if getattr(args, option):
            raise ValueError(f"--{option} needs a table and --target")
    return labelled_archive(args.data)


def _table(found: dp.Audit, data: Labelled) -> str:
    """Return the most suspicious examples as text; of a table, with the values of their rows."""
    lines = [[data.id, "label", "suggested", "score"]]
    lines += [[str(value) for value in line] for line in islice(_rows(found, data), SHOWN)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(f"{value:>{w}}" for value, w in zip(line, widths, strict=True)) for line in lines
    ]
    if data.row is not None:
        shown = found.example[: len(text) - 1]
        text[1:] = [f"{line}  {data.row(i)}" for line, i in zip(text[1:], shown, strict=True)]
    wrong = f"{found.score.sum():,.0f} of {len(found.score):,}"
    text.append(f"wrong      about {wrong} labels, by the sum of the scores")
    return "\n".join([*text, f"networks   {foresight(found)}"])


def _lines(found: dp.Audit, data: Labelled) -> Iterator[list[Any]]:
    """Yield the lines of the file: a head, then an example each, the most suspicious first."""
    yield [data.id, "label", "suggested", "score"]
    yield from _rows(found, data)


def _rows(found: dp.Audit, data: Labelled) -> Iterator[list[Any]]:
    for i, y, k, score in zip(
        found.example, found.label, found.suggested, found.score, strict=True
    ):
        yield [data.ids[i], data.classes[y], data.classes[k], f"{score:.4f}"]


def _title(label: str, suggested: str) -> str:
    """Return a label and a suggestion, cut so that they fit above an image."""
    words = [
        word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
        for word in (label, suggested)
    ]
    return " \N{RIGHTWARDS ARROW} ".join(words)


def _plot(path: Any, found: dp.Audit, data: Labelled, shape: Any) -> None:
    shown = min(DRAWN, len(found.example))
    images = data.X.T[found.example[:shown]].reshape(shown, *shape)
    pairs = zip(found.label[:shown], found.suggested[:shown], strict=True)
    titles = [_title(str(data.classes[y]), str(data.classes[k])) for y, k in pairs]
    plot_suspects(path, images, titles, f"{data.name}: label \N{RIGHTWARDS ARROW} suggestion")
