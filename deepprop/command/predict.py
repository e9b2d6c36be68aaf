"""deepprop predict: apply a saved network to examples."""

import argparse
import csv
import io

import jax
import jax.numpy as jnp
import numpy as np

import deepprop as dp
from deepprop.command.data import load_examples, scaled
from deepprop.command.targets import encoded
from deepprop.command.words import (
    first_ten,
    format_score,
    metric_of,
    resolve,
    scaling_and_classes,
)
from deepprop.files.archive import atomic_write, check_writable
from deepprop.layers import Params


def predict(args: argparse.Namespace) -> int:
    """Apply a saved network to examples, and print its score if they have labels."""
    if args.out is not None:
        check_writable(args.out)
    params = dp.load(args.model, own=[resolve(name) for name in args.own])
    scaling, classes, note = scaling_and_classes(args.model, params)
    x, y = load_examples(args.data)
    A = np.asarray(jax.jit(dp.predict)(params, scaled(x, scaling)))
    score = "" if y is None else _score(params, A, y, classes)
    answers = A.T if classes is None else classes[A.argmax(axis=0)]
    print(note, end="")
    print(f"{len(answers):,} predictions: {first_ten(answers)}{score}")
    if args.out is not None:
        with atomic_write(args.out) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            csv.writer(text, lineterminator="\n").writerows(answers.reshape(len(answers), -1))
            text.detach()
        print(f"saved      {args.out}")
    return 0


def _score(params: Params, A: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> str:
    """Return the line with the metric of A (n_L, m) for the labels y of a file."""
    Y = encoded(y, classes, "y")
    if Y.shape != A.shape:
        raise ValueError(
            f"y must hold {A.shape[0]} numbers for {A.shape[1]} examples, got {y.shape}"
        )
    metric, measure = metric_of(params)
    return f"\n{metric} {format_score(metric, float(measure(jnp.asarray(A), jnp.asarray(Y))))}"
