"""Which parameters are weights: a mask for optax, because b has two axes like W."""

from dataclasses import replace
from typing import Any

import jax

from deepprop.layers import Layer, Params


def weight_mask(params: Params) -> Params:
    """Return True for each W and False for each b, as a tree like `params`.

    b has shape (n, 1), so a rule such as `ndim > 1` takes it for a matrix: weight decay by that
    rule shrinks b, too, and `optax.contrib.muon` gives every db the same length. Pass this function
    instead::

        optax.adamw(1e-3, mask=dp.weight_mask)
        optax.partition({True: optax.contrib.muon(0.02), False: optax.adam(1e-3)}, dp.weight_mask)

    By default muon leaves a stack, whose W has three axes, to Adam. If you name the axes, it takes
    every W, one layer of a stack at a time, and leaves every b to Adam (also in `in_backward`)::

        def axes(params):  # the product W A sums over the last axis of W
            of_W = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
            return jax.tree.map(lambda is_W: of_W if is_W else None, dp.weight_mask(params))

        optax.contrib.muon(0.02, muon_weight_dimension_numbers=axes)

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [2, 8, 1])
    >>> [(layer.W, layer.b) for layer in dp.weight_mask(params)]
    [(True, False), (True, False)]
    >>> decay = optax.add_decayed_weights(0.1, mask=dp.weight_mask)
    >>> zero = jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = decay.update(zero, decay.init(params), params)
    >>> [bool(jnp.any(update.W)) for update in updates], [bool(jnp.any(u.b)) for u in updates]
    ([True, True], [False, False])

    Args:
        params: the layers or stacks; or gradients or updates like them.

    Returns:
        Layers with True for W and False for b. optax takes it, or this function itself, as a mask
        and as the labels of `optax.partition`.

    Raises:
        TypeError: `params` is not a tuple of layers.
    """
    if not isinstance(params, tuple) or not all(isinstance(layer, Layer) for layer in params):
        raise TypeError(f"params must be a tuple of dp.Layer, got {type(params).__name__}")
    return tuple(replace(layer, W=_all(True, layer.W), b=_all(False, layer.b)) for layer in params)


def _all(value: bool, tree: Any) -> Any:
    """`value` at each leaf: there is none where optax has masked the array."""
    return jax.tree.map(lambda _: value, tree)
