"""Checking a backward pass that someone else has written, and explaining what is wrong with it.

The function is called for small random networks: one with unequal and one with equal widths, as
some mistakes need equal widths to run at all, and each for two steps with other weights and
examples, as some mistakes read what an earlier call has left. Then, in this order:

1. What it returns is compared with the page (mistakes.py), quantity by quantity.
2. From the top, the first equation that fails is found. Above it everything is right, so it is the
   one to mend first. dZ[l] need not be returned for that: there are fewer examples than units, so
   dZ[l] follows from dW[l] = 1/m dZ[l] A[l-1]^T.
3. The gradients are compared with those of every known mistake, made in all layers or in one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from deepprop import outputs
from deepprop.activations import ACTIVATIONS, Activation, activation
from deepprop.backward_report import BackwardReport, at_layer, factor_in_words, listed
from deepprop.backward_run import FORMS, GRADIENTS, OTHERS, M, Run, draw, run, two_steps
from deepprop.costs import Output, canonical_dZ
from deepprop.mistakes import CATALOGUE, LINES, Mistake, Passes, Problem, passes
from deepprop.outputs import OutputChoice

UNEQUAL, EQUAL = (8, 7, 6), (6, 6, 6)  # n_0 to n_{L-1}
COMMON = ("softmax", "sigmoid", "identity")
SURE = 1e4  # by which W[L] grows, so that outputs round to 0 and 1
MORE_BELOW = (
    "The known mistake explains that layer; below it more is wrong. Mend it and check again."
)
READS_A = (
    "That equation reads A[L], so the forward pass may be what differs: return Z1, A1, Z2, ... as"
    " well, and they are checked, too."
)


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
        TypeError: `backward` can't be called.
    """
    if not callable(backward):
        raise TypeError(f"backward must be a function of (parameters, X, Y), got {backward!r}")
    if parameters not in FORMS:
        raise ValueError(f"parameters must be one of {', '.join(FORMS)}, got {parameters!r}")
    chosen = outputs.output(output)
    shapes = [list(sizes)] if sizes is not None else _sizes_for(hidden, chosen)
    kinds = _hidden(hidden, shapes[0])
    call = partial(_two_steps, backward, parameters, kinds, chosen, seed)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        runs = [one for shape in shapes for one in call(shape)]
        report = _compared(runs)
        if report.ok:
            return replace(report, notes=(*report.notes, *_fragile(backward, parameters, runs[0])))
        if report.error:  # networks in which more mistakes run
            runs += _in_squares(call, runs[0].right.problem)
        return _explained(report, [one for one in runs if one.found])


def _sizes_for(hidden: Any, chosen: Output) -> list[list[int]]:
    """Return the sizes of a network with unequal and of one with equal widths."""
    layers = 2 if isinstance(hidden, str | Activation) else len(hidden)
    n_L = chosen.units(1 if chosen.name == "sigmoid" else 3)
    return [[*np.resize(below, layers + 1).tolist(), n_L] for below in (UNEQUAL, EQUAL)]


def _hidden(hidden: Any, sizes: Sequence[int]) -> list[Activation]:
    """Return the activation of each hidden layer.

    Raises:
        ValueError: there are too few sizes, one is below 1, or not one activation per layer.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be two or more numbers above 0, got {list(sizes)}")
    n = len(sizes) - 2
    names = [hidden] * n if isinstance(hidden, str | Activation) else list(hidden)
    if len(names) != n:
        raise ValueError(
            f"hidden must be one activation, or one for each of {n} hidden layers, got {len(names)}"
        )
    return [activation(name) for name in names]


def _two_steps(
    backward: Callable[..., Any], form: str, hidden: Sequence[Activation], chosen: Output,
    seed: int, sizes: Sequence[int], m: int = M,
) -> list[Run]:  # fmt: skip
    rng = np.random.default_rng(seed)
    return list(two_steps(backward, form, lambda: draw(sizes, hidden, chosen, m, rng)))


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
    report = BackwardReport(
        _described(runs),
        right=tuple(f"{name}[{l}]" for name, l in wanted if (name, l) not in wrong),
        wrong=tuple(f"{name}[{l}]" for name, l in wrong),
        evidence=tuple(dict.fromkeys(said for one in runs for said in one.shapes)),
        notes=tuple(_changed_in_place(runs)),
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
            "where an output is exactly 0 or 1, the gradients are not finite: log of 0, a division"
            " by A[L] or 1 - A[L], or exp of a large Z. dZ[L] = A[L] - Y divides by nothing, and"
            " softmax stays finite if the largest Z of each column is subtracted first."
        )


# The reasons.


def _explained(report: BackwardReport, runs: list[Run]) -> BackwardReport:
    """Add to the report what explains it: another network, a known mistake, or the equation."""
    wrong = [one for one in runs if not one.is_right()]
    if not wrong:
        return report
    equation, layer = _first_failing(wrong[0])
    evidence = (*report.evidence, *_factors(wrong))
    line = _line(equation, layer, wrong[0].right.problem)
    report = replace(report, evidence=evidence, equation=equation, layer=layer, line=line)
    if other := _another_network(runs):
        report = replace(report, evidence=(*evidence, other), equation="", line="")
    for only, whole in ((None, True), (layer, True), (layer, False)):
        for mistake in CATALOGUE:
            if _explains(mistake, runs, only, layer, whole=whole):
                return _named(report, mistake, only, whole=whole)
    forward = any(name in ("Z", "A") for one in runs for name, _ in one.found)
    if report.equation == "dZ[L]" and not forward:
        return replace(report, evidence=(*evidence, READS_A))
    return report


def _line(equation: str, layer: int, problem: Problem) -> str:
    """Return the equation with the number of its layer."""
    if equation == "dZ[L]" and problem.output.dZ is canonical_dZ:
        return "dZ[L] = A[L] - Y"
    return at_layer(LINES[equation], layer)


def _named(
    report: BackwardReport, mistake: Mistake, only: int | None, *, whole: bool
) -> BackwardReport:
    """Add a known mistake to the report."""
    yours, right = mistake.yours, mistake.right
    if only is None:
        return replace(report, mistake=mistake.name, yours=yours, should_be=right)
    evidence = report.evidence if whole else (*report.evidence, MORE_BELOW)
    return replace(
        report, mistake=f"{mistake.name}, in layer {only}", yours=at_layer(yours, only),
        should_be=at_layer(right, only), evidence=evidence,
    )  # fmt: skip


def _explains(
    mistake: Mistake, runs: list[Run], only: int | None, layer: int, *, whole: bool
) -> bool:
    """Return whether a mistake gives what was found in every run, and not what is right."""
    differs = False
    for one in runs:
        made = _with_rate(mistake, one, only, layer)
        if made is None:
            return False
        for name in GRADIENTS:
            for l in one.right.W if whole else [layer]:
                found, wrong = one.found.get((name, l)), getattr(made, name)[l]
                if found is None or not _alike(one, found, wrong):
                    return False
                differs |= not _alike(one, getattr(one.right, name)[l], wrong)
    return differs


def _with_rate(mistake: Mistake, one: Run, only: int | None, layer: int) -> Passes | None:
    """Return the passes with a mistake; None if it can't run with these shapes.

    If the mistake has a number of its own, it is fitted to dW of the layer where it shows first. It
    enters that gradient linearly.
    """
    made = _made(mistake, one.right, only)
    found = one.found.get(("dW", layer))
    if not mistake.fitted or made is None or found is None:
        return made
    further = _made(mistake, one.right, only, rate=1.0)
    if further is None or found.shape != made.dW[layer].shape:
        return None
    change = further.dW[layer] - made.dW[layer]
    rate = np.vdot(found - made.dW[layer], change) / (np.vdot(change, change) or 1.0)
    return _made(mistake, one.right, only, rate=float(rate))


def _made(mistake: Mistake, right: Passes, only: int | None, rate: float = 0.0) -> Passes | None:
    try:
        return passes(right.problem, mistake, only=only, previous=right.previous, rate=rate)
    except (ValueError, TypeError):  # the shapes do not fit
        return None


def _alike(one: Run, found: np.ndarray, made: np.ndarray) -> bool:
    """Return whether arrays agree up to axes of length 1, and to repetitions of a single number."""
    found, made = np.squeeze(found), np.squeeze(made)
    if made.ndim and found.shape != made.shape:
        return False
    return bool(np.isfinite(found).all()) and one.close(*np.broadcast_arrays(found, made))


def _factors(runs: list[Run]) -> Iterator[str]:
    """Say by which number all wrong dW, or all wrong db, are too large or too small."""
    for name in GRADIENTS:
        factors, layers = [], set()
        for one in runs:
            for l in one.right.W:
                found, right = one.found.get((name, l)), getattr(one.right, name)[l]
                if found is None or found.shape != right.shape or one.agrees(name, l):
                    continue
                c = float(np.vdot(right, found) / np.vdot(right, right))
                layers.add(l)
                factors.append(c if one.close(found, c * right) else np.nan)
        if factors and np.ptp(factors) <= 1e-3 * abs(factors[0]):  # False for nan
            problem = runs[0].right.problem
            sizes = {"m": problem.m, "n_L": len(problem.b[problem.L])}
            arrays = listed([f"{name}[{l}]" for l in sorted(layers)])
            yield factor_in_words(arrays, factors[0], sizes, several=len(layers) > 1) + "."


def _first_failing(one: Run) -> tuple[str, int]:
    """Return the first equation that fails, and its layer: from the top, after the forward pass."""
    L = one.right.L
    for l in one.right.W:
        for name in ("Z", "A"):
            if (name, l) in one.found and not one.agrees(name, l):
                return ("A[L]" if (name, l) == ("A", L) else name), l
    for l in range(L, 0, -1):
        signals = [
            name for name in ("dA", "dZ") if (name, l) in one.found and (name, l) != ("dA", L)
        ]
        for name in (*signals, *GRADIENTS):
            if not one.agrees(name, l):
                ends = name in GRADIENTS and "dZ" not in signals
                failed = _without_dZ(one, l) if ends else name
                return ("dZ[L]" if (failed, l) == ("dZ", L) else failed), l
    return "", 0


def _without_dZ(one: Run, l: int) -> str:
    """Return the equation that fails in a layer whose dZ[l] was not returned.

    If dW[l] or db[l] is right, dZ[l] is too. If both are wrong, dZ[l] is solved from
    dW[l] = 1/m dZ[l] A[l-1]^T. If there is a solution, dW[l] was made from A[l-1]. If db[l] is the
    mean of that same dZ[l], it is dZ[l] that is wrong; otherwise dW[l] and db[l] both are.
    """
    right = one.right
    if one.agrees("dW", l):
        return "db"
    if one.agrees("db", l):
        return "dW"
    dW, db = one.found.get(("dW", l)), one.found.get(("db", l))
    if dW is None or dW.shape != right.dW[l].shape:
        return "dW"
    if db is None or db.shape != right.db[l].shape:
        return "db"
    if not (np.isfinite(dW).all() and np.isfinite(db).all()):
        return "dZ"
    A = right.A[l - 1]
    dZ = right.m * np.linalg.lstsq(A, dW.T, rcond=None)[0].T
    made_from_A = one.close(dW, dZ @ A.T / right.m)
    same_dZ = one.close(db, dZ.mean(axis=1, keepdims=True))
    return "dW" if made_from_A and not same_dZ else "dZ"


def _another_network(runs: list[Run]) -> str:
    """Say of which other activation or output these are the right gradients, or "".

    If those of all layers are not, those of the highest may be: then more is wrong than that.
    """
    problem = runs[0].right.problem
    given = {"output": problem.output.name}
    if len({g.name for g in problem.hidden}) == 1:
        given["hidden"] = problem.hidden[0].name
    others: list[dict[str, Any]] = [
        {"hidden": hidden, "output": other}
        for hidden in (ACTIVATIONS if "hidden" in given else [None])
        for other in dict.fromkeys([problem.output.name, *COMMON * (given["output"] in COMMON)])
    ]
    for layers in (list(problem.W), [problem.L]):
        for other in others:
            changed = {name: kind for name, kind in other.items() if kind and kind != given[name]}
            if changed and all(_is_right_for(one, layers, **other) for one in runs):
                these = "These are the" if len(layers) > 1 else f"Those of layer {problem.L} are"
                return (
                    f"{these} right gradients for {_arguments(changed)}; the check was for"
                    f" {_arguments({name: given[name] for name in changed})}."
                )
    return ""


def _arguments(kinds: dict[str, str]) -> str:
    return listed([f'{name}="{kind}"' for name, kind in kinds.items()])


def _is_right_for(one: Run, layers: Sequence[int], hidden: str | None, output: str) -> bool:
    """Return whether the gradients of these layers are right for other kinds of layers."""
    problem = one.right.problem
    kinds = problem.hidden if hidden is None else [activation(hidden)] * len(problem.hidden)
    chosen = problem.output if output == problem.output.name else outputs.output(output)
    other = replace(one, right=passes(replace(problem, hidden=kinds, output=chosen)))
    return all(other.agrees(name, l) for name in GRADIENTS for l in layers)
