"""Checks that arguments belong to one network. Each error names the argument."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._checks import (
    check_finite,
    check_shape,
    check_unmasked,
    is_known,
    real_array,
)
from deepprop.activations import Activation
from deepprop.costs import Output
from deepprop.layers import Cache, Layer, Params, type_of_A, type_of_dZ
from deepprop.outputs import target_rows

ROUNDING = 1e-6  # how far a value of Y may lie outside of the output's domain
NORMALIZATIONS = ("layer", "rms")


def check_entry(name: str, normalize: Any, dropout: Any) -> None:
    """Raise unless a layer can normalise and drop what enters it in that way.

    Raises:
        ValueError: `normalize` is not a known name, or `dropout` is not from 0 to below 1.
        TypeError: `dropout` is not a number.
    """
    if normalize is not None and normalize not in NORMALIZATIONS:
        no = ": batch normalisation ties examples together" if "batch" in str(normalize) else ""
        raise ValueError(
            f'{name} must have normalize "layer", "rms" or None, got {normalize!r}{no}'
        )
    if isinstance(dropout, bool) or not isinstance(dropout, Real):
        raise TypeError(f"{name} must have a number as its dropout, got {dropout!r}")
    if not 0 <= float(dropout) < 1:
        raise ValueError(f"{name} must have a dropout from 0 to below 1, got {dropout}")


def output_of(params: Params) -> Output:
    """Return the output and cost of the network, which the last layer has as its activation.

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
    """Return the activation of a hidden layer.

    Raises:
        TypeError: it is anything else, such as an output, which belongs in the last layer.
    """
    if not isinstance(layer.activation, Activation):
        raise TypeError(
            "a hidden layer's activation must be a dp.Activation, such as dp.activation('relu'),"
            f" got {layer.activation!r}"
        )
    return layer.activation


def inputs(params: Params, X: ArrayLike, name: str = "X") -> Array:
    """Check the parameters and return X (n_0, m) as A[0].

    Raises:
        ValueError: a shape does not fit, or X holds numbers beyond the dtype's range.
        TypeError: the parameters are not layers, or X is not real numbers.
    """
    X = real_array(name, X, type_of_inputs(params))
    check_shape(name, X.shape, params[0].W.shape[-1], None)
    return X


def type_of_inputs(params: Params) -> np.dtype:
    """Check the parameters and return the dtype of A[0].

    Raises:
        ValueError, TypeError: as `check_params`; or they are float64 while x64 is off.
    """
    check_params(params)
    first = params[0]
    if first.W.dtype == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise TypeError(
            "params must not be float64 while jax's x64 is off: turn it on, by"
            ' jax.config.update("jax_enable_x64", True), or cast W and b to float32'
        )
    return np.dtype(first.compute_dtype or first.W.dtype)


def finite_inputs(params: Params, X: ArrayLike, name: str = "X") -> Array:
    """Return X as A[0]; one number that is not finite would spoil the results of all examples.

    Raises:
        ValueError, TypeError: as `inputs`; or X is not finite, where its values are known.
    """
    A_0 = inputs(params, X, name)
    if is_known(A_0):
        check_finite(name, np.asarray(A_0))
    return A_0


def pair_of(params: Params, X: ArrayLike, Y: ArrayLike, which: str = "") -> tuple[Array, Array]:
    """Return X as A[0], finite, and Y, with `which` after their names in messages.

    Raises:
        ValueError, TypeError: as `finite_inputs` and `targets`.
    """
    A_0 = finite_inputs(params, X, f"X{which}")
    shape = params[-1].W.shape[-2], A_0.shape[1]
    A_L: Any = jax.ShapeDtypeStruct(shape, type_of_A(params[-1]))  # type: ignore[no-untyped-call]
    return A_0, targets_like(A_L, params, Y, f"Y{which}")


def targets(cache: Cache, Y: ArrayLike) -> Array:
    """Return Y as an array with A[L]'s dtype and, for most outputs, shape: see `Output.units`.

    Raises:
        ValueError: the shape differs, or a value lies outside of the output's domain. Under `jit`,
            where values are not known, the domain can't be checked.
        TypeError: Y is not real numbers, or `cache` is not a cache.
    """
    check_cache(cache)
    return targets_like(cache.A[-1], cache.params, Y)


def targets_like(A: Any, params: Params, Y: ArrayLike, name: str = "Y") -> Array:
    """Return Y as an array that fits A, which is A[L] or has its shape and dtype.

    Raises:
        ValueError, TypeError: as `targets`.
    """
    Y = real_array(name, Y, A.dtype)
    output = output_of(params)
    check_shape(name, Y.shape, target_rows(output, A.shape[0]), A.shape[1])
    if is_known(Y):
        numbers = np.asarray(Y)
        check_domain(name, numbers.min(), numbers.max(), output)
    return Y


def check_domain(name: str, least: Any, largest: Any, output: Output) -> None:
    """Raise unless the values of Y lie where the output's loss has a minimum.

    Raises:
        ValueError: they don't, as with labels -1 and 1 for sigmoid, or counts below 0 for exp.
    """
    low, high = output.domain
    least, largest = float(least), float(largest)
    if least < low - ROUNDING or largest > high + ROUNDING:
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}] for the output {output.name}, got numbers from"
            f" {least:.4g} to {largest:.4g}"
        )


def signals(cache: Cache, dZ: Sequence[ArrayLike]) -> list[Array]:
    """Cast dZ to the dtype of the parameters, and check that it matches the cache.

    Raises:
        ValueError: dZ has another number of layers, units or examples than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """
    check_cache(cache)
    dZ, m = list(dZ), cache.A[0].shape[-1]
    if len(dZ) != len(cache.params):
        raise ValueError(
            f"dZ must hold one array per layer, {len(cache.params)} for this cache, got {len(dZ)}:"
            " does it belong to another network?"
        )
    arrays = []
    for l, (layer, given) in enumerate(zip(cache.params, dZ, strict=True), start=1):
        array = real_array(f"dZ[{l}]", given, type_of_dZ(layer))
        *K, n, _ = layer.W.shape
        check_shape(f"dZ[{l}]", array.shape, n, m, *K)
        arrays.append(array)
    return arrays


def check_cache(cache: Any, name: str = "cache") -> None:
    """Raise unless it is a cache.

    Raises:
        TypeError: it is anything else, such as params.
    """
    if not isinstance(cache, Cache):
        raise TypeError(
            f"{name} must be the dp.Cache returned by forward, got {type(cache).__name__}"
        )


def check_like(name: str, given: Any, params: Params) -> None:
    """Raise unless `given` has layers with W of the shapes that `params` has.

    Raises:
        ValueError: the shapes differ.
        TypeError: it does not hold layers.
    """
    if not isinstance(given, tuple) or not all(isinstance(layer, Layer) for layer in given):
        raise TypeError(f"{name} must be layers like params, got {type(given).__name__}")
    _check_unmasked(name, given)
    shapes = [[tuple(layer.W.shape) for layer in layers] for layers in (params, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must hold W of shapes {shapes[0]}, got {shapes[1]}")


def check_params(params: Any) -> None:
    """Raise unless `params` is a tuple of layers that fit one another.

    Raises:
        ValueError: the shape of W or b does not fit the neighbouring layers.
        TypeError: it is not a tuple of layers, their dtypes differ, a hidden layer has no
            activation, or the last layer has no output.
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
    _check_unmasked("params", params)
    n, dtype = None, params[0].W.dtype
    for l, layer in enumerate(params, start=1):
        _check_shapes(l, layer, n)
        check_entry(f"layer {l}", layer.normalize, layer.dropout)
        n = layer.W.shape[-2]
        W, b = layer.W, layer.b
        if W.dtype != dtype or b.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params must all have one floating dtype, W[1] has {dtype}, layer {l} has"
                f" W {W.dtype} and b {b.dtype}"
            )
        if layer.compute_dtype != params[0].compute_dtype:
            raise TypeError(
                f"params must all have one compute_dtype, layer 1 has {params[0].compute_dtype},"
                f" layer {l} has {layer.compute_dtype}"
            )
        if l < len(params):
            hidden_activation(layer)
    target_rows(output_of(params), params[-1].W.shape[-2])


def _check_unmasked(name: str, layers: Params) -> None:
    for l, layer in enumerate(layers, start=1):
        check_unmasked(f"W[{l}] of {name}", layer.W)
        check_unmasked(f"b[{l}] of {name}", layer.b)


def _check_shapes(l: int, layer: Layer, n_below: int | None) -> None:
    W, b, name = layer.W, layer.b, f"W[{l}]"
    due = "n_{l-1}" if n_below is None else n_below
    last = isinstance(layer.activation, Output)
    if W.ndim not in (2, 3) or n_below not in (None, W.shape[-1]):
        raise ValueError(f"{name} must have shape (n_l, {due}), got {W.shape}")
    if W.ndim == 3 and (W.shape[1] != W.shape[2] or last or 0 in W.shape):
        raise ValueError(
            f"{name} must have shape (n_l, {due}), or (K, n, n) for a stack of hidden layers,"
            f" got {W.shape}"
        )
    if b.shape != (*W.shape[:-1], 1):
        raise ValueError(f"b[{l}] must have shape {(*W.shape[:-1], 1)}, got {b.shape}")
    if layer.keep < 1:
        raise ValueError(f"layer {l} must have a keep of at least 1, got {layer.keep}")
    if layer.residual and (W.shape[-2] != W.shape[-1] or last):
        raise ValueError(
            f"layer {l} must be hidden and have as many units as inputs to be residual,"
            f" got W {W.shape}"
        )
