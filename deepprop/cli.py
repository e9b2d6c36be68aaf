"""The command line: deepprop train, deepprop predict, deepprop check."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import deepprop as dp
from deepprop.activations import ACTIVATIONS
from deepprop.costs import COSTS, OUTPUTS
from deepprop.data import Data, Scaling, encoded, load_data, load_examples, scaled
from deepprop.files import atomic_write
from deepprop.layers import Params, output_of
from deepprop.network import INITIALISERS
from deepprop.report import epoch_lines, plot_curves, require_matplotlib
from deepprop.training import minibatches

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

Run = tuple[Params, list[dict[str, float]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give back its exit status: 0, 1 for a failure, 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except dp.GradientError as error:
        return _fail(1, str(error))
    except FloatingPointError as error:
        return _fail(1, str(error))
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _fail(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")


def _fail(status: int, message: str) -> int:
    print(f"deepprop: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepprop", description=dp.__doc__)
    parser.add_argument("--version", action="version", version=f"deepprop {dp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train a network and show how it goes")
    train.set_defaults(command=_train)
    add = train.add_argument
    add("--data", metavar="FILE.npz", help="x_train, y_train, x_test, y_test; or X and y, one"
        " example a row (default: the handwritten digits that ship)")  # fmt: skip
    add("--standardize", action="store_true", help="give each input mean 0 and variance 1")
    add("--held-out", type=float, default=0.2, metavar="SHARE", help="to hold out where the file"
        " has no test set (default %(default)s)")  # fmt: skip
    _network_options(train, hidden="256,128")
    add("--init", choices=sorted(INITIALISERS), help="default: what fits each activation")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="default %(default)s")
    add("--learning-rate", type=_positive, default=1e-3, help="default %(default)s")
    add("--epochs", type=_count, default=30, help="default %(default)s")
    add("--batch-size", type=_count, help=f"default {BATCH_SIZE}, or all where there are fewer")
    add("--seed", type=int, default=0, help="default %(default)s")
    add("--plot", type=Path, metavar="FILE.png", help="draw cost and accuracy, epoch by epoch")
    add("--save", type=Path, metavar="MODEL.npz", help="write the trained network")
    add("--no-check", action="store_true", help="leave out the gradient check at the end")

    predict = commands.add_parser("predict", help="apply a saved network to examples")
    predict.set_defaults(command=_predict)
    predict.add_argument("model", metavar="MODEL.npz")
    predict.add_argument("--data", metavar="FILE.npz", help="x_test or X, and the labels if there"
                         " are any (default: the handwritten digits that ship)")  # fmt: skip
    predict.add_argument("--out", type=Path, metavar="FILE.csv", help="write every prediction")

    check = commands.add_parser(
        "check", help="hold gradients against central differences, parameter by parameter",
        description="Without an argument: a small network of every activation and every output.",
    )  # fmt: skip
    check.set_defaults(command=_check)
    check.add_argument("model", nargs="?", metavar="MODEL.npz", help="a saved network")
    _network_options(check, hidden=None)
    check.add_argument("--examples", type=_count, default=8, help="default %(default)s")
    check.add_argument("--sample", type=_count, help="how many parameters (default: all)")
    check.add_argument("--tolerance", type=_positive, default=1e-5, help="default %(default)s")
    check.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser


def _network_options(parser: argparse.ArgumentParser, hidden: str | None) -> None:
    parser.add_argument(
        "--hidden", type=_sizes, default=hidden, metavar="N,N,...",
        help="units of each hidden layer; none for no hidden layer"
        + (f" (default {hidden})" if hidden else ""),
    )  # fmt: skip
    parser.add_argument(
        "--activation", metavar="NAME",
        help=f"{', '.join(ACTIVATIONS)}; one, or one a hidden layer with commas; or module:name for"
        " one of your own (default relu)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="NAME",
        help=f"{', '.join(OUTPUTS)}, or activation+cost with the costs {', '.join(COSTS)}; or"
        " module:name (default: what fits the data)",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _sizes(text: str) -> list[int]:
    return (
        [] if text.strip() in ("", "none") else [_count(part.strip()) for part in text.split(",")]
    )


def _own(name: str) -> Any:
    """What `module:name` stands for, with the current folder importable; else the name itself."""
    if ":" not in name:
        return name
    module, attribute = name.split(":", 1)
    sys.path.insert(0, "")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError:
        raise ValueError(f"the module {module} has no {attribute}") from None


def _activations(text: str | None, layers: int) -> Any:
    names = [_own(name.strip()) for name in (text or "relu").split(",")]
    return names * layers if len(names) == 1 else names


def _train(args: argparse.Namespace) -> int:
    for path in (args.plot, args.save):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    if args.plot is not None:
        require_matplotlib(args.plot)
    named = args.output is not None and ":" not in args.output
    data = load_data(
        args.data, held_out=args.held_out, seed=args.seed, standardize=args.standardize,
        output=args.output if named else None,
    )  # fmt: skip
    m = data.X.shape[1]
    args.batch_size = args.batch_size or min(m, BATCH_SIZE)
    if args.batch_size > m:
        raise ValueError(f"--batch-size must be at most the {m} training examples")
    params = dp.init_params(
        jax.random.key(args.seed),
        [data.X.shape[0], *args.hidden, data.Y.shape[0]],
        hidden=_activations(args.activation, len(args.hidden)),
        output=data.output if args.output is None else _own(args.output),
        init=args.init,
    )
    _print_setting(args, data, params)
    start = time.perf_counter()
    params, history = _run(args, data, params)
    seconds = time.perf_counter() - start
    _print_result(args, data, params, history[-1], seconds)
    if args.plot is not None:
        title = f"{data.name}: {_describe(params)}"
        plot_curves(args.plot, history, _metric(params)[0], title)
        print(f"curves     {args.plot}")
    if args.save is not None:
        classes = {} if data.classes is None else {"classes": data.classes}
        dp.save(args.save, params, **data.scaling._asdict(), **classes)
        print(f"saved      {args.save}")
    return 0


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


def _run(args: argparse.Namespace, data: Data, params: Params) -> Run:
    optimizer = OPTIMIZERS[args.optimizer](args.learning_rate)
    step, state = dp.train_step(optimizer), optimizer.init(params)
    rng = np.random.default_rng(args.seed)
    metric, measure = _metric(params)
    evaluate = jax.jit(partial(_evaluate, measure))
    history: list[dict[str, float]] = []
    with epoch_lines(args.epochs) as show:
        for epoch in range(1, args.epochs + 1):
            for X, Y, weights in minibatches(data.X, data.Y, args.batch_size, rng):
                params, state, _ = step(params, state, X, Y, weights)
            J, score = map(float, evaluate(params, data.X, data.Y))
            J_test, score_test = map(float, evaluate(params, data.X_test, data.Y_test))
            if not np.isfinite(J):
                raise FloatingPointError(
                    f"the cost is {J} after epoch {epoch}; try a smaller --learning-rate"
                )
            row = {"cost": J, metric: score, "test cost": J_test, f"test {metric}": score_test}
            history.append(row)
            shown = [_shown(metric, value) for value in (score, score_test)]
            show(epoch, f"{epoch:5} {J:10.4f} {shown[0]:>10} {J_test:16.4f} {shown[1]:>10}")
    return params, history


def _print_result(
    args: argparse.Namespace, data: Data, params: Params, last: dict[str, float], seconds: float
) -> None:
    metric, _ = _metric(params)
    score = _shown(metric, last[f"test {metric}"])
    print(f"\nresult     {metric} {score} on {data.X_test.shape[1]:,} held-out examples", end="")
    print(f", after {seconds:.1f} s of training")
    if not args.no_check:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        sample = None if size <= CHECK_ALL else CHECK_SAMPLE
        few = slice(CHECK_EXAMPLES)
        report = dp.check_gradients(params, data.X[:, few], data.Y[:, few], sample=sample)
        print(f"gradients  {report}")


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


def _predict(args: argparse.Namespace) -> int:
    params, extra = dp.load(args.model), dp.load_extra(args.model)
    n_0 = params[0].W.shape[1]
    shift, scale = (extra.get(k, v) for k, v in (("shift", np.zeros(n_0)), ("scale", np.ones(n_0))))
    x, y = load_examples(args.data)
    A = np.asarray(jax.jit(dp.predict)(params, scaled(x, Scaling(shift, scale))))
    classes = extra.get("classes")
    answers = A.T if classes is None else classes[A.argmax(axis=0)]
    first = ", ".join(str(a) for a in answers[:10]) + (", ..." if len(answers) > 10 else "")
    print(f"{len(answers):,} predictions: {first}")
    if y is not None:
        metric, measure = _metric(params)
        score = float(measure(jnp.asarray(A), jnp.asarray(encoded(y, classes, "y"))))
        print(f"{metric} {_shown(metric, score)}")
    if args.out is not None:
        with atomic_write(args.out) as file:
            np.savetxt(file, answers, fmt="%s", delimiter=",")
        print(f"saved {args.out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    given = (args.hidden, args.activation, args.output)
    if args.model is not None:
        if given != (None, None, None):
            raise ValueError("a saved network has its own --hidden, --activation and --output")
        networks = {args.model: dp.load(args.model)}
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
