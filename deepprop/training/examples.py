"""X and Y of a data set or a batch, checked, as arrays that fit the network."""

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
from deepprop.layers import Params
from deepprop.scale.devices import check_together


def examples(params: Params, X: ArrayLike, Y: ArrayLike, which: str = "") -> tuple[Array, Array]:
    """Return X and Y as finite arrays that fit the network and one another.

    Raises:
        ValueError: they are not; `which` precedes the name in the message.
        TypeError: one is not real numbers.
    """
    X = inputs(params, X, f"{which}X")
    Y = real_array(f"{which}Y", Y, wide(params[0].W.dtype))
    check_shape(f"{which}Y", Y.shape, params[-1].W.shape[0], X.shape[1])
    finite, adds_up, (least, largest) = jax.device_get(_looked_over(X, Y))
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
) -> tuple[Array, Array, Array | None]:
    """Return X and Y with one example per row, and the weights, all checked."""
    check_together(params, {"X": X, "Y": Y, "weights": weights})
    X, Y = examples(params, X, Y)
    m = X.shape[1]
    whole_number("batch_size", batch_size, m)
    w = None if weights is None else example_weights(weights, m, wide(params[0].W.dtype))
    return X.T, Y.T, w


def parts_of(X: Array, Y: Array, w: Array | None) -> dict[str, Any]:
    """Return what identifies the data of a run: of weights their ratios, as 0.1.0 wrote them."""
    return {"X": X, "Y": Y, "weights": None if w is None else w / jnp.max(w)}


def balanced_weights(Y: ArrayLike) -> Array:
    """Return weights (m,) that balance classes: w_i = m / (n_L m_c) for class c of size m_c.

    >>> import jax.numpy as jnp
    >>> balanced_weights(jnp.array([[1, 1, 1, 0], [0, 0, 0, 1]])) * 3
    Array([2., 2., 2., 6.], dtype=float32)

    Args:
        Y: (n_L, m), one-hot; row c is class c. Or (1, m) of 0 and 1, for two classes.

    Returns:
        The weights; their mean is 1 if every class has examples.

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
def _looked_over(X: Array, Y: Array) -> tuple[tuple[Array, Array], Array, tuple[Array, Array]]:
    """Return whether X and Y are finite, whether columns of Y are distributions, and Y's range."""
    finite = jnp.all(jnp.isfinite(X)), jnp.all(jnp.isfinite(Y))
    adds_up = jnp.all((Y >= 0) & (jnp.abs(jnp.sum(Y, axis=0, keepdims=True) - 1) < 1e-3))
    return finite, adds_up, (jnp.min(Y), jnp.max(Y))
