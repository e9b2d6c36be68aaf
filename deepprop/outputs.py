"""The choice of an output: by its name, as an activation with a cost, or several side by side."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
from jax import Array

from deepprop._checks import by_name
from deepprop.activations import Activation, EqualPartial, activation
from deepprop.costs import (
    COSTS,
    OF_SOFTMAX,
    OUTPUTS,
    UNBOUNDED,
    Cost,
    Output,
    no_dZ,
    no_loss,
    softmax,
    softmax_dZ,
    through,
)

OutputChoice = (
    str | Output | tuple[str | Activation, str | Cost | None] | list[tuple["OutputChoice", int]]
)


def _loss_of_A(g: Callable[[Array], Array], cost: Cost, Z: Array, Y: Array) -> Array:
    return cost.loss(g(Z), Y)


def _dZ_through_A(
    dZ_from_dA: Callable[..., Array], cost: Cost, Z: Array, A: Array, Y: Array
) -> Array:
    return dZ_from_dA(Z, A, cost.dA(A, Y))


def _paired(
    name: str, g: Callable[..., Array], dZ_from_dA: Callable[..., Array], cost: Cost
) -> Output:
    """Return the output with g and that cost, which is a function of A."""
    return Output(
        f"{name}+{cost.name}",
        g,
        EqualPartial(_loss_of_A, (g, cost)),
        EqualPartial(_dZ_through_A, (dZ_from_dA, cost)),
        dZ_from_dA=dZ_from_dA,
    )


def _cost(choice: str | Cost, table: Mapping[str, Cost] = COSTS) -> Cost:
    """Return the cost of that name, with the number in its brackets.

    Raises:
        ValueError, TypeError: as `by_name`, or the number is too large.
    """
    if isinstance(choice, Cost):
        return choice
    entry, number = by_name("cost", choice, table)
    if number is None:
        return entry
    if number >= entry.below:
        raise ValueError(f"cost {entry.name} takes a number below {entry.below:g}, got {choice!r}")
    given = ((str(entry.parameter), number),)
    loss, dA = EqualPartial(entry.loss, named=given), EqualPartial(entry.dA, named=given)
    return replace(entry, name=f"{entry.name}({number!r})", loss=loss, dA=dA)


def output(choice: OutputChoice) -> Output:
    """Return the output layer and cost of that name, or made of an activation and a cost.

    >>> output("softmax").name, output("tanh+huber(0.5)").name
    ('softmax', 'tanh+huber(0.5)')

    Args:
        choice: "softmax", "sigmoid", "identity", "exp" or "gaussian", each with its own cost; or
            "activation+cost", such as "tanh+absolute_error"; or (activation, cost), each a name or
            your own; or an `Output`, which is returned unchanged. With None for the cost, or
            "activation+none", the output has no cost: see `error_signals`. A list of such choices,
            each with its number of units, gives each of them a slice of Z[L] and of Y:
            [("softmax", 10), ("gaussian", 2)].

    Returns:
        The `Output`.

    Raises:
        ValueError: no output, activation or cost has that name.
        TypeError: `choice` is none of these.
    """
    if isinstance(choice, Output):
        return choice
    if isinstance(choice, str) and "&" in choice:
        choice = [_named_slice(part) for part in choice.split("&")]
    if isinstance(choice, list):
        return _joint(choice)
    if isinstance(choice, str):
        pair = re.fullmatch(r"([^+(]*(?:\([^)]*\))?)\+(.*)", choice)
        if pair is None:
            return by_name("output", choice, OUTPUTS)[0]
        choice = (pair[1], pair[2])
    if not isinstance(choice, tuple) or len(choice) != 2:
        raise TypeError(
            f"output must be a name, an (activation, cost) pair or a dp.Output, got {choice!r}"
        )
    if choice[1] is None or choice[1] == "none":
        return _without_cost(choice[0])
    if not isinstance(choice[1], str | Cost):
        raise TypeError(f"cost must be a name or a dp.Cost, got {choice[1]!r}")
    if choice[0] == "softmax":
        return _softmax_with(choice[1])
    g = activation(choice[0])
    return _paired(g.name, g.g, through(g.g_prime), _cost(choice[1]))


def _softmax_with(choice: str | Cost) -> Output:
    """Return softmax with another cost than cross-entropy; some are functions of Z."""
    if not isinstance(choice, str) or choice.partition("(")[0].strip() not in OF_SOFTMAX:
        return _paired("softmax", softmax, softmax_dZ, _cost(choice))
    cost = _cost(choice, OF_SOFTMAX)
    return Output(f"softmax+{cost.name}", softmax, cost.loss, cost.dA, dZ_from_dA=softmax_dZ)


Parts = tuple[tuple[Output, int], ...]  # outputs, and the number of units of each


def _of_units(parts: Parts, P: Array) -> list[Array]:
    """Split P (n_L, m) into the slices of the parts."""
    return jnp.split(P, list(accumulate(n for _, n in parts))[:-1], axis=-2)


def _of_targets(parts: Parts, Y: Array) -> list[Array]:
    """Split Y into the targets of the parts."""
    ends = accumulate(target_rows(part, n) for part, n in parts)
    return jnp.split(Y, list(ends)[:-1], axis=-2)


def _joint_g(parts: Parts, Z: Array) -> Array:
    slices = zip(parts, _of_units(parts, Z), strict=True)
    return jnp.concatenate([part.g(Z_k) for (part, _), Z_k in slices], axis=-2)


def _joint_loss(parts: Parts, Z: Array, Y: Array) -> Array:
    slices = zip(parts, _of_units(parts, Z), _of_targets(parts, Y), strict=True)
    return jnp.sum(jnp.stack([part.loss(Z_k, Y_k) for (part, _), Z_k, Y_k in slices]), axis=0)


def _joint_dZ(parts: Parts, Z: Array, A: Array, Y: Array) -> Array:
    of_units = (_of_units(parts, P) for P in (Z, A))
    slices = zip(parts, *of_units, _of_targets(parts, Y), strict=True)
    return jnp.concatenate([part.dZ(*arrays) for (part, _), *arrays in slices], axis=-2)


def _joint_dZ_from_dA(parts: Parts, Z: Array, A: Array, dA: Array) -> Array:
    slices = zip(parts, *(_of_units(parts, P) for P in (Z, A, dA)), strict=True)
    return jnp.concatenate([part.dZ_from_dA(*arrays) for (part, _), *arrays in slices], axis=-2)


def _joint_units(parts: Parts, targets: int) -> int:
    """Return n_L if there are as many targets as the parts have together, otherwise 0."""
    due = sum(target_rows(part, n) for part, n in parts)
    return sum(n for _, n in parts) if targets == due else 0


def _joint(choices: Sequence[Any]) -> Output:
    """Return several outputs as one, from pairs (output, units).

    Raises:
        TypeError: an entry is not such a pair.
        ValueError: a number of units does not fit its output.
    """
    parts = []
    for entry in choices:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[1], int):
            raise TypeError(
                "output must be a list of pairs (output, units), such as [('softmax', 10),"
                f" ('identity', 2)], got {entry!r} in it"
            )
        part = output(entry[0])
        target_rows(part, entry[1])
        parts.append((part, entry[1]))
    name = " & ".join(f"{part.name}[{n}]" for part, n in parts)
    of_parts = (tuple(parts),)
    return Output(
        name,
        EqualPartial(_joint_g, of_parts),
        EqualPartial(_joint_loss, of_parts),
        EqualPartial(_joint_dZ, of_parts),
        dZ_from_dA=EqualPartial(_joint_dZ_from_dA, of_parts),
        units=EqualPartial(_joint_units, of_parts),
    )


def _named_slice(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"\s*(.+)\[(\d+)\]\s*", text)
    if found is None:
        raise ValueError(
            "output must name the units of each part, as in softmax[10] & identity[2], got"
            f" {text!r}"
        )
    return found[1], int(found[2])


def target_rows(output: Output, n_L: int) -> int:
    """Return the number of rows of Y for an output with n_L units.

    Raises:
        ValueError: the output can't have that many units.
    """
    for rows in range(1, n_L + 1):
        if output.units(rows) == n_L:
            return rows
    raise ValueError(f"output {output.name} can't have {n_L} units")


def _without_cost(choice: str | Activation) -> Output:
    if isinstance(choice, str) and choice in ("softmax", "exp"):  # outputs that no activation has
        whole = OUTPUTS[choice]
        return replace(whole, name=f"{choice}+none", loss=no_loss, dZ=no_dZ, domain=UNBOUNDED)
    g = activation(choice)
    return Output(f"{g.name}+none", g.g, no_loss, no_dZ, dZ_from_dA=through(g.g_prime))
