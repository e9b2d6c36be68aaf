"""deepprop check: compare gradients with differences, or explain someone's own backward pass."""

import argparse
from typing import Any

import jax
import numpy as np

import deepprop as dp
from deepprop._arguments import output_of
from deepprop.activations import ACTIVATIONS
from deepprop.checking.check import usual_units
from deepprop.checking.run import draw_targets
from deepprop.command.words import (
    describe,
    hidden_activations,
    resolve,
)
from deepprop.costs import COSTS, OF_SOFTMAX, OUTPUTS
from deepprop.layers import Params
from deepprop.outputs import output


def check(args: argparse.Namespace) -> int:
    """Compare gradients with central differences, and print one line per network.

    Returns:
        0 if all agree, 1 if not.
    """
    described = (args.hidden, args.activation, args.output)
    if args.backward is not None:
        return _check_backward(args)
    if args.model is not None:
        if described != (None, None, None):
            raise ValueError("a saved network has its own --hidden, --activation and --output")
        networks = {args.model: dp.load(args.model, own=[resolve(name) for name in args.own])}
    elif described != (None, None, None):
        hidden = [16, 12] if args.hidden is None else args.hidden
        activations = hidden_activations(args.activation, len(hidden))
        networks = {
            "": _new_network(args.seed, hidden, activations, resolve(args.output or "softmax"))
        }
    else:
        pairs = [(a, "softmax") for a in ACTIVATIONS] + [("tanh", o) for o in OUTPUTS]
        pairs += [("tanh", f"{a}+{c}") for a in ("identity", "tanh") for c in COSTS]
        pairs += [("tanh", f"softmax+{c}") for c in OF_SOFTMAX]
        networks = {f"{a}, {o}": _new_network(args.seed, [16, 12], a, o) for a, o in pairs}
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


def _check_backward(args: argparse.Namespace) -> int:
    """Check the function that --backward names, and print what is right and wrong.

    Returns:
        0 if it is right, 1 if not.
    """
    if args.model is not None:
        raise ValueError(f"--backward is checked on small networks of its own, not on {args.model}")
    backward = resolve(args.backward)
    if not callable(backward):
        raise ValueError(f"--backward must name a function, as file.py:name, got {args.backward}")
    out = output(resolve(args.output or "softmax"))
    sizes = None if args.hidden is None else [8, *args.hidden, usual_units(out)]
    layers = 2 if args.hidden is None else len(args.hidden)
    report = dp.check_backward(
        backward, parameters=args.parameters, output=out, sizes=sizes, seed=args.seed,
        hidden=hidden_activations(args.activation, layers),
    )  # fmt: skip
    print(report)
    return 0 if report.ok else 1


def _new_network(seed: int, hidden: list[int], activation: Any, output: Any) -> Params:
    """Return a small network with 8 inputs and 4 outputs."""
    return dp.init_params(jax.random.key(seed), [8, *hidden, 4], hidden=activation, output=output)


def _random_examples(params: Params, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw X (n_0, m) from the standard normal, and Y that suits the output."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((params[0].W.shape[-1], m))
    return X, draw_targets(output_of(params), params[-1].W.shape[0], m, rng)
