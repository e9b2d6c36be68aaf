"""The posterior of a network in its model file, and predictions with their uncertainty."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import deepprop as dp
from deepprop.command.data import Scaling
from deepprop.command.units import in_unit
from deepprop.layers import Params

PREFIX = "posterior_"


def arrays_of(posterior: dp.Posterior, unit: Scaling | None) -> dict[str, np.ndarray]:
    """Return a posterior as arrays for a model file.

    Args:
        posterior: of the last layer of the network that was trained, on a standardised target if
            there is a unit.
        unit: the scaling of the target; None if it was not scaled.
    """
    numbers = posterior.count, posterior.prior_precision, posterior.noise
    arrays = {"numbers": np.array([float(number) for number in numbers])}
    if unit is not None:
        arrays["unit"] = np.stack(unit)
    (curvature,) = posterior.curvature
    arrays |= {name: np.asarray(P) for name, P in curvature._asdict().items()}
    return {PREFIX + name: array for name, array in arrays.items()}


def from_arrays(
    params: Params, arrays: Mapping[str, np.ndarray], path: str
) -> tuple[dp.Posterior, Scaling | None]:
    """Return the posterior in the extras of a model file, and the scaling of its target.

    Raises:
        ValueError: the file has none, or its arrays do not fit the network.
    """
    if PREFIX + "numbers" not in arrays:
        raise ValueError(
            f"{path} holds no posterior, which --uncertainty needs: train it with --uncertainty"
        )
    try:
        numbers = arrays[PREFIX + "numbers"]
        unit = arrays.get(PREFIX + "unit")
        parts = [arrays[PREFIX + name] for name in dp.Curvature._fields]
    except KeyError:
        raise ValueError(f"{path}: its posterior is damaged") from None
    n, n_below = params[-1].W.shape
    due = [(3,), (n_below + 1, n_below + 1), (n, n), (n, n_below + 1)]
    known = [numbers, *parts] if unit is None else [numbers, *parts, unit]
    fits = [P.shape for P in known] == due + ([] if unit is None else [(2, n)])
    sound = all(P.dtype.kind == "f" and np.isfinite(P).all() for P in known)
    if not (fits and sound and (numbers > 0).all() and (parts[2] >= 0).all()):
        raise ValueError(f"{path}: its posterior is damaged")
    scaling, dtype = None if unit is None else Scaling(*unit), params[0].W.dtype
    curvature = dp.Curvature(*(jnp.asarray(P, dtype) for P in parts))
    count, prior, noise, log = (jnp.asarray(number, dtype) for number in (*numbers, 0.0))
    trained = in_unit(params, None if scaling is None else _inverse(scaling))
    posterior = dp.Posterior(trained, "last", (curvature,), count, prior, noise, log)
    return posterior, scaling


def with_uncertainty(
    posterior: dp.Posterior, unit: Scaling | None, X: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and the standard deviation of a new target, (n_L, m), in its own unit.

    Args:
        posterior: as `from_arrays` returns it.
        unit: the same.
        X: (n_0, m), scaled.
    """
    found = posterior.predict(X)
    mean = np.asarray(found[0])
    deviation = np.asarray(posterior.deviation_of(*found))
    if unit is None:
        return mean, deviation
    shift, scale = unit.shift[:, None], unit.scale[:, None]
    return (mean * scale + shift).astype(mean.dtype), (deviation * scale).astype(mean.dtype)


def _inverse(unit: Scaling) -> Scaling:
    """Return the scaling that undoes it: (A - shift) / scale = A / scale - shift / scale."""
    return Scaling(-unit.shift / unit.scale, 1 / unit.scale)


def columns(deviation: np.ndarray, classes: Any) -> tuple[list[str], np.ndarray]:
    """Return the names and the values of what `deepprop predict` adds to its lines, (m, columns).

    That is the standard deviation of each number. Classes get none: their probabilities already say
    how sure the network is.

    Args:
        deviation: (n_L, m), as `with_uncertainty` returns it.
        classes: (n_L,), or None.
    """
    if classes is not None:
        return [], np.empty((deviation.shape[1], 0))
    many = len(deviation)
    names = ["deviation"] if many == 1 else [f"deviation {k + 1}" for k in range(many)]
    return names, deviation.T
