"""One layer forward and backward: the equations, side by side.

Each function is of one layer, with one example a column: A[l-1] (n_{l-1}, m); Z[l], A[l], dZ[l] and
dA[l] (n_l, m). A network is a fold of them over its layers.

A residual layer adds its input, A[l] = A[l-1] + g[l](Z[l]). Then A[l-1] reaches the loss in two
ways, through Z[l] and past it, and dA[l-1] is the sum of what comes back on both:

    dZ[l] = dA[l] * g[l]'(Z[l])          dA[l-1] = W[l]^T dZ[l] + dA[l]

Nothing else changes: dW[l] and db[l] come of dZ[l] and A[l-1] as before. So dA goes down even where
all W or g' are small, which is why deep networks are made of such layers (He et al. 2016, Identity
Mappings in Deep Residual Networks, arXiv:1603.05027).
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from deepprop.layers import Layer, hidden_activation, type_of_A, type_of_dZ
from deepprop.layout import by_example, rows
from deepprop.precision import product, wide


def forward_layer(layer: Layer, A: Array) -> tuple[Array, Array]:
    """One layer forward: A[l-1] (n_{l-1}, m) to Z[l] and A[l] (n_l, m)."""
    kept = type_of_A(layer)
    b = layer.b.astype(kept)
    Z = rows(product(layer.W, A, kept, layer.products)) + b  # Z[l] = W[l] A[l-1] + b[l]
    above = by_example(layer.activation.g, Z)  # A[l] = g[l](Z[l])
    return Z, A + above if layer.residual else above


def error_signal(layer: Layer, dA: Array, Z: Array, A: Array) -> Array:
    """One hidden layer's dZ[l], from dA[l] and from Z[l] and A[l]."""
    return rows(dA * slope(layer, Z, A).astype(dA.dtype))  # dZ[l] = dA[l] * g[l]'(Z[l])


def signal_below(layer: Layer, dZ: Array, dA: Array) -> Array:
    """dA[l-1] (n_{l-1}, m), from dZ[l] and, where the layer is residual, dA[l]."""
    kept = type_of_dZ(layer)
    below = rows(product(layer.W.mT, dZ, kept, layer.products))  # dA[l-1] = W[l]^T dZ[l]
    return below + dA if layer.residual else below


def slope(layer: Layer, Z: Array, A: Array) -> Array:
    """g[l]'(Z[l]) of a hidden layer, from Z[l] and A[l]."""
    activation = hidden_activation(layer)
    if layer.residual:  # whose A[l] is not g(Z[l])
        return by_example(lambda Z: activation.g_prime(Z, activation.g(Z)), Z)
    return by_example(activation.g_prime, Z, A)


def layer_gradient(layer: Layer, dZ: Array, A: Array, m: int | Array) -> Layer:
    """dW[l] and db[l] of one layer, from its dZ[l] (n_l, m) and from A[l-1] (n_{l-1}, m).

    The examples are added up in float32 at least, divided by m there, and rounded once.
    """
    dtype = layer.W.dtype
    dW = product(dZ, A.mT, wide(dtype), layer.products) / m  # dW[l] = 1/m dZ[l] A[l-1]^T
    db = jnp.sum(dZ, axis=-1, keepdims=True, dtype=wide(dtype)) / m  # db[l] = 1/m sum_i dZ[l](i)
    return replace(layer, W=dW.astype(dtype), b=db.astype(dtype))


def times_each(w: Array, dZ: Array) -> Array:
    """Column i of dZ (n_l, m) times w_i, in the type of dZ."""

    def times(w_i: Array, dz: Array) -> Array:
        return (w_i * dz.astype(w.dtype)).astype(dZ.dtype)

    return rows(by_example(times, w[None, :], dZ))
