"""What the command line does: train, predict, check."""

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import deepprop as dp
from deepprop.activations import ACTIVATIONS
from deepprop.costs import COSTS, OUTPUTS
from deepprop.data import Data, Scaling, encoded, load_data, load_examples, scaled
from deepprop.files import atomic_write, check_writable
from deepprop.layers import Params, output_of
from deepprop.report import epoch_lines, plot_curves, require_matplotlib

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "lamb": optax.lamb,
    "lion": optax.lion,
}
BATCH_SIZE = 64
CHECK_EXAMPLES = 8  # that the gradient check after training looks at
CHECK_ALL, CHECK_SAMPLE = 20_000, 10_000  # parameters: above the first it looks at a sample

History = list[dict[str, float]]


def train(args: argparse.Namespace) -> int:
    """Train a network and show how it goes; save it before anything else can fail."""
    _check_targets(args.plot, args.save)
    output = None if args.output is None else dp.output(_own(args.output))
    data = load_data(
        args.data, held_out=args.held_out, seed=args.seed, standardize=args.standardize,
        output=None if output is None else output.name,
    )  # fmt: skip
    m = data.X.shape[1]
    args.batch_size = args.batch_size or min(m, BATCH_SIZE)
    if args.batch_size > m:
        raise ValueError(f"--batch-size must be at most the {m} training examples")
    params = dp.init_params(
        jax.random.key(args.seed),
        [data.X.shape[0], *args.hidden, data.Y.shape[0]],
        hidden=_activations(args.activation, len(args.hidden)),
        output=output or data.output,
        init=args.init,
    )
    _print_setting(args, data, params)
    start = time.perf_counter()
    try:
        fit, history = _run(args, data, params)
    except dp.TrainingError as error:
        if error.fit.history["cost"].size:
            _save(args.save, error.fit.params, data)
        raise
    seconds = time.perf_counter() - start
    _print_result(data, fit, history, seconds)
    _save(args.save, fit.params, data)
    if args.plot is not None and history:
        title = f"{data.name}: {_describe(params)}"
        plot_curves(args.plot, history, _metric(params)[0], title)
        print(f"curves     {args.plot}")
    if fit.stopped == "interrupted":
        return 130
    if not args.no_check:
        print(f"gradients  {_checked(data, fit.params)}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Apply a saved network to examples, and score it where they have labels."""
    if args.out is not None:
        check_writable(args.out)
    params = dp.load(args.model, own=[_own(name) for name in args.own])
    scaling, classes = _preparation(args.model, params)
    x, y = load_examples(args.data)
    A = np.asarray(jax.jit(dp.predict)(params, scaled(x, scaling)))
    score = "" if y is None else _score(params, A, y, classes)
    answers = A.T if classes is None else classes[A.argmax(axis=0)]
    first = ", ".join(str(a) for a in answers[:10]) + (", ..." if len(answers) > 10 else "")
    print(f"{len(answers):,} predictions: {first}{score}")
    if args.out is not None:
        with atomic_write(args.out) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            csv.writer(text, lineterminator="\n").writerows(answers.reshape(len(answers), -1))
            text.detach()
        print(f"saved {args.out}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Hold the gradients of one network, or of each activation and output, against differences."""
    given = (args.hidden, args.activation, args.output)
    if args.model is not None:
        if given != (None, None, None):
            raise ValueError("a saved network has its own --hidden, --activation and --output")
        networks = {args.model: dp.load(args.model, own=[_own(name) for name in args.own])}
    elif given != (None, None, None):
        hidden = [16, 12] if args.hidden is None else args.hidden
        activations = _activations(args.activation, len(hidden))
        networks = {"": _new(args.seed, hidden, activations, _own(args.output or "softmax"))}
    else:
        pairs = [(a, "softmax") for a in ACTIVATIONS] + [("tanh", o) for o in OUTPUTS]
        pairs += [("tanh", f"{a}+{c}") for a in ("identity", "tanh") for c in COSTS]
        networks = {f"{a}, {o}": _new(args.seed, [16, 12], a, o) for a, o in pairs}
    failed = 0
    for name, params in networks.items():
        try:
            report = dp.check_gradients(
                params, *_random_examples(params, args.examples, args.seed),
                tolerance=args.tolerance, sample=args.sample,
            )  # fmt: skip
        except dp.GradientError as error:
            report, failed = error.report, failed + 1
        print(f"{'ok   ' if report.ok else 'WRONG'} {name or _describe(params):28} {report}")
    return 1 if failed else 0


def _check_targets(plot: Path | None, save: Path | None) -> None:
    """Raise before any work where a file could not be written."""
    if plot is not None:
        require_matplotlib(plot)
    for path in (plot, save):
        if path is not None:
            check_writable(path)
    if plot is not None and save is not None and plot.resolve() == save.resolve():
        raise ValueError(f"--plot and --save must be two files, got {plot} for both")


def _save(path: Path | None, params: Params, data: Data) -> None:
    if path is not None:
        classes = {} if data.classes is None else {"classes": data.classes}
        dp.save(path, params, **data.scaling._asdict(), **classes)
        print(f"saved      {path}", flush=True)


def _own(name: str) -> Any:
    """What `module:name` stands for, with the current folder importable; else the name itself."""
    if ":" not in name:
        return name
    module, attribute = name.split(":", 1)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = import_module(module)
    except Exception as error:  # the module is the user's, and may raise anything
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from None
    if not hasattr(found, attribute):
        raise ValueError(f"{name}: the module {module} has no {attribute}")
    return getattr(found, attribute)


def _activations(text: str | None, layers: int) -> Any:
    names = [_own(name.strip()) for name in (text or "relu").split(",")]
    return names * layers if len(names) == 1 else names


def _print_setting(args: argparse.Namespace, data: Data, params: Params) -> None:
    m, m_test = data.X.shape[1], data.X_test.shape[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    kind = "targets" if data.classes is None else "classes"
    device = jax.devices()[0]
    print(f"deepprop {dp.__version__}, jax {jax.__version__} on {device.device_kind}")
    print(
        f"data       {data.name}: {m:,} to train on, {m_test:,} held out,"
        f" {data.X.shape[0]:,} inputs, {data.Y.shape[0]:,} {kind}"
    )
    print(f"network    {_describe(params)}; {size:,} parameters")
    print(
        f"training   {args.optimizer}, learning rate {args.learning_rate:g}, {args.epochs} epochs"
        f" of {-(-m // args.batch_size)} steps of {args.batch_size} examples, seed {args.seed}\n"
    )
    metric = _metric(params)[0]
    print(f"{'training':>27} {'held out':>27}")
    print(f"epoch {'cost':>10} {metric:>10} {'cost':>16} {metric:>10}")


def _run(args: argparse.Namespace, data: Data, params: Params) -> tuple[dp.Fit, History]:
    metric, measure = _metric(params)
    on_training = jax.jit(partial(_evaluate, measure))
    history: History = []

    def after(epoch: int, row: Mapping[str, float], params: Params) -> None:
        J, score = map(float, on_training(params, data.X, data.Y))
        J_test, score_test = row["val_cost"], row[f"val_{metric}"]
        history.append(
            {"cost": J, metric: score, "test cost": J_test, f"test {metric}": score_test}
        )
        shown = [_shown(metric, value) for value in (score, score_test)]
        show(epoch, f"{epoch:5} {J:10.4f} {shown[0]:>10} {J_test:16.4f} {shown[1]:>10}")

    with epoch_lines(args.epochs) as show:
        fit = dp.fit(
            params, OPTIMIZERS[args.optimizer](args.learning_rate), data.X, data.Y,
            epochs=args.epochs, batch_size=args.batch_size, key=jax.random.key(args.seed),
            validation=(data.X_test, data.Y_test), metrics={metric: measure}, callbacks=[after],
        )  # fmt: skip
    return fit, history


def _print_result(data: Data, fit: dp.Fit, history: History, seconds: float) -> None:
    if fit.stopped == "interrupted":
        print(f"\nstopped    by Ctrl-C, after epoch {len(history)}")
    metric, _ = _metric(fit.params)
    score = _shown(metric, history[-1][f"test {metric}"])
    print(f"\nresult     {metric} {score} on {data.X_test.shape[1]:,} held-out examples", end="")
    print(f", after {seconds:.1f} s of training")


def _checked(data: Data, params: Params) -> dp.GradientReport:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    sample = None if size <= CHECK_ALL else CHECK_SAMPLE
    few = slice(CHECK_EXAMPLES)
    return dp.check_gradients(params, data.X[:, few], data.Y[:, few], sample=sample)


def _describe(params: Params) -> str:
    layers = [f"{layer.b.size} {layer.activation.name}" for layer in params]
    return " - ".join([str(params[0].W.shape[1]), *layers])


def _metric(params: Params) -> tuple[str, Callable[[Array, Array], Array]]:
    """What is measured beside the cost: its name, and a function of A[L] and Y."""
    name = output_of(params).name
    if name == "softmax":
        return "accuracy", lambda A, Y: jnp.mean(jnp.argmax(A, 0) == jnp.argmax(Y, 0))
    if name == "sigmoid":
        return "accuracy", lambda A, Y: jnp.mean((A > 0.5) == (Y > 0.5))
    return "rmse", lambda A, Y: jnp.sqrt(jnp.mean((A - Y) ** 2))


def _evaluate(
    measure: Callable[[Array, Array], Array], params: Params, X: Array, Y: Array
) -> tuple[Array, Array]:
    A, cache = dp.forward(params, X)
    return dp.cost(cache, Y), measure(A, Y)


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"


def _preparation(path: str, params: Params) -> tuple[Scaling, np.ndarray | None]:
    """How the examples are scaled and what the classes are called, from a model file.

    Raises:
        ValueError: the file holds a scale or classes that do not fit the network.
    """
    extra = dp.load_extra(path)
    n_0, n_L = params[0].W.shape[1], params[-1].W.shape[0]
    shift, scale = extra.get("shift", np.zeros(n_0)), extra.get("scale", np.ones(n_0))
    for name, array in (("shift", shift), ("scale", scale)):
        if array.shape != (n_0,) or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must be {n_0} finite numbers")
    if not scale.all():
        raise ValueError(f"{path}: scale must not be 0")
    classes = extra.get("classes")
    if output_of(params).name == "softmax" and classes is None:
        classes = np.arange(n_L)
    if classes is not None and (classes.shape != (n_L,) or classes.dtype.kind not in "buifUS"):
        raise ValueError(f"{path}: classes must be {n_L} labels")
    return Scaling(shift, scale), classes


def _score(params: Params, A: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> str:
    Y = encoded(y, classes, "y")
    if Y.shape != A.shape:
        raise ValueError(
            f"y must hold {A.shape[0]} numbers for {A.shape[1]} examples, got {y.shape}"
        )
    metric, measure = _metric(params)
    return f"\n{metric} {_shown(metric, float(measure(jnp.asarray(A), jnp.asarray(Y))))}"


def _new(seed: int, hidden: list[int], activation: Any, output: Any) -> Params:
    return dp.init_params(jax.random.key(seed), [8, *hidden, 4], hidden=activation, output=output)


def _random_examples(params: Params, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X from the standard normal, and Y of the kind that the output takes."""
    rng = np.random.default_rng(seed)
    n_0, n_L = params[0].W.shape[1], params[-1].W.shape[0]
    X = rng.standard_normal((n_0, m))
    match output_of(params).name:
        case "softmax":
            Y = np.eye(n_L)[:, rng.integers(n_L, size=m)]
        case "sigmoid":
            Y = rng.integers(2, size=(n_L, m)).astype(float)
        case "exp":
            Y = rng.poisson(3.0, (n_L, m)).astype(float)
        case _:
            Y = rng.standard_normal((n_L, m))
    return X, Y
