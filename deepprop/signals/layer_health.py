"""Measuring the health of every layer: how large its signals are, and which units still learn."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepprop._arguments import check_cache, check_like, signals
from deepprop._arithmetic import root_of_squares, wide
from deepprop.activations import Activation
from deepprop.backprop import gradients
from deepprop.equations import slope
from deepprop.layers import Cache, Layer, Params, activations, units
from deepprop.signals.diagnosis import FLAT, Diagnosis, steepest
from deepprop.walk import layer_map, recomputed

FEW = 16  # examples: with fewer, a healthy unit may be off for all of them by chance
DEAD = 1e-6  # of the steepest slope: a unit below it for every example learns nothing


def diagnose(cache: Cache, dZ: Sequence[Array], updates: Params | None = None) -> Diagnosis:
    """Measure each layer: the norms of A, dZ, W and dW, dead and flat units, and the last update.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 50)))
    >>> dZ = dp.error_signals(cache, jax.nn.one_hot(jnp.arange(50) % 2, 2, axis=0))
    >>> dp.diagnose(cache, dZ).dead
    Array([0., 0.], dtype=float32)

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.
        updates: the last step's change of the parameters, like `params`; None if there was none.

    Returns:
        A `Diagnosis`, a pytree. The units of the output layer never count as dead or flat; with
        fewer than 16 examples, no unit counts as dead.

    Raises:
        ValueError: dZ or the updates belong to another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """
    check_cache(cache)
    cache, layers, dZ = recomputed(cache), cache.params, signals(cache, dZ)
    if updates is not None:
        check_like("updates", updates, layers)
    of_all = cache.Z, cache.A[1:], dZ, gradients(cache, dZ), updates or layers
    measured = layer_map(_of_layer, layers, *of_all)
    numbers = jax.tree.map(lambda *P: jnp.concatenate([jnp.atleast_1d(p) for p in P]), *measured)
    if updates is None:
        numbers["update"] = None
    return Diagnosis(
        **numbers, X=_sizes(cache.A[0]), units=units(layers), activations=activations(layers)
    )


def _of_layer(
    layer: Layer, Z: Array, A: Array, dZ: Array, grads: Layer, update: Layer
) -> dict[str, Any]:
    W, n = _length(layer.W), layer.W.shape[0]
    dead, flat = _shares(layer, Z, A)
    return {
        "A": _rms(A),
        "dZ": _rms(dZ) * n**0.5,
        "W": W,
        "dW": _length(grads.W),
        "update": _length(update.W) / jnp.maximum(W, jnp.asarray(n**0.5, W.dtype)),
        "dead": dead,
        "flat": flat,
    }


def _shares(layer: Layer, Z: Array, A: Array) -> tuple[Array, Array]:
    """Return the share of dead units, and the share of flat entries."""
    g, dtype = layer.activation, wide(layer.W.dtype)
    if not isinstance(g, Activation):
        return jnp.zeros((), dtype), jnp.zeros((), dtype)
    slopes = jnp.abs(_widened(slope(layer, Z, A))) / steepest(g)
    dead = jnp.all(slopes < DEAD, axis=-1) & (Z.shape[-1] >= FEW)
    return jnp.mean(dead, dtype=dtype), jnp.mean(slopes < FLAT, dtype=dtype)


def _sizes(X: Array) -> Array:
    """Return three sizes of the inputs: root mean square, median of those not always 0, largest."""
    sizes = root_of_squares(X, axis=-1)[:, 0] / X.shape[-1] ** 0.5
    used = jnp.where(sizes > 0, sizes, jnp.nan)
    return jnp.stack([_rms(X), jnp.nan_to_num(jnp.nanmedian(used)), jnp.max(sizes)])


def _rms(P: Array) -> Array:
    rms: Array = _length(P) / P.size**0.5
    return rms


def _length(P: Array) -> Array:
    return root_of_squares(P).reshape(())


def _widened(P: Array) -> Array:
    return P.astype(wide(P.dtype))
