"""What a diagnosis says, in a table and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepprop.activations import Activation
from deepprop.costs import Output
from deepprop.layers import Params

# When a finding is worth a line. They are rules of thumb, wide enough that a network which learns
# well gives none; where a number is known from elsewhere, its source stands beside it.
FLAT = 0.05  # of the steepest slope: below it, a unit is in the flat part of its activation
INPUTS = (0.02, 20)  # root mean square of an input: LeCun et al. 1998, Efficient BackProp: about 1
INPUT_RATIO = 100  # of the largest input to the median one
GROWTH = 100  # of the size of a unit's output, against the inputs'
VANISHED = 1e-3  # of the norm of dZ[l], against dZ[L]'s; above 1 / VANISHED it explodes
DEAD_UNITS = 0.5  # share; half of all relu units may be dead on a small batch, and more is a fault
CUT_OFF = 0.99  # share of dead units at which a layer lets nothing through
FLAT_SHARE = 0.5  # of a two-sided activation, such as tanh
UPDATE = 0.1  # of an update to its W; about 1e-3 is usual (Karpathy, CS231n notes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` measured: arrays (L,), layer 1 first; `print` shows a table and findings.

    The norm of a matrix with an example a column is the root of the mean over examples of the
    squared length of a column, so that it does not grow with m.

    Attributes:
        A: norm of A[l] over sqrt(n_l): the size of a unit's output.
        dZ: norm of dZ[l].
        W: norm of W[l] (Frobenius).
        dW: norm of dW[l] (Frobenius).
        update: norm of the update of W[l] over that of W[l]; None where no updates were given.
        dead: share of units whose slope g' is 0 for every example: they can't learn from these.
        flat: share of units and examples where g' is below a twentieth of its largest value.
        X: (3,), of the sizes of the inputs, each the root of an input's mean square: their root
            mean square, their median over those that are not always 0, and their largest.
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
        """The table, and below it the findings."""
        found = findings(self)
        lines = [f"- {finding}" for finding in found] or ["nothing stands out"]
        return "\n".join([table(self), "", *lines])


def steepest(g: Activation) -> float:
    """The largest |g'| between Z = -10 and 10, where every usual activation has it."""
    Z = np.linspace(-10, 10, 2001, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        slopes = g.g_prime(jnp.asarray(Z), g.g(jnp.asarray(Z)))
        return float(jnp.max(jnp.abs(slopes)))


def table(diagnosis: Diagnosis) -> str:
    """A line a layer, the numbers rounded to two digits."""
    d = _numbers(diagnosis)
    head = ["layer", "units", "activation", "A", "dZ", "W", "dW", "update/W", "dead", "flat"]
    rows = [head]
    for l, g in enumerate(diagnosis.activations):
        update = "" if "update" not in d else f"{d['update'][l]:.2g}"
        plain = isinstance(g, Activation)
        shares = [f"{d[name][l]:.0%}" if plain else "" for name in ("dead", "flat")]
        numbers = [f"{d[name][l]:.2g}" for name in ("A", "dZ", "W", "dW")]
        rows.append([f"{l + 1}", f"{diagnosis.units[l + 1]}", g.name, *numbers, update, *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2  # the names; numbers are set to the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def diagnosis_of(history: Mapping[str, np.ndarray], params: Params, entry: int = -1) -> Diagnosis:
    """One entry of what `fit(..., record=dp.diagnose)` kept in its history.

    Args:
        history: of a `Fit`.
        params: the layers, for their units and activations.
        entry: which one, over all epochs; the last by default.

    Raises:
        ValueError: the history has no such entry.
    """
    names = [f.name for f in fields(Diagnosis) if not f.metadata.get("static")]
    check_recorded(history, names)
    arrays = {name: np.concatenate(history[name])[entry] for name in names}
    activations = tuple(layer.activation for layer in params)
    units = (params[0].W.shape[1], *(layer.W.shape[0] for layer in params))
    return Diagnosis(**arrays, units=units, activations=activations)


def check_recorded(history: Mapping[str, np.ndarray], names: Sequence[str] = ("dead",)) -> None:
    """Raise unless the history has what `diagnose` recorded.

    Raises:
        ValueError: it has not, or of no epoch.
    """
    if not all(name in history and history[name].size for name in names):
        raise ValueError(
            "history must be of a fit with record=dp.diagnose, and of an epoch or more,"
            f" got {', '.join(history)}"
        )


def findings(diagnosis: Diagnosis) -> list[str]:
    """What stands out, in words; an empty list for a network that looks healthy.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [4, *[8] * 9, 1], hidden="sigmoid",
    ...                         output="identity")
    >>> X = jax.random.normal(jax.random.key(1), (4, 50))
    >>> _, cache = dp.forward(params, X)
    >>> findings(dp.diagnose(cache, dp.error_signals(cache, X[:1])))[0][:37]
    'layers 1 to 4: the gradient vanishes,'

    Args:
        diagnosis: what `diagnose` gave, for one moment.
    """
    d = _numbers(diagnosis)
    broken = [l for l, size in enumerate(d["A"] + d["dZ"], 1) if not np.isfinite(size)]
    if broken:
        return [f"{_layers(broken)}: not finite; try a smaller learning rate or scaled inputs"]
    cut_off = (d["dead"] > CUT_OFF).any()  # then signals end there, which needs no telling
    signals = [] if cut_off else _of_signals(d)
    return [*_of_inputs(d["X"]), *_of_units(diagnosis, d), *signals, *_of_updates(d)]


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


def _of_signals(d: dict[str, np.ndarray]) -> list[str]:
    """Where A grows or decays on the way up, and dZ on the way down."""
    found, hidden = [], slice(0, -1)
    growth = d["A"][hidden] / max(d["X"][0], 1e-30)
    for which, what in ((growth > GROWTH, "grows to"), (growth < 1 / GROWTH, "decays to")):
        if which.any():
            worst = growth[which][-1]
            found.append(
                f"{_layers(np.flatnonzero(which) + 1)}: the signal {what} {worst:.0e} of the"
                " inputs' size; try He, Glorot or LeCun initialisation, as fits the activation"
            )
    L = len(d["dZ"])
    share = d["dZ"] / max(d["dZ"][-1], 1e-30)
    vanished, exploded = share < VANISHED, share > 1 / VANISHED
    for which, what, help in (
        (vanished, "vanishes", "relu or another initialisation"),
        (exploded, "explodes", "a smaller initialisation"),
    ):
        if which.any() and d["dZ"][-1] > 0:
            found.append(
                f"{_layers(np.flatnonzero(which) + 1)}: the gradient {what}, dZ is"
                f" {share[which][0]:.0e} of layer {L}'s; try {help}"
            )
    return found


def _of_units(diagnosis: Diagnosis, d: dict[str, np.ndarray]) -> list[str]:
    """Where units no longer learn, or hardly do."""
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
    large = d.get("update", np.zeros(0)) > UPDATE
    if not large.any():
        return []
    return [
        f"{_layers(np.flatnonzero(large) + 1)}: an update is {d['update'].max():.2g} of W; try a"
        " smaller learning rate"
    ]


def _is_two_sided(g: Activation | Output) -> bool:
    """Whether it is flat at both ends, so that being flat means being stuck."""
    if not isinstance(g, Activation):
        return False
    Z = jnp.array([-10.0, 10.0])
    return bool(jnp.all(jnp.abs(g.g_prime(Z, g.g(Z))) < FLAT * steepest(g)))


def _numbers(diagnosis: Diagnosis) -> dict[str, np.ndarray]:
    names = ["A", "dZ", "W", "dW", "update", "dead", "flat", "X"]
    arrays = {name: getattr(diagnosis, name) for name in names}
    return {name: np.asarray(a, np.float64) for name, a in arrays.items() if a is not None}


def _layers(which: Sequence[int] | np.ndarray) -> str:
    """Numbers of layers as people say them: "layer 3", "layers 1 to 4", "layers 1, 3 and 4"."""
    l = [int(i) for i in which]
    if len(l) == 1:
        return f"layer {l[0]}"
    if l == list(range(l[0], l[-1] + 1)) and len(l) > 2:
        return f"layers {l[0]} to {l[-1]}"
    return f"layers {', '.join(map(str, l[:-1]))} and {l[-1]}"
