"""Gradients from a backward pass written by a user: layers like params, or plain pairs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepprop._words import kind
from deepprop.layers import Layer, Params

RETURN = "backward must return layers like params"


def as_layers(grads: Any, params: Params) -> Params:
    """Return gradients as layers like `params`, from such layers or from pairs (dW, db).

    Raises:
        ValueError: the number of layers or a shape differs; the message names the first.
        TypeError: an entry is not an array of real numbers, such as None.
    """
    if isinstance(grads, Layer) or not isinstance(grads, tuple | list):
        raise TypeError(f"{RETURN}, or pairs (dW, db): got {kind(grads)}")
    if len(grads) != len(params):
        raise ValueError(f"{RETURN}: got {kind(grads)} for {_count(params)}")
    return tuple(_as_layer(l, *pair) for l, pair in enumerate(zip(grads, params, strict=True), 1))


def _as_layer(l: int, given: Any, layer: Layer) -> Layer:
    if isinstance(given, Layer):
        given = given.W, given.b
    if not isinstance(given, tuple | list):
        raise TypeError(f"{RETURN}, or pairs (dW, db): got {kind(given)} for layer {l}")
    if len(given) != 2:
        raise ValueError(f"{RETURN}, or pairs (dW, db): got {kind(given)} for layer {l}")
    for name, array, like in zip(("dW", "db"), given, (layer.W, layer.b), strict=True):
        name = f"{name}[{l}]"
        if not isinstance(array, jax.Array | np.ndarray | np.generic):
            raise TypeError(f"{RETURN}: {name} is {kind(array)}, should be an array")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{RETURN}: {name} has dtype {array.dtype}, should have {like.dtype}")
        if array.shape != like.shape:
            raise ValueError(f"{RETURN}: {name} has shape {array.shape}, should have {like.shape}")
    return replace(layer, W=given[0], b=given[1])


def _count(params: Params) -> str:
    stacks = any(layer.W.ndim == 3 for layer in params)
    return f"{len(params)} layers" + (", a stack counted as one" if stacks else "")
