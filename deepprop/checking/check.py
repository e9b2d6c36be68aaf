"""Checking a backward pass that someone else has written, and explaining what is wrong with it.

The function is called for small random networks: one with unequal and one with equal widths, as
some mistakes need equal widths to run at all, and each for two steps with different weights and
examples, as some mistakes read what an earlier call has left. What it returns is compared with the
page (plain.py), quantity by quantity. What is wrong is then explained: see reasons.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from deepprop import outputs
from deepprop._checks import whole_number
from deepprop._words import listed, verb
from deepprop.activations import Activation, activation
from deepprop.checking.plain import Problem, passes
from deepprop.checking.reasons import explained
from deepprop.checking.report import BackwardReport
from deepprop.checking.run import FORMS, GRADIENTS, OTHERS, M, Run, run, two_steps
from deepprop.costs import Output
from deepprop.outputs import OutputChoice

UNEQUAL, EQUAL = (8, 7, 6), (6, 6, 6)  # n_0 to n_{L-1}
SURE = 1e4  # by which W[L] grows, so that outputs round to 0 and 1


def check_backward(
    backward: Callable[..., Any],
    *,
    parameters: str = "dict",
    hidden: str | Activation | Sequence[str | Activation] = "relu",
    output: OutputChoice = "softmax",
    sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> BackwardReport:
    """Check a backward pass written by anyone, and explain what is wrong with it.

    `backward(parameters, X, Y)` runs its own forward pass and returns the gradients of
    J = 1/m sum_i L(i), with one example per column. It may be written with NumPy or JAX.

    >>> import numpy as np
    >>> def backward(parameters, X, Y):  # one layer, softmax
    ...     Z = parameters["W1"] @ X + parameters["b1"]
    ...     A = np.exp(Z) / np.exp(Z).sum(axis=0)
    ...     dZ = A - Y
    ...     return {"dW1": dZ @ X.T, "db1": dZ.sum(axis=1, keepdims=True)}
    >>> report = check_backward(backward, sizes=[6, 3])
    >>> report.ok, report.mistake
    (False, '1/m is missing')

    Args:
        backward: the function to check.
        parameters: what it takes and returns. "dict": W1, b1, W2, ... to dW1, db1, dW2, ...; dZ1,
            dA1, Z1, A1, ... are checked as well if they are returned. "pairs": ((W, b), ...) to
            ((dW, db), ...), layer 1 first. "layers": deepprop's layers to such layers or pairs.
        hidden: the activation of the hidden layers, or a sequence of them: see
            `deepprop.activation`.
        output: the output layer and the cost: see `deepprop.output`. "identity" has the cost
            1/2 sum (A - Y)^2 per example.
        sizes: units per layer, n_0 to n_L; by default one network with unequal and one with equal
            widths, each of three layers.
        seed: of the random weights and examples.

    Returns:
        The report. An error that `backward` raises is part of it.

    Raises:
        ValueError: `parameters` is none of the three, a size is below 1, a name is unknown, or the
            number of hidden activations does not fit.
        TypeError: `backward` can't be called, or a size is not a whole number.
    """
    if not callable(backward):
        raise TypeError(f"backward must be a function of (parameters, X, Y), got {backward!r}")
    if parameters not in FORMS:
        raise ValueError(f"parameters must be one of {', '.join(FORMS)}, got {parameters!r}")
    chosen = outputs.output(output)
    if sizes is None:
        shapes = _sizes_for(hidden, chosen)
    else:
        shapes = [[whole_number("sizes", n) for n in sizes]]
    kinds = _hidden(hidden, shapes[0])
    call = partial(two_steps, backward, parameters, kinds, chosen, seed)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        runs = [one for shape in shapes for one in call(shape)]
        report = _compared(runs)
        if report.ok:
            return replace(report, notes=(*report.notes, *_fragile(backward, parameters, runs[0])))
        if report.error:  # networks in which more mistakes run
            runs += _in_squares(call, runs[0].right.problem)
        return explained(report, runs, partial(run, backward, parameters))


def _sizes_for(hidden: Any, chosen: Output) -> list[list[int]]:
    """Return the sizes of a network with unequal and of one with equal widths."""
    layers = 2 if isinstance(hidden, str | Activation) else len(hidden)
    n_L = usual_units(chosen)
    return [[*np.resize(below, layers + 1).tolist(), n_L] for below in (UNEQUAL, EQUAL)]


def usual_units(chosen: Output) -> int:
    """Return n_L of the networks to check: one sigmoid, three classes, or three targets."""
    return chosen.units(1 if chosen.name == "sigmoid" else 3)


def _hidden(hidden: Any, sizes: Sequence[int]) -> list[Activation]:
    """Return the activation of each hidden layer.

    Raises:
        ValueError: there are too few sizes, or there is not one activation per hidden layer.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must be two or more numbers, got {list(sizes)}")
    n = len(sizes) - 2
    names = [hidden] * n if isinstance(hidden, str | Activation) else list(hidden)
    if len(names) != n:
        raise ValueError(
            f"hidden must be one activation, or one for each of {n} hidden layers, got {len(names)}"
        )
    return [activation(name) for name in names]


def _in_squares(call: Callable[..., list[Run]], problem: Problem) -> list[Run]:
    """Return runs of a network in which all widths are equal, then with m examples of that width.

    What raises an error in other networks may run there, and then it can be named.
    """
    n = EQUAL[0]
    for m in (M, n):
        runs = call([n] * (problem.L + 1), m=m)
        if not any(one.error for one in runs):
            return runs
    return []


# What is right and wrong.


def _compared(runs: list[Run]) -> BackwardReport:
    """Return the report of what is right and wrong, without a reason."""
    problem = runs[0].right.problem
    returned = {key for one in runs for key in one.found} - {("dA", problem.L)}
    wanted = [(name, l) for l in problem.W for name in (*OTHERS, *GRADIENTS)
              if name in GRADIENTS or (name, l) in returned]  # fmt: skip
    wrong = [key for key in wanted if not all(one.agrees(*key) for one in runs)]
    notes = list(_changed_in_place(runs))
    if wrong and not any(name in GRADIENTS for name, _ in wrong):  # another name, or overwritten
        others = listed([f"{name}[{l}]" for name, l in wrong])
        notes += [
            f"{others} {verb(wrong)} not what the page calls by that name, but the gradients are"
            " right."
        ]
        wanted, wrong = [key for key in wanted if key not in wrong], []
    report = BackwardReport(
        _described(runs),
        right=tuple(f"{name}[{l}]" for name, l in wanted if (name, l) not in wrong),
        wrong=tuple(f"{name}[{l}]" for name, l in wrong),
        evidence=next((one.shapes for one in runs if one.shapes), ()),
        notes=tuple(notes),
    )
    failed = next((one for one in runs if one.error), None)
    if failed is None:
        return report
    shape, m = _sizes(failed.right.problem), problem.m
    error = f"{failed.error}\nThis was for the network {shape} with {m} examples."
    return replace(report, error=error, right=(), wrong=())


def _described(runs: list[Run]) -> str:
    problem = runs[0].right.problem
    sizes = dict.fromkeys(_sizes(one.right.problem) for one in runs)
    kinds = dict.fromkeys([*(g.name for g in problem.hidden), problem.output.name])
    return f"{' and '.join(sizes)}, {', '.join(kinds)}, m = {problem.m}"


def _sizes(problem: Problem) -> str:
    return "-".join(str(n) for n in [len(problem.X), *map(len, problem.b.values())])


def _changed_in_place(runs: list[Run]) -> Iterator[str]:
    if changed := list(dict.fromkeys(name for one in runs for name in one.changed)):
        yield (
            f"backward changes {listed(changed)} in place, which its caller still needs. Work on"
            " copies, and update after the backward pass."
        )


def _fragile(backward: Callable[..., Any], form: str, one: Run) -> Iterator[str]:
    """Say where right gradients are not finite."""
    problem = one.right.problem
    if problem.output.name not in ("sigmoid", "softmax"):
        return
    W = {**problem.W, problem.L: SURE * problem.W[problem.L]}
    sure = run(backward, form, passes(replace(problem, W=W)))
    if sure.error or not all(np.isfinite(P).all() for P in sure.found.values()):
        yield (
            "the gradients are right, but not finite where an output rounds to exactly 0 or 1 (log"
            " of 0, 0/0, or exp of a large Z). dZ[L] = A[L] - Y is finite everywhere, and so is a"
            " softmax that subtracts the largest Z of each column first."
        )
