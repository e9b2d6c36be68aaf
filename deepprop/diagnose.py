"""The health of every layer, measured: how large its signals are, and which units still learn."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from deepprop.activations import Activation
from deepprop.backprop import gradients
from deepprop.diagnosis import FLAT, Diagnosis, steepest
from deepprop.layers import Cache, Layer, Params, check_cache, check_like, signals
from deepprop.precision import wide

FEW = 16  # examples: with fewer, many a healthy unit happens to be off for all
DEAD = 1e-6  # of the steepest slope: below it for every example, a unit learns nothing


def diagnose(cache: Cache, dZ: Sequence[Array], updates: Params | None = None) -> Diagnosis:
    """Measure each layer: the norms of A, dZ, W and dW, dead and flat units, and the last update.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 50)))
    >>> dZ = dp.error_signals(cache, jax.nn.one_hot(jnp.arange(50) % 2, 2, axis=0))
    >>> dp.diagnose(cache, dZ).dead
    Array([0., 0.], dtype=float32)

    Args:
        cache: what `forward` gave.
        dZ: what `error_signals` gave: L arrays (n_l, m), layer 1 first, without 1/m.
        updates: what was added to the params, like `params`; None where nothing was.

    Returns:
        A `Diagnosis`, a pytree. In the last layer, whose output is no plain activation, no unit
        counts as dead or flat; and with fewer than 16 examples none counts as dead.

    Raises:
        ValueError: dZ or the updates are of another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is no cache.
    """
    check_cache(cache)
    dZ, layers = signals(cache, dZ), cache.params
    grads = gradients(cache, dZ)
    W = jnp.stack([_length(layer.W) for layer in layers])
    slopes = [_slopes(*of_layer) for of_layer in zip(layers, cache.Z, cache.A[1:], strict=True)]
    return Diagnosis(
        A=jnp.stack([_rms(A) for A in cache.A[1:]]),
        dZ=jnp.stack([_rms(d) * d.shape[-2] ** 0.5 for d in dZ]),
        W=W,
        dW=jnp.stack([_length(of_layer.W) for of_layer in grads]),
        update=None if updates is None else _lengths_over(updates, W, layers),
        dead=jnp.stack([dead for dead, _ in slopes]),
        flat=jnp.stack([flat for _, flat in slopes]),
        X=_sizes(cache.A[0]),
        units=(layers[0].W.shape[1], *(layer.W.shape[0] for layer in layers)),
        activations=tuple(layer.activation for layer in layers),
    )


def _lengths_over(updates: Params, W: Array, layers: Params) -> Array:
    check_like("updates", updates, layers)
    usual = jnp.array([layer.W.shape[0] ** 0.5 for layer in layers], W.dtype)
    return jnp.stack([_length(update.W) for update in updates]) / jnp.maximum(W, usual)


def _slopes(layer: Layer, Z: Array, A: Array) -> tuple[Array, Array]:
    """The shares of dead units, and of flat units and examples."""
    g, dtype = layer.activation, wide(layer.W.dtype)
    if not isinstance(g, Activation):
        return jnp.zeros((), dtype), jnp.zeros((), dtype)
    slope = jnp.abs(_widened(g.g_prime(Z, A))) / steepest(g)
    dead = jnp.all(slope < DEAD, axis=-1) & (Z.shape[-1] >= FEW)
    return jnp.mean(dead, dtype=dtype), jnp.mean(slope < FLAT, dtype=dtype)


def _sizes(X: Array) -> Array:
    """The root mean square, the median over what is not always 0, and the largest, of inputs."""
    sizes = jnp.sqrt(jnp.mean(jnp.square(_widened(X)), axis=-1))
    used = jnp.where(sizes > 0, sizes, jnp.nan)
    return jnp.stack([_rms(X), jnp.nan_to_num(jnp.nanmedian(used)), jnp.max(sizes)])


def _rms(P: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(_widened(P))))


def _length(P: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(_widened(P))))


def _widened(P: Array) -> Array:
    return P.astype(wide(P.dtype))
