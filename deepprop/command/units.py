"""Convert networks, metrics and predictions from the standardised target to its own unit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deepprop as dp
from deepprop.command.data import Data, Scaling
from deepprop.layers import Params


def in_unit(params: Params, unit: Scaling | None) -> Params:
    """Return the network whose A[L] is in the target's unit: scale A[L] + shift, in W[L] and b[L].

    Args:
        params: layers whose output is the identity.
        unit: shift and scale, each (n_L,); None changes nothing.
    """
    if unit is None:
        return params
    *below, last = params
    shift, scale = (jnp.asarray(part, last.W.dtype)[:, None] for part in unit)
    return (*below, replace(last, W=scale * last.W, b=scale * last.b + shift))


def in_unit_of(data: Data, row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return entries of a history with the metric, which is then an rmse, in the target's unit."""
    if data.unit is None:
        return dict(row)
    of_unit = float(data.unit.scale[0])  # a table has one target
    return {**row, f"val_{metric}": np.asarray(row[f"val_{metric}"]) * of_unit}


def predictions(data: Data, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return A[L] and Y of the held-out examples, in the target's unit, and the classes."""
    A = np.asarray(jax.jit(dp.predict)(in_unit(params, data.unit), data.X_test), np.float64)
    Y = data.Y_test.astype(np.float64)
    if data.unit is not None:
        Y = Y * data.unit.scale[:, None] + data.unit.shift[:, None]
    return A, Y, data.classes
