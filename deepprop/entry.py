"""What enters layer l: U[l], made of A[l-1], and the derivative of that step.

    N = A[l-1], normalised if the layer asks for it        U[l] = N, or with dropout N * M / (1 - p)

W[l] then multiplies U[l] where it would multiply A[l-1], so dW[l] = 1/m dZ[l] U[l]^T. Column i of U
depends on column i of A alone: every example still has a gradient of its own. Batch normalisation
ties the examples of a batch together, so it is not here.

A normalised column has mean 0 and variance 1 ("layer"), or mean square 1 ("rms"). A gain c and a
bias d are left out, because W[l] and b[l], which follow, can express them:
W (c * N + d) + b = (W diag(c)) N + (W d + b).

Dropout sets each entry to 0 with probability p and divides the others by 1 - p, so that the mean of
U is that of N. M is drawn from a key when it is needed, in the backward pass again: a mask that is
not stored takes no memory.

Sources: Ba et al. 2016, Layer Normalization, arXiv:1607.06450; Zhang and Sennrich 2019, Root Mean
Square Layer Normalization, arXiv:1910.07467; Srivastava et al. 2014, Dropout, JMLR 15.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepprop._arithmetic import wide
from deepprop.layers import Layer

EPSILON = 1e-5  # added to the variance or mean square


def entering(layer: Layer, A: Array, kept: Array | None = None) -> Array:
    """Compute U[l] (n_{l-1}, m) from A[l-1] (n_{l-1}, m).

    Args:
        layer: layer l.
        A: A[l-1].
        kept: what dropout keeps: a random key, or a mask (n_{l-1}, m); None for all.
    """
    return _dropped(layer, _normalized(layer, A)[0], kept)  # U = N * M / (1 - p)


def below_entry(layer: Layer, dU: Array, A: Array, kept: Array | None = None) -> Array:
    """Compute dA[l-1] from dU[l]: back through dropout, then through the normalisation."""
    dN = _dropped(layer, dU, kept)  # dN = dU * M / (1 - p)
    return _times_slope(layer, dN, A)


def along_entry(layer: Layer, RA: Array, A: Array, kept: Array | None = None) -> Array:
    """Compute RU[l], the derivative of U[l] along RA[l-1]: the same steps in the other order.

    The derivative of the normalisation is a symmetric matrix, so it is the same in both directions.
    """
    return _dropped(layer, _times_slope(layer, RA, A), kept)


def _normalized(layer: Layer, A: Array) -> tuple[Array, Array | None]:
    """Return N in the dtype of A, and the size s by which A was divided, (m, 1)."""
    if layer.normalize is None:
        return A, None
    P, s = sizes(layer, A)
    return (P / s).astype(A.dtype).mT, s  # N = (A - mean(A)) / s, or A / s


def sizes(layer: Layer, A: Array) -> tuple[Array, Array]:
    """Return P = A - mean(A), or A for "rms", as rows (m, n), and the size s of each, (m, 1)."""
    P = without_mean(layer, _rows(A))
    return P, jnp.sqrt(jnp.mean(jnp.square(P), axis=-1, keepdims=True) + EPSILON)


def without_mean(layer: Layer, P: Array) -> Array:
    """Return rows P (m, n) without their means if the layer normalises them away."""
    return P - jnp.mean(P, axis=-1, keepdims=True) if layer.normalize == "layer" else P


def _times_slope(layer: Layer, v: Array, A: Array) -> Array:
    """Multiply each column of v by the derivative of the normalisation, (I - 1/n N N^T) / s.

    For "layer", the mean of v is subtracted as well, as that of A is. The equation is exact with
    EPSILON in s: ds/da = (a - mean(a)) / (n s) = 1/n N.
    """
    N, s = _normalized(layer, A)
    if s is None:
        return v
    P, Q = _rows(v), _rows(N)
    below = P - Q * jnp.mean(Q * P, axis=-1, keepdims=True)
    if layer.normalize == "layer":
        below = below - jnp.mean(P, axis=-1, keepdims=True)
    return (below / s).astype(v.dtype).mT


def _rows(P: Array) -> Array:
    """Return P^T in the wide dtype: on a CPU, means over columns of P would be taken of a copy."""
    return P.mT.astype(wide(P.dtype))


def _dropped(layer: Layer, P: Array, kept: Array | None) -> Array:
    """Return P * M / (1 - p)."""
    if kept is None:
        return P
    scaled = P / jnp.asarray(1 - layer.dropout, P.dtype)
    return jnp.where(mask(layer, kept, P.shape[-1]), scaled, 0)


def mask(layer: Layer, kept: Array, m: int) -> Array:
    """Return M (n_{l-1}, m): True for entries that dropout keeps, each with probability 1 - p."""
    if kept.dtype == jnp.bool_:
        return kept
    n = layer.W.shape[-1]
    keep = np.float32(1 - layer.dropout)  # in float64 another number would be drawn
    return jax.random.bernoulli(kept, keep, (m, n)).T  # drawn as it lies in memory
