"""What the command line does with a network: predict, export, check; and what options stand for."""

import argparse
import csv
import io
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import deepprop as dp
from deepprop._arguments import output_of
from deepprop._arithmetic import wide
from deepprop.activations import ACTIVATIONS
from deepprop.costs import COSTS, OUTPUTS
from deepprop.data import Scaling, load_examples, scaled
from deepprop.files import atomic_write, check_writable
from deepprop.layers import Layer, Params, depth, is_stack
from deepprop.model_file import checked_classes, checked_scaling
from deepprop.targets import encoded

ADVICE = "(dp.save(..., scaling=...) stores one)"


def predict(args: argparse.Namespace) -> int:
    """Apply a saved network to examples, and score it where they have labels."""
    if args.out is not None:
        check_writable(args.out)
    params = dp.load(args.model, own=[named(name) for name in args.own])
    scaling, classes, note = _preparation(args.model, params)
    x, y = load_examples(args.data)
    A = np.asarray(jax.jit(dp.predict)(params, scaled(x, scaling)))
    score = "" if y is None else _score(params, A, y, classes)
    answers = A.T if classes is None else classes[A.argmax(axis=0)]
    print(note, end="")
    print(f"{len(answers):,} predictions: {_first(answers)}{score}")
    if args.out is not None:
        with atomic_write(args.out) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            csv.writer(text, lineterminator="\n").writerows(answers.reshape(len(answers), -1))
            text.detach()
        print(f"saved {args.out}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a saved network as a program that runs without deepprop, on what `predict` takes."""
    if args.out.resolve() == Path(args.model).resolve():
        raise ValueError(f"MODEL.npz and --out must be two files, got {args.out} for both")
    params = dp.load(args.model, own=[named(name) for name in args.own])
    scaling, classes, note = _preparation(args.model, params)
    dp.export(args.out, params, platforms=args.platforms.split(","), scaling=scaling)
    n_0, n_L, dtype = params[0].W.shape[-1], params[-1].W.shape[0], wide(params[0].W.dtype)
    rows = "" if classes is None else f", a row for each class: {_first(classes)}"
    print(note, end="")
    print(f"takes {dtype} ({n_0}, m), one example a column, before any scaling")
    print(f"gives {dtype} ({n_L}, m){rows}")
    print(f"saved {args.out}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Hold the gradients of one network, or of each activation and output, against differences."""
    given = (args.hidden, args.activation, args.output)
    if args.model is not None:
        if given != (None, None, None):
            raise ValueError("a saved network has its own --hidden, --activation and --output")
        networks = {args.model: dp.load(args.model, own=[named(name) for name in args.own])}
    elif given != (None, None, None):
        hidden = [16, 12] if args.hidden is None else args.hidden
        activations = hidden_of(args.activation, len(hidden))
        networks = {"": _new(args.seed, hidden, activations, named(args.output or "softmax"))}
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
        print(f"{'ok   ' if report.ok else 'WRONG'} {name or describe(params):28} {report}")
    return 1 if failed else 0


def named(name: str) -> Any:
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


def hidden_of(text: str | None, layers: int) -> Any:
    """The activations that --activation stands for."""
    names = [named(name.strip()) for name in (text or "relu").split(",")]
    return names * layers if len(names) == 1 else names


def describe(params: Params) -> str:
    """Units and activations, layer by layer."""
    return " - ".join([str(params[0].W.shape[-1]), *map(_described, params)])


def _described(layer: Layer) -> str:
    times = f"{depth(layer)} x " if is_stack(layer) else ""
    residual = " residual" if layer.residual else ""
    return f"{times}{layer.W.shape[-2]} {layer.activation.name}{residual}"


def metric_of(params: Params) -> tuple[str, Callable[[Array, Array], Array]]:
    """What is measured beside the cost: its name, and a function of A[L] and Y."""
    name = output_of(params).name
    if name == "softmax":
        return "accuracy", lambda A, Y: jnp.mean(jnp.argmax(A, 0) == jnp.argmax(Y, 0))
    if name == "sigmoid":
        return "accuracy", lambda A, Y: jnp.mean((A > 0.5) == (Y > 0.5))
    return "rmse", lambda A, Y: jnp.sqrt(jnp.mean((A - Y) ** 2))


def shown(metric: str, value: float) -> str:
    """A measured value as people read it."""
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"


def _preparation(path: str, params: Params) -> tuple[Scaling, np.ndarray | None, str]:
    """How the examples are scaled and what the classes are called, from a model file.

    Returns:
        The scaling, the classes or None, and a line that says so where the file holds no scaling.

    Raises:
        ValueError: the file holds a scaling or classes that do not fit the network.
    """
    extra = dp.load_extra(path)
    n_0, n_L = params[0].W.shape[-1], params[-1].W.shape[0]
    pair = [extra[name] for name in ("shift", "scale") if name in extra]
    note = "" if pair else f"no scaling in {path}: inputs are taken as they are {ADVICE}\n"
    classes = extra.get("classes")
    if classes is None and output_of(params).name == "softmax":
        classes = np.arange(n_L)
    try:
        if len(pair) == 1:
            raise ValueError("has shift or scale alone, must have both or neither")
        scaling = checked_scaling(pair or (np.zeros(n_0), np.ones(n_0)), n_0, np.float64)
        # The label of a single unit is no answer: it would be the same for all examples.
        classes = None if classes is None or n_L == 1 else checked_classes(classes, n_L)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return Scaling(*scaling), classes, note


def _first(items: np.ndarray) -> str:
    return ", ".join(str(item) for item in items[:10]) + (", ..." if len(items) > 10 else "")


def _score(params: Params, A: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> str:
    Y = encoded(y, classes, "y")
    if Y.shape != A.shape:
        raise ValueError(
            f"y must hold {A.shape[0]} numbers for {A.shape[1]} examples, got {y.shape}"
        )
    metric, measure = metric_of(params)
    return f"\n{metric} {shown(metric, float(measure(jnp.asarray(A), jnp.asarray(Y))))}"


def _new(seed: int, hidden: list[int], activation: Any, output: Any) -> Params:
    return dp.init_params(jax.random.key(seed), [8, *hidden, 4], hidden=activation, output=output)


def _random_examples(params: Params, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X from the standard normal, and Y of the kind that the output takes."""
    rng = np.random.default_rng(seed)
    n_0, n_L = params[0].W.shape[-1], params[-1].W.shape[0]
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
