"""Why gradients are wrong: what the numbers show, which mistake gives them, where to look first.

1. Going down from the output, the first equation that fails is found. Above it everything is right,
   so it is the one to fix first. dZ[l] need not be returned for that: whether dW[l] and db[l] come
   from one dZ[l] can be solved.
2. The gradients are compared with those of other networks, and with those of every known mistake,
   made in all layers or in one.
3. If nothing explains them, the function is called once more: it may keep state.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepprop import outputs
from deepprop._words import factor_in_words, listed
from deepprop.activations import ACTIVATIONS, activation
from deepprop.checking.mistakes import CATALOGUE
from deepprop.checking.plain import LINES, Mistake, Passes, Problem, passes
from deepprop.checking.report import BackwardReport, at_layer
from deepprop.checking.run import GRADIENTS, Run
from deepprop.costs import canonical_dZ

COMMON = ("softmax", "sigmoid", "identity")
MORE_BELOW = "It explains that layer; there are more errors below it. Fix it and check again."
READS_A = (
    "It reads A[L], so the forward pass may be wrong instead. If you return Z1, A1, Z2, ..., each"
    " (n_l, m), they are checked, too."
)
READS_DZ = (
    "If you return dZ1, dA1, ..., each (n_l, m), they are checked, too, and the report can tell dA"
    " from g'."
)
AFTERWARDS = (
    "A[L] is right. If your dZ[L] is right as well, look at what happens to dW and db afterwards,"
    " such as clipping."
)
STATE = (
    "Called twice with the same arguments, it returned different gradients: it keeps something from"
    " one call to the next (a global, an attribute, a list), or it draws random numbers."
)
LATER = "Its first call was right, so it may keep something from one call to the next."


def explained(
    report: BackwardReport, runs: list[Run], again: Callable[[Passes], Run]
) -> BackwardReport:
    """Add to the report what explains it.

    Args:
        report: what is right and wrong.
        runs: all calls.
        again: calls the function once more.
    """
    usable = [one for one in runs if one.found]
    wrong = [one for one in usable if not one.is_right()]
    first_is_right = runs[0].is_right()
    if not wrong:
        return replace(report, hint=LATER) if first_is_right else report
    equation, layer = _first_failing(wrong[0])
    evidence = (*report.evidence, *_shifted(wrong[0]), *_factors(wrong))
    line = _line(equation, layer, wrong[0].right.problem)
    report = replace(report, evidence=evidence, equation=equation, layer=layer, line=line)
    found = _known_mistake(usable, layer)
    if other := _another_network(usable, any_hidden=found is None):
        report = replace(report, evidence=(*evidence, other), equation="", layer=None, line="")
    if found is not None:
        return _named(report, *found, runs[0].right.problem)
    if _differs(wrong[0], again(wrong[0].right)):
        return replace(report, evidence=(*evidence, STATE))
    if first_is_right:
        return replace(report, hint=LATER)
    return replace(report, hint=_hint(report, usable))


def _known_mistake(runs: list[Run], layer: int) -> tuple[Mistake, int | None, bool] | None:
    """Return the mistake that gives these gradients, its layer, and whether it explains all layers.

    It may be made in all layers (None), or in the first layer that fails.
    """
    for only, whole in ((None, True), (layer, True), (layer, False)):
        for mistake in CATALOGUE:
            if _explains(mistake, runs, only, layer, whole=whole):
                return mistake, only, whole
    return None


def _differs(one: Run, other: Run) -> bool:
    """Return whether two calls with the same arguments gave different gradients."""
    if one.found.keys() != other.found.keys():
        return True
    return any(
        not np.array_equal(one.found[key], other.found[key], equal_nan=True) for key in one.found
    )


def _hint(report: BackwardReport, runs: list[Run]) -> str:
    """Say what to return so that the report can point closer."""
    returned = {name for one in runs for name, _ in one.found}
    if report.equation == "dZ[L]" and not returned & {"Z", "A"}:
        return READS_A
    if report.equation == "dZ[L]" and "dZ" not in returned:
        return AFTERWARDS
    if report.equation == "dZ" and not returned & {"dA", "dZ"}:
        return READS_DZ
    return ""


def _shifted(one: Run) -> Iterator[str]:
    """Say if dW[l] is returned under the number of another layer."""
    for by in (1, -1):
        moved = [l for l in one.right.W if l + by in one.right.W]
        if moved and all(one.holds(("dW", l), one.right.dW[l + by]) for l in moved):
            l = moved[0]
            yield f"dW[{l}] is what dW[{l + by}] should be: the numbers of the layers are shifted."


def _line(equation: str, layer: int, problem: Problem) -> str:
    """Return the equation with the number of its layer."""
    if equation == "dZ[L]" and problem.output.dZ is canonical_dZ:
        return "dZ[L] = A[L] - Y"
    return at_layer(LINES[equation], layer)


def _named(
    report: BackwardReport, mistake: Mistake, only: int | None, whole: bool, problem: Problem
) -> BackwardReport:
    """Add a known mistake to the report."""
    start = LINES["dZ[L]"], _line("dZ[L]", problem.L, problem)
    yours, right = mistake.yours, mistake.right.replace(*start)
    if only is None:
        return replace(report, mistake=mistake.name, yours=yours, should_be=right)
    hint = "" if whole else MORE_BELOW
    return replace(
        report, mistake=f"{mistake.name}, in layer {only}", yours=at_layer(yours, only),
        should_be=at_layer(right, only), hint=hint,
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
            m, n_L = problem.m, len(problem.b[problem.L])
            sizes = {"m": m, "n_L": n_L, "m n_L": m * n_L, "m n_L / 2": m * n_L / 2, "m^2": m * m,
                     "m / n_L": m / n_L, "n_L / 2": n_L / 2}  # fmt: skip
            arrays = listed([f"{name}[{l}]" for l in sorted(layers)])
            said = factor_in_words(arrays, factors[0], sizes, several=len(layers) > 1)
            yield said + _remark(factors[0])


def _remark(c: float) -> str:
    if abs(c) < 1e-9:
        return ": does the loop reach that layer?"
    return ": an update, -rate times the gradient?" if c < 0 and abs(c + 1) > 1e-3 else "."


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

    If dW[l] or db[l] is right, dZ[l] is too. If both are wrong, but come from one and the same
    dZ[l], it is dZ[l] that is wrong. If dW[l] alone could come from A[l-1], both equations are.
    Otherwise A[l-1] differs, and with it what is above.
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
    inputs = np.vstack([right.A[l - 1], np.ones((1, right.m))])  # b is a weight of the input 1
    if _are_made_from(one, inputs, np.hstack([dW, db])):
        return "dZ"
    return "dW" if _are_made_from(one, right.A[l - 1], dW) else "dZ"


def _are_made_from(one: Run, inputs: np.ndarray, gradient: np.ndarray) -> bool:
    """Return whether a gradient is dZ inputs^T for some dZ."""
    dZ = np.linalg.lstsq(inputs, gradient.T, rcond=None)[0].T
    return one.close(gradient, dZ @ inputs.T)


def _another_network(runs: list[Run], *, any_hidden: bool) -> str:
    """Say of which other activation or output these are the right gradients, or "".

    If those of all layers are not, those of the highest may be: then more is wrong than that. Other
    hidden activations are tried only with `any_hidden`, as that takes longer.
    """
    problem = runs[0].right.problem
    given = {"output": problem.output.name}
    if len({g.name for g in problem.hidden}) == 1:
        given["hidden"] = problem.hidden[0].name
    others: list[dict[str, Any]] = [
        {"hidden": hidden, "output": other}
        for hidden in (ACTIVATIONS if any_hidden and "hidden" in given else [given.get("hidden")])
        for other in dict.fromkeys([problem.output.name, *COMMON * (given["output"] in COMMON)])
    ]
    for layers in (list(problem.W), [problem.L]):
        for other in others:
            changed = {name: kind for name, kind in other.items() if kind and kind != given[name]}
            if changed and all(_is_right_for(one, layers, **other) for one in runs):
                whole = len(layers) == problem.L
                these = "These gradients" if whole else f"Those of layer {problem.L}"
                return (
                    f"{these} are right for {_arguments(changed)}; the check was for"
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
