"""Training: one compiled step of forward pass, backward pass and update, and a loop over it."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
import optax
from jax import Array

from deepprop.backprop import manual_backward
from deepprop.layers import Cache, Params
from deepprop.network import cost, forward

Backward = Callable[[Cache, Array, Array | None], Params]
Step = Callable[..., tuple[Params, optax.OptState, Array]]


def train_step(
    optimizer: optax.GradientTransformation, backward: Backward = manual_backward
) -> Step:
    """A compiled step: W := W - update(dW), b := b - update(db), with the update of `optimizer`.

    The step gives params and state back changed, and gives their old memory to the new ones: use
    what it returns, and no longer what it was given.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 1], output="identity")
    >>> optimizer = optax.sgd(0.1)
    >>> step, state = dp.train_step(optimizer), optimizer.init(params)
    >>> X, Y = jnp.ones((3, 5)), jnp.ones((1, 5))
    >>> params, state, J = step(params, state, X, Y)
    >>> params, state, J_next = step(params, state, X, Y)
    >>> bool(J_next < J)
    True

    Args:
        optimizer: an optax transformation.
        backward: (cache, Y, weights) to gradients like params.

    Returns:
        step(params, state, X, Y, weights=None) -> (params, state, J), with J before the update.

    Raises:
        TypeError: `optimizer` is no optax transformation.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Params, state: optax.OptState, X: Array, Y: Array, weights: Array | None = None
    ) -> tuple[Params, optax.OptState, Array]:
        _, cache = forward(params, X)
        grads = backward(cache, Y, weights)
        updates, state = optimizer.update(grads, state, params)
        J = cost(cache, Y, weights)
        return optax.apply_updates(params, updates), state, J

    return step


def minibatches(
    X: np.ndarray, Y: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One epoch of shuffled minibatches X (n_0, k), Y (n_L, k) and weights (k,), all of one size.

    What the last one lacks is filled with examples of weight 0: another size would compile again.

    Args:
        X: (n_0, m), Y: (n_L, m), one example a column.
        Y: (n_L, m).
        batch_size: k, at most m.
        rng: draws the order.
    """
    m = X.shape[1]
    order = np.resize(rng.permutation(m), -(-m // batch_size) * batch_size)
    weights = (np.arange(order.size) < m).astype(np.float32)
    for start in range(0, m, batch_size):
        batch = slice(start, start + batch_size)
        yield X[:, order[batch]], Y[:, order[batch]], weights[batch]
