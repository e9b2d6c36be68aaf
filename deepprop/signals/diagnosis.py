"""What a diagnosis says: a table, and findings in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepprop.activations import Activation
from deepprop.costs import Output
from deepprop.layers import Params, activations, number_of_layers, units

# Thresholds of the findings. They are rules of thumb, wide enough that a network that learns well
# gives no finding. Where a number comes from the literature, its source is beside it.
FLAT = 0.05  # of the steepest slope: below it, an entry is in the flat part of the activation
INPUTS = (0.02, 20)  # root mean square of an input: LeCun et al. 1998, Efficient BackProp: about 1
INPUT_RATIO = 100  # of the largest input to the median one
GROWTH = 100  # size of a unit's output, relative to the inputs
VANISHED = 1e-3  # norm of dZ[l], relative to dZ[L]; above 1 / VANISHED the gradient explodes
DEAD_UNITS = 0.6  # share; half of all relu units may be dead on a small batch
CUT_OFF = 0.99  # share of dead units above which a layer passes no signal
FLAT_SHARE = 0.5  # share of flat entries of a two-sided activation, such as tanh
UPDATES = (1e-6, 0.1)  # norm of an update, relative to W; about 1e-3 is usual (CS231n notes)
TARGETS = 100  # norm of dZ[L] = A[L] - Y
MOST_ROWS = 24  # of a table: of a deeper network, the lowest and the highest layers
MOST_NAMED = 8  # layers listed by number in a finding
STILL = 0.1  # norm of dZ[L] above which there is something left to learn


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of `diagnose`: arrays (L,), layer 1 first. `print` shows a table and findings.

    The norm of A or dZ here is the root of the mean, over examples, of a column's squared length.
    It does not grow with m.

    Attributes:
        A: norm of A[l] over sqrt(n_l): the size of a unit's output.
        dZ: norm of dZ[l].
        W: norm of W[l] (Frobenius).
        dW: norm of dW[l] (Frobenius).
        update: norm of the update of W[l] divided by that of W[l], or by sqrt(n_l) if that is
            larger, the norm after LeCun's initialisation; None without updates.
        dead: share of units whose g' is 0 for every example: they can't learn from this batch.
        flat: share of entries where g' is below a twentieth of its largest value.
        X: (3,), three summaries of the inputs' sizes (root mean squares): their root mean square,
            the median of those that are not always 0, and the largest.
        units: n_0, n_1, ..., n_L.
        activations: of each layer; the last is the output.
    """

    A: Array
    dZ: Array
    W: Array
    dW: Array
    update: Array | None
    dead: Array
    flat: Array
    X: Array
    units: tuple[int, ...] = field(repr=False, metadata={"static": True})
    activations: tuple[Activation | Output, ...] = field(repr=False, metadata={"static": True})

    def __str__(self) -> str:
        """Return the table, and the findings below it."""
        if np.ndim(self.A) != 1:
            return repr(self)  # of several steps or networks
        found = findings(self)
        lines = [f"- {finding}" for finding in found] or ["nothing stands out"]
        return "\n".join([table(self), "", *lines])


def steepest(g: Activation) -> float:
    """Return the largest |g'| between Z = -10 and 10, where every usual activation has it."""
    Z = np.linspace(-10, 10, 2001, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        slopes = g.g_prime(jnp.asarray(Z), g.g(jnp.asarray(Z)))
        return float(jnp.max(jnp.abs(slopes)))


def table(diagnosis: Diagnosis) -> str:
    """Return one line per layer, rounded to two digits; of very many, the lowest and highest."""
    d = _numbers(diagnosis)
    head = ["layer", "units", "activation", "A", "dZ", "W", "dW", "update/W", "dead", "flat"]
    rows, L = [head], len(diagnosis.activations)
    for l, g in enumerate(diagnosis.activations):
        if L > MOST_ROWS and MOST_ROWS // 2 <= l < L - MOST_ROWS // 2:
            rows += [["..."] + [""] * (len(head) - 1)] * (l == MOST_ROWS // 2)
            continue
        update = "" if "update" not in d else f"{d['update'][l]:.2g}"
        plain = isinstance(g, Activation)
        shares = [f"{d[name][l]:.0%}" if plain else "" for name in ("dead", "flat")]
        numbers = [f"{d[name][l]:.2g}" for name in ("A", "dZ", "W", "dW")]
        rows.append([f"{l + 1}", f"{diagnosis.units[l + 1]}", g.name, *numbers, update, *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2  # names are left-aligned, numbers right-aligned
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def diagnosis_of(history: Mapping[str, np.ndarray], params: Params, entry: int = -1) -> Diagnosis:
    """Return one recorded diagnosis of `fit(..., record=dp.diagnose)`.

    Args:
        history: the history of a `Fit`.
        params: the layers, which have the units and activations.
        entry: its number over all epochs; by default the last.

    Returns:
        A `Diagnosis`, to print, or to pass to `findings`.

    Raises:
        ValueError: the history has no such entry.
    """
    names = [f.name for f in fields(Diagnosis) if not f.metadata.get("static")]
    check_recorded(history)
    entries = history["dead"].shape[0] * history["dead"].shape[1]
    L = number_of_layers(params)
    if not -entries <= entry < entries or history["dead"].shape[-1] != L:
        raise ValueError(
            f"entry must be one of the history's {entries}, of {history['dead'].shape[-1]} layers,"
            f" got entry {entry} and params of {L} layers"
        )
    arrays: dict[str, Any] = {
        name: np.concatenate(history[name])[entry] if name in history else None for name in names
    }
    return Diagnosis(**arrays, units=units(params), activations=activations(params))


def check_recorded(history: Mapping[str, np.ndarray]) -> None:
    """Raise unless the history has a recorded diagnosis.

    Raises:
        ValueError: it has none.
    """
    if "dead" not in history or not history["dead"].size:
        raise ValueError(
            "history must come from a fit with record=dp.diagnose, of at least one epoch,"
            f" got {', '.join(history)}"
        )


def findings(diagnosis: Diagnosis) -> list[str]:
    """Describe in words what is wrong; an empty list means that the network looks healthy.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [4, *[8] * 9, 1], hidden="sigmoid",
    ...                         output="identity")
    >>> X = jax.random.normal(jax.random.key(1), (4, 50))
    >>> _, cache = dp.forward(params, X)
    >>> findings(dp.diagnose(cache, dp.error_signals(cache, X[:1])))[0][:37]
    'layers 1 to 4: the gradient vanishes,'

    Args:
        diagnosis: the result of `diagnose` for one step.

    Returns:
        One line per finding.
    """
    d = _numbers(diagnosis)
    sizes = sum(d[name] for name in ("A", "dZ", "W", "dW", "update") if name in d)
    broken = np.flatnonzero(~np.isfinite(sizes)) + 1
    if broken.size:
        return [f"{_layers(broken)}: not finite; try a smaller learning rate or scaled inputs"]
    of_inputs = _of_inputs(d["X"])
    found = [*of_inputs, *_of_units(diagnosis, d), *_of_targets(d)]
    # Dead units or W = 0 already explain a missing signal; don't report it twice.
    if (d["dead"] <= CUT_OFF).all() and (d["W"] > 0).all():
        two_sided = any(map(_is_two_sided, diagnosis.activations))
        found += [*([] if of_inputs else _of_signals(d)), *_of_gradients(d, two_sided)]
    return found + _of_updates(d)


def _of_inputs(X: np.ndarray) -> list[str]:
    _, median, largest = X
    low, high = INPUTS
    if largest == 0:
        return ["inputs: all are 0"]
    if not low <= largest <= high:
        return [f"inputs: their size is up to {largest:.2g}; scale them to about 1"]
    if largest > INPUT_RATIO * median:
        ratio = largest / median
        return [f"inputs: the largest is {ratio:.0f} times the median one; scale each to about 1"]
    return []


def _of_targets(d: dict[str, np.ndarray]) -> list[str]:
    if d["dZ"][-1] <= TARGETS:
        return []
    return [f"targets: dZ[L] = A[L] - Y has size {d['dZ'][-1]:.2g}; scale them to about 1"]


def _of_signals(d: dict[str, np.ndarray]) -> list[str]:
    """Report where A grows or decays on the way up."""
    found = []
    growth = d["A"][:-1] / max(d["X"][0], 1e-30)
    for which, what, help in (
        (growth > GROWTH, "grows to", "a smaller initialisation, such as He, Glorot or LeCun"),
        (growth < 1 / GROWTH, "decays to", "a larger initialisation, or relu or selu"),
    ):
        if which.any():
            found.append(
                f"{_layers(np.flatnonzero(which) + 1)}: the signal {what} {growth[which][-1]:.0e}"
                f" of the inputs' size; try {help}"
            )
    return found


def _of_gradients(d: dict[str, np.ndarray], two_sided: bool) -> list[str]:
    """Report where dZ vanishes or explodes on the way down."""
    if d["dZ"][-1] == 0:
        return []  # nothing is left to learn
    found, share = [], d["dZ"] / d["dZ"][-1]
    for which, what, help in (
        (share < VANISHED, "vanishes", "relu, or He" if two_sided else "a larger"),
        (share > 1 / VANISHED, "explodes", "a smaller"),
    ):
        if which.any():
            found.append(
                f"{_layers(np.flatnonzero(which) + 1)}: the gradient {what}, dZ is"
                f" {share[which][0]:.0e} of layer {len(share)}'s; try {help} initialisation"
            )
    return found


def _of_units(diagnosis: Diagnosis, d: dict[str, np.ndarray]) -> list[str]:
    """Report where units are dead or saturated."""
    found = []
    dead = d["dead"] > DEAD_UNITS
    if dead.any():
        found.append(
            f"{_layers(np.flatnonzero(dead) + 1)}: {d['dead'].max():.0%} of units are dead, their"
            " slope is 0 for every example; try a smaller learning rate, b = 0, or leaky_relu"
        )
    two_sided = np.array([_is_two_sided(g) for g in diagnosis.activations])
    flat = (d["flat"] > FLAT_SHARE) & two_sided & ~dead
    if flat.any():
        names = {diagnosis.activations[l].name for l in np.flatnonzero(flat)}
        found.append(
            f"{_layers(np.flatnonzero(flat) + 1)}: {' and '.join(sorted(names))} saturates, for"
            f" {d['flat'][flat].max():.0%} of units and examples; try relu, smaller weights or"
            " scaled inputs"
        )
    return found


def _of_updates(d: dict[str, np.ndarray]) -> list[str]:
    if "update" not in d:
        return []
    low, high = UPDATES
    large, largest = d["update"] > high, d["update"].max()
    if large.any():
        where = _layers(np.flatnonzero(large) + 1)
        return [f"{where}: an update is {largest:.2g} of W; try a smaller learning rate"]
    if largest < low and d["dZ"][-1] > STILL:
        return [f"all layers: updates are at most {largest:.0e} of W; try a larger learning rate"]
    return []


def _is_two_sided(g: Activation | Output) -> bool:
    """Return whether g is flat at both ends, so that a flat unit is stuck."""
    if not isinstance(g, Activation):
        return False
    Z = jnp.array([-10.0, 10.0])
    return bool(jnp.all(jnp.abs(g.g_prime(Z, g.g(Z))) < FLAT * steepest(g)))


def _numbers(diagnosis: Diagnosis) -> dict[str, np.ndarray]:
    names = ["A", "dZ", "W", "dW", "update", "dead", "flat", "X"]
    arrays = {name: getattr(diagnosis, name) for name in names}
    return {name: np.asarray(a, np.float64) for name, a in arrays.items() if a is not None}


def _layers(which: Sequence[int] | np.ndarray) -> str:
    """Return layer numbers in words: "layer 3", "layers 1 to 4", "layers 1, 3 and 4"."""
    l = [int(i) for i in which]
    if len(l) == 1:
        return f"layer {l[0]}"
    if l == list(range(l[0], l[-1] + 1)) and len(l) > 2:
        return f"layers {l[0]} to {l[-1]}"
    if len(l) > MOST_NAMED:
        return f"{len(l)} of layers {l[0]} to {l[-1]}"
    return f"layers {', '.join(map(str, l[:-1]))} and {l[-1]}"
