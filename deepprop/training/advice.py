"""Advice in the message of a `TrainingError`: what to try if the cost is no longer finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from deepprop.optimizers.quadratic_model import QuadraticState
from deepprop.signals.diagnosis import _of_inputs
from deepprop.signals.layer_health import _sizes


def advice_for(X: Array | None, state: optax.OptState) -> str:
    """Return what to try: scaling large inputs, and another setting of the optimizer.

    Args:
        X: (m, n_0), one example per row; None if it is not known.
        state: the optimizer's state, which shows whether it has a learning rate.
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_quadratic)
    rate = "larger minibatches" if any(map(_is_quadratic, nodes)) else "a smaller learning rate"
    found = [] if X is None else _of_large_inputs(X)
    return "; ".join([*found, f"or try {rate}" if found else f"try {rate}"])


def _of_large_inputs(X: Array) -> list[str]:
    """Return what `diagnose` says about large inputs: one finding, or none."""
    if not X.is_fully_addressable:
        return []
    largest = jnp.max(jnp.abs(X)).astype(jnp.float32)
    if largest <= 1:
        return []
    sizes = np.asarray(_sizes((X.astype(jnp.float32) / largest).T), float)  # squares stay finite
    return _of_inputs(sizes * float(largest))


def _is_quadratic(node: Any) -> bool:
    return isinstance(node, QuadraticState)
