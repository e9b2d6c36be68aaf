"""What a network is made of: layers, and the cache that a forward pass leaves.

Below them stand the checks that arguments are of one network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop.activations import Activation
from deepprop.costs import Output
from deepprop.validation import check_shape, real_array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: W (n_l, n_{l-1}), b (n_l, 1) and, as static data, its activation.

    The last layer of a network has an `Output` there, which is its activation and the cost.
    """

    W: Array
    b: Array
    activation: Activation | Output = field(metadata={"static": True})


Params = tuple[Layer, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Cache:
    """What the forward pass leaves for the backward pass: a pytree that may cross a `jit` boundary.

    Each line of the backward pass reads W, A[l-1], and Z[l] or A[l] for g'; b is never read. Under
    one `jit`, what the network's own g' do not read is not kept.

    Attributes:
        params: the layers, 1 to L: `params[l - 1]` is layer l.
        Z: Z[1], ..., Z[L], each (n_l, m).
        A: A[0] = X, A[1], ..., A[L], each (n_l, m): `A[l]` is A[l].
    """

    params: Params
    Z: tuple[Array, ...]
    A: tuple[Array, ...]


def output_of(params: Params) -> Output:
    """The output and cost of the network: what the last layer has for an activation.

    Raises:
        TypeError: the last layer has a plain activation, and so no cost.
    """
    last = params[-1].activation
    if not isinstance(last, Output):
        raise TypeError(
            "the last layer's activation must be a dp.Output, such as dp.output('softmax'),"
            f" got {last!r}"
        )
    return last


def hidden_activation(layer: Layer) -> Activation:
    """The activation of a hidden layer.

    Raises:
        TypeError: it is anything else, such as an output that belongs in the last layer.
    """
    if not isinstance(layer.activation, Activation):
        raise TypeError(
            "a hidden layer's activation must be a dp.Activation, such as dp.activation('relu'),"
            f" got {layer.activation!r}"
        )
    return layer.activation


def inputs(params: Params, X: ArrayLike, name: str = "X") -> Array:
    """X as A[0], after a look at the layers' shapes."""
    check_params(params)
    W = params[0].W
    X = real_array(name, X, W.dtype)
    check_shape(name, X.shape, W.shape[1], None)
    return X


def targets(cache: Cache, Y: ArrayLike) -> Array:
    """Y as an array of A[L]'s shape and type.

    Raises:
        ValueError: the shape is another.
        TypeError: Y is not real numbers, or `cache` is no cache.
    """
    check_cache(cache)
    A_L = cache.A[-1]
    Y = real_array("Y", Y, A_L.dtype)
    check_shape("Y", Y.shape, A_L.shape[0], A_L.shape[1])
    return Y


def signals(cache: Cache, dZ: Sequence[ArrayLike]) -> list[Array]:
    """dZ as arrays of the parameters' type, after a look whether it belongs to the cache.

    Raises:
        ValueError: dZ has another number of layers, units or examples than the cache.
        TypeError: dZ is not real numbers, or `cache` is no cache.
    """
    check_cache(cache)
    dZ = list(dZ)
    if len(dZ) != len(cache.params):
        raise ValueError(
            f"dZ must hold one array a layer, {len(cache.params)} for this cache, got {len(dZ)}:"
            " is it of another network?"
        )
    arrays = [real_array(f"dZ[{l}]", d, cache.A[0].dtype) for l, d in enumerate(dZ, start=1)]
    for l, (array, Z) in enumerate(zip(arrays, cache.Z, strict=True), start=1):
        check_shape(f"dZ[{l}]", array.shape, *Z.shape)
    return arrays


def check_cache(cache: Any) -> None:
    """Raise unless it is a cache.

    Raises:
        TypeError: it is anything else, such as params.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be the dp.Cache that forward gave, got {type(cache).__name__}")


def check_like(name: str, given: Any, params: Params) -> None:
    """Raise unless `given` has layers with W of the shapes that `params` has.

    Raises:
        ValueError: the shapes are others.
        TypeError: it holds no layers.
    """
    if not isinstance(given, tuple) or not all(isinstance(layer, Layer) for layer in given):
        raise TypeError(f"{name} must be layers like params, got {type(given).__name__}")
    shapes = [[tuple(layer.W.shape) for layer in layers] for layers in (params, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must hold W of shapes {shapes[0]}, got {shapes[1]}")


def check_params(params: Any) -> None:
    """Raise unless `params` is a tuple of layers that fit one another.

    Raises:
        ValueError: a layer's W or b has another shape than its neighbours ask for.
        TypeError: it is no tuple of layers, they are of several types, a hidden layer has no
            activation, or the last has no output.
    """
    if not isinstance(params, tuple) or not params:
        raise TypeError(f"params must be a tuple of dp.Layer, got {type(params).__name__}")
    for layer in params:
        if not isinstance(layer, Layer) or not (
            hasattr(layer.W, "shape") and hasattr(layer.b, "shape")
        ):
            raise TypeError(
                f"params must be a tuple of dp.Layer with arrays, got {type(layer).__name__} in it"
            )
    n, dtype = None, params[0].W.dtype
    for l, layer in enumerate(params, start=1):
        W, b = layer.W, layer.b
        if W.ndim != 2 or n not in (None, W.shape[1]):
            due = "n_{l-1}" if n is None else n
            raise ValueError(f"W[{l}] must have shape (n_l, {due}), got {W.shape}")
        n = W.shape[0]
        if b.shape != (n, 1):
            raise ValueError(f"b[{l}] must have shape ({n}, 1), got {b.shape}")
        if W.dtype != dtype or b.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params must all have one floating type, W[1] has {dtype}, layer {l} has"
                f" W {W.dtype} and b {b.dtype}"
            )
        if l < len(params):
            hidden_activation(layer)
    output_of(params)
