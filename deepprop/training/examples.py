"""Input validation: X, Y and weights are checked here once, and trusted afterwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_domain, output_of, type_of_inputs
from deepprop._arithmetic import wide
from deepprop._checks import (
    check_finite,
    check_range,
    check_shape,
    dense_array,
    example_weights,
    is_known,
    real_array,
    whole_number,
)
from deepprop.backprop import Backward
from deepprop.layers import Cache, Params
from deepprop.outputs import target_rows
from deepprop.scale.devices import check_together
from deepprop.training.advice import advice_for
from deepprop.training.rows import Values, rows_of
from deepprop.walk import keys_of, up

DROPOUT = 0x64726F70  # tells keys for dropout from those for the order of the examples


class Data(NamedTuple):
    """A data set that was checked, with one example per row.

    If the minibatches need more than its m examples, rows of 0 follow them. How many examples there
    are is then an argument of the compiled program, so that data sets of about the same size share
    one: the folds of a cross-validation, for example.

    Attributes:
        X: (M, n_0), with M = m, or the next multiple of the batch size.
        Y: (M, n_L).
        weights: (M,), or None; for an ensemble also (K, M).
        m: the number of examples if rows follow them; None if M = m.
    """

    X: Array
    Y: Array
    weights: Array | None
    m: np.int32 | None = None

    def examples(self) -> tuple[Array, Array, Array | None]:
        """Return X, Y and the weights without the rows that follow the examples."""
        X, Y, w = self.X[: self.m], self.Y[: self.m], self.weights
        return X, Y, None if w is None else w[..., : self.m]

    def advice(self, state: optax.OptState) -> str:
        """Return what to try if the cost is not finite."""
        return advice_for(self.X[: self.m], state)


def examples(
    params: Params, X: ArrayLike, Y: ArrayLike, which: str = "", batch_size: int | None = None
) -> tuple[Array, Array]:
    """Return X and Y, with one example per row, as finite arrays that fit the network.

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        which: a prefix for the names in messages, such as "validation ".
        batch_size: at most m; rows of 0 are added up to a multiple of it. None adds none.

    Returns:
        X (M, n_0) and Y (M, n_L).

    Raises:
        ValueError: a shape does not fit, a value is not finite, Y is not a valid target for the
            output, or `batch_size` is not from 1 to m.
        TypeError: X or Y is not real numbers, or `batch_size` is not a whole number.
    """
    x_type, output = type_of_inputs(params), output_of(params)
    inputs, targets = dense_array(f"{which}X", X), dense_array(f"{which}Y", Y)
    check_shape(f"{which}X", inputs.shape, params[0].W.shape[-1], None)
    m = inputs.shape[1]
    check_shape(f"{which}Y", targets.shape, target_rows(output, params[-1].W.shape[0]), m)
    step = 1 if batch_size is None else whole_number("batch_size", batch_size, m)
    size = -(-m // step) * step
    X, _ = _entered(f"{which}X", inputs, x_type, size, look=False)
    Y, values = _entered(f"{which}Y", targets, wide(params[0].W.dtype), size, look=True)
    check_domain(f"{which}Y", values.least, values.largest, output)
    if output.name == "softmax" and not values.adds_up:
        raise ValueError(f"{which}Y must be one-hot, or probabilities that sum to 1 in each column")
    return X, Y


def _entered(
    name: str, P: np.ndarray | Array, dtype: np.dtype, size: int, *, look: bool
) -> tuple[Array, Values]:
    """Return the rows and values of P (n, m).

    Raises:
        ValueError: a number is not finite, or not in the dtype's range.
    """
    if isinstance(P, jax.Array):
        check_range(name, P, dtype)
    rows, values = rows_of(P, dtype, size, look=look)
    if not values.finite:
        if is_known(P):
            check_range(name, P, dtype)
            check_finite(name, np.asarray(P))
        if isinstance(P, jax.Array):
            raise ValueError(f"{name} must hold finite numbers")
    return rows, values


def in_memory(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    weights: ArrayLike | None,
    batch_size: int,
    *,
    fill: bool = True,
) -> tuple[Data, int]:
    """Check a data set and the batch size; return both.

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        weights: (m,), or None.
        batch_size: at most m.
        fill: whether to add rows up to a multiple of the batch size.

    Returns:
        The data, with one example per row, and the batch size as an `int`.

    Raises:
        ValueError, TypeError: as `examples`; or the weights don't fit, the arrays are on other
            devices than params, or `batch_size` is not from 1 to m.
    """
    check_together(params, {"X": X, "Y": Y, "weights": weights})
    columns = dense_array("X", X)
    X, Y = examples(params, columns, Y, batch_size=batch_size if fill else None)
    m, length = columns.shape[1], X.shape[0]
    batch_size = whole_number("batch_size", batch_size, m)
    w = None if weights is None else example_weights(weights, m, wide(params[0].W.dtype))
    if length == m:
        return Data(X, Y, w), batch_size
    w = None if w is None else jnp.pad(w, (0, length - m))
    return Data(X, Y, w, np.int32(m)), batch_size


def forward_checked(params: Params, X: Array, key: Array | None = None) -> Cache:
    """Run the forward pass on X (n_0, m) that was checked, and return the cache."""
    first = params[0]
    return up(params, X.astype(first.compute_dtype or first.W.dtype), keys_of(params, key))


def dropout_key(params: Params, key: Array) -> Array | None:
    """Return a key for dropout, made of one that has another use; None if no layer drops."""
    drops = any(layer.dropout for layer in params)
    return jax.random.fold_in(key, DROPOUT) if drops else None


def identity_of_data(data: Data, key: Array, batch_size: int, backward: Backward) -> dict[str, Any]:
    """Return what identifies a run on data in memory: see `Training`.

    Only ratios of weights matter, so they are divided by the largest, as 0.1.0 did.
    """
    X, Y, w = data.examples()
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
