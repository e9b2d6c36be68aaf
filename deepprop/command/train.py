"""deepprop train: train a network on the handwritten digits, or on a file of arrays."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import deepprop as dp
from deepprop.command.compiled_ahead import compile_ahead
from deepprop.command.data import Data, HeldOut, load_data
from deepprop.command.pictures import plot_predictions
from deepprop.command.search import search
from deepprop.command.table_data import divided, load_table
from deepprop.command.train_output import (
    failure_message,
    print_layers,
    print_result,
    print_setup,
)
from deepprop.command.uncertainty import arrays_of
from deepprop.command.units import in_unit, in_unit_of, predictions
from deepprop.command.words import describe, format_score, hidden_activations, metric_of, resolve
from deepprop.costs import OUTPUTS
from deepprop.files.archive import check_writable
from deepprop.layers import Params
from deepprop.optimizers.by_name import optimizer_by_name, optimizer_with_rate, state_with_rate
from deepprop.tables.read import is_table
from deepprop.training.measure import measure_of
from deepprop.training.report import epoch_lines, plot_curves, require_matplotlib

LEARNING_RATE = 1e-3
BATCH_SIZE = 64
EPOCHS = 30
STEPS = 1_500  # at least, on a table, which may be small
VALIDATION = 0.1  # share of the training examples, if --patience is given
RECORD_EVERY = 20  # steps from one diagnosis to the next
TRAINED = [name for name, output in OUTPUTS.items() if output.units(2) == 2]  # as many as targets
CHECK_EXAMPLES = 8  # of the gradient check after training
CHECK_ALL, CHECK_SAMPLE = 5_000, 2_000  # parameters: above the first, it checks a sample


def train(args: argparse.Namespace) -> int:
    """Train a network, print its progress, and check its gradients.

    The network is saved as soon as it is trained, so that no failure after that can lose it.

    Returns:
        0, or 130 if Ctrl-C ended the training.

    Raises:
        FloatingPointError: the cost or a parameter became non-finite.
        GradientError: a gradient of the trained network is wrong.
    """
    layers = args.diagnose if isinstance(args.diagnose, Path) else None
    check_paths({"--plot": args.plot, "--diagnose": layers, "--save": args.save})
    _check_options(args)
    output = None if args.output is None else dp.output(resolve(args.output))
    if output is not None and output.units(2) != 2:
        raise ValueError(
            f"--output {args.output} has another number of units than targets: train it from Python"
        )
    data = _data(args, None if output is None else output.name)
    output = output or dp.output(data.output)
    if args.uncertainty and output.name not in TRAINED:
        raise ValueError(f"--uncertainty needs the output {', '.join(TRAINED)}, got {output.name}")
    share = args.validation or (VALIDATION if args.patience or args.search else 0.0)
    data, held_out = _split(data, share, args.seed)
    _fill_in(args, data)
    sizes = [data.X.shape[0], *args.hidden, data.Y.shape[0]]
    hidden = hidden_activations(args.activation, len(args.hidden))
    network = partial(_network, args, sizes, hidden, output)
    outline = dp.with_compute_dtype(
        jax.eval_shape(network), args.compute_dtype, batch_size=args.batch_size
    )
    weights, held_out_weights = _class_weights(args.class_weights, data, held_out)
    metric, measure = metric_of(outline)
    validation = dp.Validation(
        held_out.X, held_out.Y, held_out_weights, {metric: measure}, patience=args.patience
    )
    print_setup(args, data, held_out, outline)
    compile_ahead(outline, *_uses_of_params(args, data, validation))
    params = dp.with_compute_dtype(network(), outline[0].compute_dtype)
    start = time.perf_counter()
    try:
        fit = _fit(args, data, params, weights, validation)
    except dp.TrainingError as error:
        if error.fit.history["cost"].size:
            _save(args.save, error.fit.params, data)
        print_layers(args.diagnose, data, error.fit.params, error.history)
        raise FloatingPointError(failure_message(args, error)) from None
    print_result(args, data, fit, time.perf_counter() - start)
    _save(args.save, fit.params, data)
    if args.uncertainty:
        posterior = _posterior(data, fit.params, weights, validation)
        _save(args.save, fit.params, data, posterior, what="with posterior")
    if args.plot is not None:
        _plot(args.plot, data, fit, held_out.name)
    print_layers(args.diagnose, data, fit.params, fit.history)
    if fit.stopped == "interrupted":
        return 130
    if not args.no_check:
        print(f"gradients  {_gradient_check(data, fit.params)}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Raise if two options do not go together.

    Raises:
        ValueError: they do not.
    """
    for option in ("checkpoint", "diagnose", "patience"):
        if args.search and getattr(args, option):
            raise ValueError(
                f"--{option} must be left out with --search, which trains several networks and"
                " takes the best epoch of each"
            )
    if args.uncertainty and args.save is None:
        raise ValueError("--uncertainty needs --save, whose file it goes to")
    if args.optimizer == "kfac" and args.search:
        raise ValueError("--search needs an --optimizer with a rate and a decay to vary, not kfac")
    if args.optimizer == "kfac" and not args.learning_rate and args.schedule != "constant":
        raise ValueError("--schedule needs --learning-rate if the optimizer is kfac")


def _fill_in(args: argparse.Namespace, data: Data) -> None:
    """Set the batch size, the epochs and the learning rate that the options leave open.

    Raises:
        ValueError: the batch size is larger than the training set.
    """
    m = data.X.shape[1]
    args.batch_size = args.batch_size or min(m, BATCH_SIZE)
    if args.batch_size > m:
        raise ValueError(f"--batch-size must be at most the {m} training examples")
    if args.epochs is None:
        least = 0 if data.preparation is None else STEPS // -(-m // args.batch_size)
        args.epochs = max(EPOCHS, least)
    if args.optimizer != "kfac":
        args.learning_rate = args.learning_rate or LEARNING_RATE


def _network(
    args: argparse.Namespace, sizes: Sequence[int], hidden: Any, output: dp.Output
) -> Params:
    """Return the layers that the options ask for, without a compute_dtype."""
    params = dp.init_params(
        jax.random.key(args.seed),
        sizes,
        hidden=hidden,
        output=output,
        init=args.init,
        residual=args.residual,
        normalize=args.normalize,
        dropout=args.dropout,
        stack=args.residual or args.keep is not None,
    )
    return params if args.keep is None else dp.stack(params, args.keep)


def _data(args: argparse.Namespace, output: str | None) -> Data:
    """Return the data of a table, or of an archive of arrays, or the digits."""
    if args.target is not None or is_table(args.data):
        if args.data is None:
            raise ValueError("--target needs --data, a table")
        return load_table(args, output)
    for option in ("categories", "numbers", "ignore"):
        if getattr(args, option):
            raise ValueError(f"--{option} needs a table and --target")
    return load_data(
        args.data, held_out=args.held_out, seed=args.seed, standardize=args.standardize,
        output=output,
    )  # fmt: skip


def _plot(path: Path, data: Data, fit: dp.Fit, held_out: str) -> None:
    """Draw the curves, and for a table how good its predictions are."""
    metric, title = metric_of(fit.params)[0], f"{data.name}: {describe(fit.params)}"
    history = in_unit_of(data, fit.history, metric)
    if data.preparation is None:
        plot_curves(path, history, metric, held_out, title)
    else:
        plot_predictions(path, history, metric, held_out, title, *predictions(data, fit.params))
    print(f"curves     {path}")


def check_paths(paths: Mapping[str, Path | None]) -> None:
    """Raise before any work if a file can't be written, or one path is given twice."""
    given = {option: path for option, path in paths.items() if path is not None}
    for option, path in given.items():
        if option not in ("--save", "--out"):
            require_matplotlib(path, option)
        check_writable(path)
    for (one, path), (other, same) in combinations(given.items(), 2):
        if path.resolve() == same.resolve():
            raise ValueError(f"{one} and {other} must be two files, got {path} for both")


def _split(data: Data, share: float, seed: int) -> tuple[Data, HeldOut]:
    """Return the data to train on, and the examples to measure on after each epoch.

    Those are a random share of the training examples, or the held-out set if the share is 0.
    """
    if not share:
        return data, HeldOut("held out", data.X_test, data.Y_test)
    m = data.X.shape[1]
    if share >= 1 or m < 2:
        raise ValueError(f"--validation must be a share of the {m} examples below 1, got {share}")
    k = int(np.clip(round(share * m), 1, m - 1))
    labels = data.Y.argmax(axis=0) if data.preparation and data.classes is not None else None
    split_off, rest = divided(m, labels, k / m, seed)
    validation = HeldOut("validation", data.X[:, split_off], data.Y[:, split_off])
    return data._replace(X=data.X[:, rest], Y=data.Y[:, rest]), validation


def _uses_of_params(
    args: argparse.Namespace, data: Data, validation: dp.Validation
) -> list[Callable[[Params], Any]]:
    """Return what this run does with params besides training, for `compile_ahead`."""
    measured = [] if args.search else [lambda params: measure_of(params, validation)(params)]
    check = [] if args.no_check else [partial(_gradient_check, data)]
    return [*measured, *check]


def _fit(
    args: argparse.Namespace, data: Data, params: Params, weights: Any, validation: dp.Validation
) -> dp.Fit:
    """Train the network, with a line for about every tenth of the epochs."""
    (metric,) = validation.metrics
    trained: list[int] = []  # epochs of this run; those of a checkpoint are not among them

    def print_epoch(epoch: int, row: Mapping[str, float], params: Params) -> None:
        trained.append(epoch)
        score = format_score(metric, in_unit_of(data, row, metric)[f"val_{metric}"])
        show(epoch, f"{epoch:5} {row['cost']:10.4f} {row['val_cost']:16.4f} {score:>10}")

    steps = args.epochs * -(-data.X.shape[1] // args.batch_size)
    if args.search:
        return search(args, data, params, weights, validation)
    optimizer, state = _optimizer(args, steps, params)
    checkpoint = args.checkpoint and dp.Checkpoint(args.checkpoint, args.checkpoint_every)
    with epoch_lines(args.epochs) as show:
        fit = dp.fit(
            params, optimizer, data.X, data.Y, epochs=args.epochs, state=state,
            batch_size=args.batch_size, key=jax.random.key(args.seed),
            weights=weights, validation=validation, callbacks=[print_epoch], checkpoint=checkpoint,
            record=dp.Record(dp.diagnose, RECORD_EVERY) if args.diagnose else None,
        )  # fmt: skip
    if before := len(fit.history["cost"]) - len(trained):
        print(f"\ncheckpoint {args.checkpoint}: resumed after epoch {before}")
    return fit


def _optimizer(
    args: argparse.Namespace, steps: int, params: Params
) -> tuple[optax.GradientTransformation, optax.OptState | None]:
    """Return the optimizer, and a first state for it if that has the learning rate.

    The states in checkpoints have none, as in 0.1.0: a run can be resumed at another rate.
    """
    kind = args.schedule, 0 if args.schedule == "constant" else steps
    if args.optimizer == "kfac" and not args.learning_rate:
        return dp.kfac(), None
    if args.optimizer == "kfac" or args.checkpoint is not None:
        return optimizer_with_rate(args.optimizer, args.learning_rate, *kind), None
    optimizer = optimizer_by_name(args.optimizer, *kind)
    return optimizer, state_with_rate(optimizer, params, args.learning_rate)


def _class_weights(how: str | None, data: Data, held_out: HeldOut) -> tuple[Any, Any]:
    """Return the weights of the training and the held-out examples; None without --class-weights.

    Both follow from the classes of the training examples, so that early stopping watches the cost
    that training lowers. A class that only the held-out examples have gets weight 1.

    Raises:
        ValueError: the examples do not have one class each.
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


def _save(
    path: Path | None,
    params: Params,
    data: Data,
    posterior: Mapping[str, np.ndarray] | None = None,
    what: str = "",
) -> None:
    """Write the network with its scaling, its classes and a table's preparation, if asked.

    Args:
        path: the file; None writes none.
        params: the layers.
        data: on which they were trained.
        posterior: how sure the network is, as arrays.
        what: to print after the path.
    """
    if path is not None:
        extra = {} if data.preparation is None else data.preparation.arrays()
        params = in_unit(params, data.unit)
        extra |= posterior or {}
        dp.save(path, params, scaling=data.scaling, classes=data.classes, **extra)
        print(f"saved      {path}{what and f', {what}'}", flush=True)


def _posterior(
    data: Data, params: Params, weights: Any, validation: dp.Validation
) -> dict[str, np.ndarray]:
    """Return the posterior of the parameters as arrays."""
    held_out: Any = validation.X, validation.Y, validation.weights
    posterior = dp.laplace(params, data.X, data.Y, validation=held_out, weights=weights)
    return arrays_of(posterior, data.unit)


def _gradient_check(data: Data, params: Params) -> dp.GradientReport:
    """Check the gradients of a network on a few examples.

    Raises:
        GradientError: one is wrong.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    sample = None if size <= CHECK_ALL else CHECK_SAMPLE
    X, Y = data.X[:, :CHECK_EXAMPLES], data.Y[:, :CHECK_EXAMPLES]
    return dp.check_gradients(params, X, Y, sample=sample)
