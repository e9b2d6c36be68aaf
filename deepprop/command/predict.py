"""deepprop predict: apply a saved network to examples."""

import argparse
import csv
import io
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deepprop as dp
from deepprop.command.data import load_examples, scaled
from deepprop.command.table_data import table_examples
from deepprop.command.targets import encoded
from deepprop.command.uncertainty import columns, from_arrays, with_uncertainty
from deepprop.command.words import (
    first_ten,
    format_score,
    metric_of,
    preparation_of,
    resolve,
    scaling_and_classes,
)
from deepprop.files.archive import atomic_write, check_writable
from deepprop.layers import Params
from deepprop.tables.read import is_table


def predict(args: argparse.Namespace) -> int:
    """Apply a saved network to examples, and print its score if they have labels."""
    if args.out is not None:
        check_writable(args.out)
    params = dp.load(args.model, own=[resolve(name) for name in args.own])
    scaling, classes, note = scaling_and_classes(args.model, params)
    preparation = preparation_of(args.model)
    if preparation is None:
        if args.id is not None or is_table(args.data):
            raise ValueError(
                f"{args.model} was not trained on a table: --data must be an .npz file"
            )
        x, y = load_examples(args.data)
        ids = None
    elif args.data is None:
        raise ValueError(f"{args.model} was trained on a table: --data must name one")
    else:
        x, y, ids, lines = table_examples(args.data, preparation, args.id, args.decimal)
        note += "".join(f"{label:10} {text}\n" for label, text in lines)
    X = scaled(x, scaling)
    added: tuple[list[str], np.ndarray] = [], np.empty((X.shape[1], 0))
    if args.uncertainty:
        posterior, unit = from_arrays(params, dp.load_extra(args.model), args.model)
        A, deviation = with_uncertainty(posterior, unit, X)
        added = columns(deviation, classes)
        if classes is None:
            note += f"deviation  {np.median(deviation):.4g} (median)\n"
    else:
        A = np.asarray(jax.jit(dp.predict)(params, X))
    score = ""
    if y is not None:
        try:
            score = _score(params, A, y, classes)
        except ValueError as error:
            if preparation is None:
                raise
            note += f"no score   {error}\n"  # a table's predictions don't need its targets
    answers = A.T if classes is None else classes[A.argmax(axis=0)]
    shown = answers[:, 0] if preparation is not None and classes is None else answers
    print(note, end="")
    print(f"{len(answers):,} prediction{'s' * (len(answers) > 1)}: {first_ten(shown)}{score}")
    if args.out is not None:
        found = answers.reshape(len(answers), -1)
        if args.uncertainty and ids is None:
            ids = np.arange(len(answers))
        name = args.id or ("example" if preparation is None else "row")
        rows = found if ids is None else _with_ids(name, ids, found, A, classes, added)
        with atomic_write(args.out) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            csv.writer(text, lineterminator="\n").writerows(rows)
            text.detach()
        print(f"saved      {args.out}")
    return 0


def _with_ids(
    name: str, ids: np.ndarray, answers: np.ndarray, A: np.ndarray, classes: np.ndarray | None,
    added: tuple[list[str], np.ndarray],
) -> Iterator[list[Any]]:  # fmt: skip
    """Yield the lines of predictions: a head; then ids, answers, what is added, probabilities."""
    of_classes = [] if classes is None else [f"probability of {label}" for label in classes]
    many = answers.shape[1]
    heads = ["prediction"] if many == 1 else [f"prediction {k + 1}" for k in range(many)]
    yield [name, *heads, *added[0], *of_classes]
    for i, row in enumerate(ids):
        yield [row, *answers[i], *added[1][i], *(A[:, i] if of_classes else [])]


def _score(params: Params, A: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> str:
    """Return the line with the metric of A (n_L, m) for the labels y of a file."""
    Y = encoded(y, classes, "y")
    if Y.shape != A.shape:
        raise ValueError(
            f"y must hold {A.shape[0]} numbers for {A.shape[1]} examples, got {y.shape}"
        )
    metric, measure = metric_of(params)
    return f"\n{metric} {format_score(metric, float(measure(jnp.asarray(A), jnp.asarray(Y))))}"
