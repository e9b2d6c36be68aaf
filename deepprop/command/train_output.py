"""What `deepprop train` prints beside the lines of its epochs."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import deepprop as dp
from deepprop.command.data import Data, HeldOut
from deepprop.command.scores import class_scores, confusion_lines, number_scores
from deepprop.command.units import predictions
from deepprop.command.words import describe, format_score, metric_of
from deepprop.layers import Params
from deepprop.signals.diagnosis import _of_inputs, diagnosis_of
from deepprop.training.measure import measure_of
from deepprop.training.report import plot_layers

History = Mapping[str, np.ndarray]


def print_setup(args: argparse.Namespace, data: Data, held_out: HeldOut, params: Params) -> None:
    """Print the version, the data, the network and the settings, and the head of the table."""
    m, m_test = data.X.shape[1], data.X_test.shape[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    kind = "classes" if data.classes is not None else "target" + "s" * (len(data.Y) > 1)
    device = jax.devices()[0]
    validation = (
        f" {held_out.X.shape[1]:,} to validate on," if held_out.name == "validation" else ""
    )
    schedule = "" if args.schedule == "constant" else f" ({args.schedule})"
    rate = (
        f"learning rate {args.learning_rate:g}{schedule}"
        if args.learning_rate
        else "no learning rate"
    )
    print(f"deepprop {dp.__version__}, jax {jax.__version__} on {device.device_kind}")
    print(
        f"data       {data.name}: {m:,} to train on,{validation} {m_test:,} held out,"
        f" {data.X.shape[0]:,} inputs, {data.Y.shape[0]:,} {kind}"
    )
    for label, text in data.notes:
        print(f"{label:10} {text}")
    print(f"targets    {data.targets}")
    if data.preparation is None:  # otherwise they are scaled
        for line in _input_findings(data.X, args.standardize):
            print(line)
    print(f"network    {describe(params)}; {size:,} parameters")
    if args.compute_dtype is not None:
        chosen = ", the faster one here" if args.compute_dtype == "auto" else ""
        print(f"products   of {params[0].compute_dtype or 'float32'} factors{chosen}")
    print(
        f"training   {args.optimizer}, {rate}, {args.epochs} epoch{'s' * (args.epochs > 1)} of"
        f" {-(-m // args.batch_size)} steps of {args.batch_size} examples, seed {args.seed}\n"
    )
    score = "" if args.search else f"{metric_of(params)[0]:>10}"
    print(f"{'training':>16} {held_out.name:>16}")
    print(f"epoch {'cost':>10} {'cost':>16} {score}".rstrip(), flush=True)


def _input_findings(X: np.ndarray, standardized: bool) -> list[str]:
    """Return the lines of `diagnose` about badly scaled inputs, with the option that helps."""
    sizes = np.sqrt(np.mean(np.square(X, dtype=np.float64), axis=1))
    used = sizes[sizes > 0]
    median = float(np.median(used)) if used.size else 0.0
    found = _of_inputs(np.array([np.sqrt(np.mean(sizes**2)), median, sizes.max()]))
    option = "" if standardized else " (--standardize)"
    return [f"inputs     {finding.removeprefix('inputs: ')}{option}" for finding in found]


def print_result(args: argparse.Namespace, data: Data, fit: dp.Fit, seconds: float) -> None:
    """Print why training stopped early, if it did, and the metric on the held-out examples."""
    metric, measure = metric_of(fit.params)
    done = len(fit.history["cost"])
    if fit.stopped == "interrupted":
        further = "; the same command resumes from there" if args.checkpoint else ""
        print(f"\nstopped    by Ctrl-C, after epoch {done}{further}")
    if fit.stopped == "patience":
        best = int(np.argmin(fit.history["val_cost"])) + 1
        print(f"\nstopped    after epoch {done}: the cost no longer fell; epoch {best} is the best")
    after = f"on {data.X_test.shape[1]:,} held-out examples, after {seconds:.1f} s of training"
    if data.preparation is not None:
        _print_scores(*predictions(data, fit.params), after)
        return
    on_test = measure_of(
        fit.params, dp.Validation(data.X_test, data.Y_test, metrics={metric: measure})
    )
    score = format_score(metric, float(on_test(fit.params)[f"val_{metric}"]))
    print(f"\nresult     {metric} {score} {after}")


def _print_scores(A: np.ndarray, Y: np.ndarray, classes: np.ndarray | None, after: str) -> None:
    """Print the scores of a table's held-out rows, and for classes the confusion table."""
    scores = number_scores(A, Y) if classes is None else class_scores(A, Y)
    texts = [
        f"{name} {format_score('accuracy' if 'accuracy' in name else name, value)}"
        for name, value in scores.items()
    ]
    print(f"\nresult     {', '.join(texts)} {after}")
    if classes is not None:
        for line in confusion_lines(A, Y, classes):
            print(line)


def print_layers(where: Path | bool | None, data: Data, params: Params, history: History) -> None:
    """Print the diagnosis of the first and the last recorded step, and draw all of them if asked.

    If the run failed, the first non-finite step takes the place of the last.
    """
    if not where or not history["cost"].size:
        return
    sizes = np.concatenate(history["dZ"]).sum(axis=1) + np.concatenate(history["A"]).sum(axis=1)
    last = int(np.argmin(np.isfinite(sizes))) if not np.isfinite(sizes).all() else len(sizes) - 1
    for moment, entry in (("at the first step", 0), ("at the last recorded step", last)):
        print(f"\nlayers     {moment}\n\n{diagnosis_of(history, params, entry)}", flush=True)
    print()
    if isinstance(where, Path):
        plot_layers(where, history, f"{data.name}: {describe(params)}")
        print(f"picture    {where}")


def failure_message(args: argparse.Namespace, error: dp.TrainingError) -> str:
    """Say what went wrong, what helps, and where the network of the epoch before is."""
    cost, done = error.history["cost"], error.fit.history["cost"].size
    help = "a smaller --learning-rate"
    if not args.learning_rate:  # kfac, which then chooses the step length
        help = "a larger --batch-size, or a --learning-rate"
    if not done:
        before = ""
    elif args.save is not None:
        before = f"; the network of the epoch before is in {args.save}"
    else:
        before = "; --save would have stored the network of the epoch before"
    return (
        f"the cost or a parameter is not finite in epoch {len(cost)}: cost {cost[-1]:g};"
        f" try {help}{before}"
    )
