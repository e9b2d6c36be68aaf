"""Input validation: X, Y and weights are checked here once, and trusted afterwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_domain, inputs, output_of
from deepprop._arithmetic import wide
from deepprop._checks import (
    check_finite,
    check_shape,
    example_weights,
    is_known,
    real_array,
    whole_number,
)
from deepprop.backprop import Backward
from deepprop.layers import Cache, Params
from deepprop.scale.devices import check_together
from deepprop.walk import up

Data = tuple[Array, Array, Array | None]  # X (m, n_0), Y (m, n_L) and weights (m,), all checked


def examples(params: Params, X: ArrayLike, Y: ArrayLike, which: str = "") -> tuple[Array, Array]:
    """Return X and Y as finite arrays that fit the network and each other.

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        which: a prefix for the names in messages, such as "validation ".

    Raises:
        ValueError: a shape does not fit, a value is not finite, or Y is not a valid target for the
            output.
        TypeError: X or Y is not real numbers.
    """
    X = inputs(params, X, f"{which}X")
    Y = real_array(f"{which}Y", Y, wide(params[0].W.dtype))
    check_shape(f"{which}Y", Y.shape, params[-1].W.shape[0], X.shape[1])
    finite, adds_up, (least, largest) = jax.device_get(_summary(X, Y))
    for name, P, good in zip(("X", "Y"), (X, Y), finite, strict=True):
        if not good and is_known(P):
            check_finite(f"{which}{name}", np.asarray(P))
        if not good:
            raise ValueError(f"{which}{name} must hold finite numbers")
    check_domain(f"{which}Y", least, largest, output_of(params))
    if output_of(params).name == "softmax" and not adds_up:
        raise ValueError(f"{which}Y must be one-hot, or probabilities that sum to 1 in each column")
    return X, Y


def in_memory(
    params: Params, X: ArrayLike, Y: ArrayLike, weights: ArrayLike | None, batch_size: int
) -> tuple[Data, int]:
    """Check a data set and the batch size; return both, the data with one example per row.

    Returns:
        X (m, n_0), Y (m, n_L) and the weights (m,) or None; and the batch size as an `int`.

    Raises:
        ValueError, TypeError: as `examples`; or the weights don't fit, the arrays are on other
            devices than params, or `batch_size` is not from 1 to m.
    """
    check_together(params, {"X": X, "Y": Y, "weights": weights})
    X, Y = examples(params, X, Y)
    m = X.shape[1]
    batch_size = whole_number("batch_size", batch_size, m)
    w = None if weights is None else example_weights(weights, m, wide(params[0].W.dtype))
    return (X.T, Y.T, w), batch_size


def forward_checked(params: Params, X: Array) -> Cache:
    """Run the forward pass on X (n_0, m) that was checked, and return the cache."""
    first = params[0]
    return up(params, X.astype(first.compute_dtype or first.W.dtype))


def identity_of_data(data: Data, key: Array, batch_size: int, backward: Backward) -> dict[str, Any]:
    """Return what identifies a run on data in memory: see `Training`.

    Only ratios of weights matter, so they are divided by the largest, as 0.1.0 did.
    """
    X, Y, w = data
    weights = None if w is None else w / jnp.max(w)
    run = {"key": key, "batch_size": batch_size, "backward": backward}
    return {"X": X, "Y": Y, "weights": weights, **run}


def balanced_weights(Y: ArrayLike) -> Array:
    """Compute weights that give all classes the same sum: w_i = m / (n_L m_c) for a class of m_c.

    >>> import jax.numpy as jnp
    >>> balanced_weights(jnp.array([[1, 1, 1, 0], [0, 0, 0, 1]])) * 3
    Array([2., 2., 2., 6.], dtype=float32)

    Args:
        Y: (n_L, m), one-hot, with row c for class c; or (1, m) of 0 and 1, for two classes.

    Returns:
        (m,), one weight per example. Their mean is 1 if every class has examples.

    Raises:
        ValueError: Y is not one-hot.
    """
    Y = real_array("Y", Y, jnp.float32)
    if Y.ndim == 2 and len(Y) == 1:
        Y = jnp.concatenate([1 - Y, Y])
    if Y.ndim != 2 or not bool(jnp.all((jnp.sum(Y, axis=0) == 1) & (jnp.max(Y, axis=0) == 1))):
        raise ValueError(f"Y must be one-hot, one example per column, got shape {Y.shape}")
    count = jnp.sum(Y, axis=1, keepdims=True)
    share = Y.shape[1] / (Y.shape[0] * jnp.maximum(count, 1))
    return jnp.sum(Y * share, axis=0)


@jax.jit
def _summary(X: Array, Y: Array) -> tuple[tuple[Array, Array], Array, tuple[Array, Array]]:
    """Return whether X and Y are finite, whether columns of Y are distributions, and Y's range.

    In one program, because each separate question would wait for the device.
    """
    finite = jnp.all(jnp.isfinite(X)), jnp.all(jnp.isfinite(Y))
    adds_up = jnp.all((Y >= 0) & (jnp.abs(jnp.sum(Y, axis=0, keepdims=True) - 1) < 1e-3))
    return finite, adds_up, (jnp.min(Y), jnp.max(Y))
