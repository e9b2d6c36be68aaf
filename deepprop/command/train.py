"""deepprop train: a network trained on the data that ships, or on a file of arrays."""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from deepprop.command.data import Data, load_data
from deepprop.command.words import describe, hidden_of, metric_of, resolved, shown
from deepprop.files.archive import check_writable
from deepprop.layers import Params
from deepprop.signals.diagnosis import _of_inputs, diagnosis_of
from deepprop.training.report import epoch_lines, plot_curves, plot_layers, require_matplotlib

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "lamb": optax.lamb,
    "lion": optax.lion,
    "kfac": dp.kfac,
}
LEARNING_RATE = 1e-3
SCHEDULES: dict[
    str, Callable[[float, int], Any]
] = {  # of the learning rate and the steps there are
    "constant": lambda rate, steps: rate,
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "warmup_cosine": lambda rate, steps: optax.warmup_cosine_decay_schedule(
        0.0, rate, max(1, steps // 20), steps
    ),
}
History = Mapping[str, np.ndarray]
BATCH_SIZE = 64
VALIDATION = 0.1  # of the training examples, where there is --patience
RECORD_EVERY = 20  # steps from one diagnosis to the next
CHECK_EXAMPLES = 8  # that the gradient check after training looks at
CHECK_ALL, CHECK_SAMPLE = 20_000, 10_000  # parameters: above the first it looks at a sample


class HeldOut(NamedTuple):
    """The examples to measure on after each epoch: the test set, or a part of the training set."""

    name: str
    X: np.ndarray
    Y: np.ndarray


def train(args: argparse.Namespace) -> int:
    """Train a network and print its progress; save it before anything else can fail."""
    layers = args.diagnose if isinstance(args.diagnose, Path) else None
    _check_targets({"--plot": args.plot, "--diagnose": layers, "--save": args.save})
    output = None if args.output is None else dp.output(resolved(args.output))
    data = load_data(
        args.data, held_out=args.held_out, seed=args.seed, standardize=args.standardize,
        output=None if output is None else output.name,
    )  # fmt: skip
    share = args.validation or (VALIDATION if args.patience else 0.0)
    data, held_out = _split(data, share, args.seed)
    m = data.X.shape[1]
    args.batch_size = args.batch_size or min(m, BATCH_SIZE)
    if args.batch_size > m:
        raise ValueError(f"--batch-size must be at most the {m} training examples")
    params = dp.init_params(
        jax.random.key(args.seed),
        [data.X.shape[0], *args.hidden, data.Y.shape[0]],
        hidden=hidden_of(args.activation, len(args.hidden)),
        output=output or data.output,
        init=args.init,
        residual=args.residual,
        stack=args.residual or args.keep is not None,
        compute_dtype=args.compute_dtype,
    )
    params = params if args.keep is None else dp.stack(params, args.keep)
    if args.optimizer != "kfac":
        args.learning_rate = args.learning_rate or LEARNING_RATE
    elif not args.learning_rate and args.schedule != "constant":
        raise ValueError("--schedule needs --learning-rate where the optimizer is kfac")
    _print_setting(args, data, held_out, params)
    start = time.perf_counter()
    try:
        fit = _run(args, data, held_out, params)
    except dp.TrainingError as error:
        if error.fit.history["cost"].size:
            _save(args.save, error.fit.params, data)
        _show_layers(args.diagnose, data, error.fit.params, error.history)
        raise FloatingPointError(_failure(args, error)) from None
    _print_result(args, data, fit, time.perf_counter() - start)
    _save(args.save, fit.params, data)
    if args.plot is not None:
        title = f"{data.name}: {describe(params)}"
        plot_curves(args.plot, fit.history, metric_of(params)[0], held_out.name, title)
        print(f"curves     {args.plot}")
    _show_layers(args.diagnose, data, fit.params, fit.history)
    if fit.stopped == "interrupted":
        return 130
    if not args.no_check:
        print(f"gradients  {_checked(data, fit.params)}")
    return 0


def _check_targets(paths: Mapping[str, Path | None]) -> None:
    """Raise before any work if a file can't be written."""
    given = {option: path for option, path in paths.items() if path is not None}
    for option, path in given.items():
        if option != "--save":
            require_matplotlib(path, option)
        check_writable(path)
    for (one, path), (other, its) in combinations(given.items(), 2):
        if path.resolve() == its.resolve():
            raise ValueError(f"{one} and {other} must be two files, got {path} for both")


def _split(data: Data, share: float, seed: int) -> tuple[Data, HeldOut]:
    """Split a share off the training examples, to measure on after each epoch."""
    if not share:
        return data, HeldOut("held out", data.X_test, data.Y_test)
    m = data.X.shape[1]
    if share >= 1 or m < 2:
        raise ValueError(f"--validation must be a share of the {m} examples below 1, got {share}")
    some = int(np.clip(round(share * m), 1, m - 1))
    order = np.random.default_rng(seed).permutation(m)
    kept, taken = order[some:], order[:some]
    validation = HeldOut("validation", data.X[:, taken], data.Y[:, taken])
    return data._replace(X=data.X[:, kept], Y=data.Y[:, kept]), validation


def _print_setting(args: argparse.Namespace, data: Data, held_out: HeldOut, params: Params) -> None:
    m, m_test = data.X.shape[1], data.X_test.shape[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    kind = "targets" if data.classes is None else "classes"
    device = jax.devices()[0]
    validation = (
        f" {held_out.X.shape[1]:,} to validate on," if held_out.name == "validation" else ""
    )
    schedule = "" if args.schedule == "constant" else f" ({args.schedule})"
    rate = f"learning rate {args.learning_rate:g}{schedule}" if args.learning_rate else "no rate"
    print(f"deepprop {dp.__version__}, jax {jax.__version__} on {device.device_kind}")
    print(
        f"data       {data.name}: {m:,} to train on,{validation} {m_test:,} held out,"
        f" {data.X.shape[0]:,} inputs, {data.Y.shape[0]:,} {kind}"
    )
    print(f"targets    {data.targets}")
    for line in _inputs(data.X, args.standardize):
        print(line)
    print(f"network    {describe(params)}; {size:,} parameters")
    print(
        f"training   {args.optimizer}, {rate}, {args.epochs} epochs of"
        f" {-(-m // args.batch_size)} steps of {args.batch_size} examples, seed {args.seed}\n"
    )
    print(f"{'training':>16} {held_out.name:>16}")
    print(f"epoch {'cost':>10} {'cost':>16} {metric_of(params)[0]:>10}", flush=True)


def _inputs(X: np.ndarray, standardized: bool) -> list[str]:
    """Return the findings of `diagnose` about the inputs, with the option that helps."""
    sizes = np.sqrt(np.mean(np.square(X, dtype=np.float64), axis=1))
    used = sizes[sizes > 0]
    median = float(np.median(used)) if used.size else 0.0
    found = _of_inputs(np.array([np.sqrt(np.mean(sizes**2)), median, sizes.max()]))
    option = "" if standardized else " (--standardize)"
    return [f"inputs     {finding.removeprefix('inputs: ')}{option}" for finding in found]


def _failure(args: argparse.Namespace, error: dp.TrainingError) -> str:
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


def _run(args: argparse.Namespace, data: Data, held_out: HeldOut, params: Params) -> dp.Fit:
    metric, measure = metric_of(params)
    seen: list[int] = []

    def after(epoch: int, row: Mapping[str, float], params: Params) -> None:
        seen.append(epoch)
        score = shown(metric, row[f"val_{metric}"])
        show(epoch, f"{epoch:5} {row['cost']:10.4f} {row['val_cost']:16.4f} {score:>10}")

    steps = args.epochs * -(-data.X.shape[1] // args.batch_size)
    rate = SCHEDULES[args.schedule](args.learning_rate, steps) if args.learning_rate else None
    weights, of_held_out = _weighted(args.class_weights, data, held_out)
    validation = dp.Validation(
        held_out.X, held_out.Y, of_held_out, {metric: measure}, patience=args.patience
    )
    checkpoint = args.checkpoint and dp.Checkpoint(args.checkpoint, args.checkpoint_every)
    with epoch_lines(args.epochs) as show:
        fit = dp.fit(
            params, OPTIMIZERS[args.optimizer](rate), data.X, data.Y, epochs=args.epochs,
            batch_size=args.batch_size, key=jax.random.key(args.seed),
            weights=weights, validation=validation, callbacks=[after], checkpoint=checkpoint,
            record=dp.Record(dp.diagnose, RECORD_EVERY) if args.diagnose else None,
        )  # fmt: skip
    if before := len(fit.history["cost"]) - len(seen):
        print(f"\ncheckpoint {args.checkpoint}: resumed after epoch {before}")
    return fit


def _weighted(how: str | None, data: Data, held_out: HeldOut) -> tuple[Any, Any]:
    """Return the weights of the training and of the held-out examples, by the same classes.

    Early stopping then uses the same cost as training. A class that only the held-out examples have
    gets weight 1.
    """
    if how is None:
        return None, None
    try:
        weights = dp.balanced_weights(data.Y)
    except ValueError:
        raise ValueError(f"--class-weights {how} needs data with one class per example") from None
    of_class = np.ones(max(len(data.Y), 2), np.float32)
    of_class[_classes(data.Y)] = weights
    return weights, of_class[_classes(held_out.Y)]


def _classes(Y: np.ndarray) -> np.ndarray:
    """Return the class of each example, from one-hot columns or a row of 0 and 1."""
    classes: np.ndarray = Y.argmax(axis=0) if len(Y) > 1 else (Y[0] > 0.5).astype(int)
    return classes


def _print_result(args: argparse.Namespace, data: Data, fit: dp.Fit, seconds: float) -> None:
    metric, measure = metric_of(fit.params)
    done = len(fit.history["cost"])
    if fit.stopped == "interrupted":
        further = "; the same command resumes from there" if args.checkpoint else ""
        print(f"\nstopped    by Ctrl-C, after epoch {done}{further}")
    if fit.stopped == "patience":
        best = int(np.argmin(fit.history["val_cost"])) + 1
        print(f"\nstopped    after epoch {done}: the cost no longer fell; epoch {best} is the best")
    A = jax.jit(dp.predict)(fit.params, data.X_test)
    score = shown(metric, float(measure(A, jnp.asarray(data.Y_test))))
    print(f"\nresult     {metric} {score} on {data.X_test.shape[1]:,} held-out examples", end="")
    print(f", after {seconds:.1f} s of training")


def _save(path: Path | None, params: Params, data: Data) -> None:
    if path is not None:
        dp.save(path, params, scaling=data.scaling, classes=data.classes)
        print(f"saved      {path}", flush=True)


def _show_layers(where: Path | bool | None, data: Data, params: Params, history: History) -> None:
    """Print the diagnosis of the first and the last recorded step, and draw it if asked.

    If the run failed, the last one is the first that is not finite.
    """
    if not where or not history["cost"].size:
        return
    sizes = np.concatenate(history["dZ"]).sum(axis=1) + np.concatenate(history["A"]).sum(axis=1)
    last = int(np.argmin(np.isfinite(sizes))) if not np.isfinite(sizes).all() else len(sizes) - 1
    for moment, entry in (("at the first step", 0), ("at the last recorded step", last)):
        print(f"\nlayers     {moment}\n\n{diagnosis_of(history, params, entry)}", flush=True)
    if isinstance(where, Path):
        plot_layers(where, history, f"{data.name}: {describe(params)}")
        print(f"\npicture    {where}")


def _checked(data: Data, params: Params) -> dp.GradientReport:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    sample = None if size <= CHECK_ALL else CHECK_SAMPLE
    few = slice(CHECK_EXAMPLES)
    return dp.check_gradients(params, data.X[:, few], data.Y[:, few], sample=sample)
