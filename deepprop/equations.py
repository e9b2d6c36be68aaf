"""One layer forward and backward: the equations, side by side.

Each function computes one step of one layer. Columns are examples: A[l-1] has shape (n_{l-1}, m);
Z[l], A[l], dZ[l] and dA[l] have shape (n_l, m). The passes through a whole network are in walk.py.

A residual layer adds its input: A[l] = A[l-1] + g[l](Z[l]). A[l-1] then reaches the loss on two
paths, through Z[l] and around it, and dA[l-1] is the sum of the derivatives along both:

    dZ[l] = dA[l] * g[l]'(Z[l])          dA[l-1] = W[l]^T dZ[l] + dA[l]

dW[l] and db[l] follow from dZ[l] and A[l-1] as before. The second path carries dA down the network
even where W or g' is small, which is why deep networks use residual layers (He et al. 2016,
Identity Mappings in Deep Residual Networks, arXiv:1603.05027).

If a layer normalises or drops what enters it, U[l] takes the place of A[l-1] in its equations, and
dU[l] that of dA[l-1]: see entry.py. Otherwise U[l] is A[l-1].
"""

from dataclasses import replace

from jax import Array

from deepprop._arguments import hidden_activation, output_of
from deepprop._arithmetic import add_up, elementwise, hadamard, multiply, rows
from deepprop.entry import below_entry, entering
from deepprop.layers import Layer, type_of_dZ, types_of_A, types_of_dZ, types_of_sums


def forward_layer(layer: Layer, A: Array, kept: Array | None = None) -> tuple[Array, Array]:
    """Compute Z[l] and A[l] (n_l, m) from A[l-1] (n_{l-1}, m)."""
    types = types_of_A(layer)
    W, b, g = layer.W, layer.b.astype(types.result), layer.activation.g
    times = multiply(types)
    U = entering(layer, A, kept)  # A[l-1], or normalised, with dropout
    Z = times(W, U) + b  # Z[l] = W[l] A[l-1] + b[l]
    above = elementwise(g, Z)  # A[l] = g[l](Z[l])
    return Z, A + above if layer.residual else above


def error_signal(layer: Layer, dA: Array, Z: Array, A: Array) -> Array:
    """Compute dZ[l] (n_l, m) of a hidden layer from dA[l], Z[l] and A[l]."""
    return hadamard(dA, slope(layer, Z, A))  # dZ[l] = dA[l] * g[l]'(Z[l])


def output_signal(layer: Layer, Z: Array, A: Array, Y: Array) -> Array:
    """Compute dZ[L] (n_L, m) of the output layer from Z[L], A[L] and Y, as costs.py defines it."""
    dZ = output_of((layer,)).dZ(Z, A, Y)
    return rows(dZ.astype(type_of_dZ(layer)))


def output_signal_from(layer: Layer, dA: Array, Z: Array, A: Array) -> Array:
    """Compute dZ[L] (n_L, m) of the output layer from a dA[L] that the caller brings."""
    dZ = output_of((layer,)).dZ_from_dA(Z, A, dA)
    return rows(dZ.astype(type_of_dZ(layer)))


def signal_below(layer: Layer, dZ: Array, dA: Array, A: Array, kept: Array | None = None) -> Array:
    """Compute dA[l-1] (n_{l-1}, m) from dZ[l], A[l-1] and, for a residual layer, dA[l]."""
    W, times = layer.W, multiply(types_of_dZ(layer), transposed=True)
    dU = times(W.mT, dZ)  # dA[l-1] = W[l]^T dZ[l]
    below = below_entry(layer, dU, A, kept)  # back through what made U of A
    return below + dA if layer.residual else below


def slope(layer: Layer, Z: Array, A: Array) -> Array:
    """Compute g[l]'(Z[l]) of a hidden layer from Z[l] and A[l]."""
    g = hidden_activation(layer)
    if layer.residual:  # A[l] is not g(Z[l]) here
        return elementwise(lambda Z: g.g_prime(Z, g.g(Z)), Z)
    return elementwise(g.g_prime, Z, A)


def layer_gradient(layer: Layer, dZ: Array, U: Array, m: int | Array) -> Layer:
    """Compute dW[l] and db[l] from dZ[l] (n_l, m) and U[l] (n_{l-1}, m), which enters the layer.

    They are rounded to the parameters' dtype once, after the sum over examples and the division.
    """
    outer, total = add_up(types_of_sums(layer))
    dW = outer(dZ, U) / m  # dW[l] = 1/m dZ[l] A[l-1]^T
    db = total(dZ) / m  # db[l] = 1/m sum_i dZ[l](i)
    return replace(layer, W=dW.astype(layer.W.dtype), b=db.astype(layer.b.dtype))
