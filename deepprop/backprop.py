"""The backward pass, by hand, in two steps that stay apart.

1. The error signals run down the network: dZ[L], dZ[L-1], ..., dZ[1].
2. Each layer's gradient is local: dW[l] and db[l] from dZ[l] and A[l-1] alone.

The cost is J = 1/m sum_i L(i). dW and db are dJ/dW and dJ/db. A column of dZ or dA is the
derivative of that one example's loss L(i), without 1/m, and without its weight: what belongs to one
example stays apart until the gradient adds the examples up.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop.layers import (
    Cache,
    Layer,
    Params,
    hidden_activation,
    output_of,
    signals,
    targets,
)
from deepprop.layout import by_example, rows
from deepprop.precision import product, wide
from deepprop.validation import example_weights, sum_of_weights


def error_signals(cache: Cache, Y: ArrayLike) -> tuple[Array, ...]:
    """The error signals: dZ[L] from the cost, and dZ[l] = W[l+1]^T dZ[l+1] * g[l]'(Z[l]) below.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dZ = dp.error_signals(cache, jnp.zeros((2, 5)))
    >>> [d.shape for d in dZ], bool(jnp.array_equal(dZ[-1], A))  # dZ[L] = A[L] - Y, and Y = 0
    ([(4, 5), (2, 5)], True)

    Args:
        cache: what `forward` gave.
        Y: (n_L, m), the targets, one example a column.

    Returns:
        dZ[1], ..., dZ[L], each (n_l, m) in the type of the parameters: `dZ[l - 1]` is layer l's.
        Column i is the derivative of the loss L(i) of example i, without 1/m.

    Raises:
        ValueError: the shape of Y does not fit the cache.
        TypeError: Y is not real numbers, or `cache` is no cache.
    """
    Y = targets(cache, Y)
    layer, Z, A = dict(enumerate(cache.params, 1)), dict(enumerate(cache.Z, 1)), cache.A
    L = len(layer)
    dZ_L = output_of(cache.params).dZ(Z[L], A[L], Y)
    dZ = {L: rows(dZ_L.astype(layer[L].W.dtype))}
    for l in range(L - 1, 0, -1):
        g_prime = hidden_activation(layer[l]).g_prime
        dA = rows(product(layer[l + 1].W.mT, dZ[l + 1]))  # dA[l] = W[l+1]^T dZ[l+1]
        dZ[l] = rows(dA * by_example(g_prime, Z[l], A[l]))  # dZ[l] = dA[l] * g[l]'(Z[l])
    return tuple(dZ[l] for l in range(1, L + 1))


def gradients(cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None) -> Params:
    """The gradients of J from the error signals, each layer's from its own dZ[l] and A[l-1].

    dW[l] = 1/m dZ[l] A[l-1]^T and db[l] = 1/m sum_i dZ[l](i); with weights, column i of dZ counts
    w_i times, and the sum of the weights stands for m.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> grads = dp.gradients(cache, dp.error_signals(cache, A))  # Y = A: nothing to mend
    >>> float(jnp.abs(grads[0].W).max())
    0.0

    Args:
        cache: what `forward` gave.
        dZ: what `error_signals` gave: L arrays (n_l, m), layer 1 first, without 1/m.
        weights: (m,), one an example, none negative and not all 0.

    Returns:
        A tuple of layers like `params`, with dJ/dW for W and dJ/db for b, in the parameters' type.

    Raises:
        ValueError: dZ is of another network or batch than the cache, or the weights do not fit.
        TypeError: the weights are not real numbers, or `cache` is no cache.
    """
    dZ = signals(cache, dZ)
    m: int | Array = cache.A[0].shape[-1]
    if weights is not None:
        w = example_weights(weights, cache.A[0].shape[-1], wide(dZ[0].dtype))
        dZ = [times_each(w, dZ_l) for dZ_l in dZ]
        m = sum_of_weights(w)
    layers = zip(cache.params, dZ, cache.A[:-1], strict=True)  # A[l-1] beside layer l
    return tuple(layer_gradient(layer, dZ_l, A, m) for layer, dZ_l, A in layers)


def times_each(w: Array, dZ: Array) -> Array:
    """Column i of dZ (n_l, m) times w_i, in the type of dZ."""

    def times(w_i: Array, dz: Array) -> Array:
        return (w_i * dz.astype(w.dtype)).astype(dZ.dtype)

    return rows(by_example(times, w[None, :], dZ))


def layer_gradient(layer: Layer, dZ: Array, A: Array, m: int | Array) -> Layer:
    """dW[l] and db[l] of one layer, from its dZ[l] (n_l, m) and from A[l-1] (n_{l-1}, m).

    The examples are added up in float32 at least, divided by m there, and rounded once.
    """
    dtype = layer.W.dtype
    dW = product(dZ, A.mT, wide(dtype)) / m  # dW[l] = 1/m dZ[l] A[l-1]^T
    db = jnp.sum(dZ, axis=-1, keepdims=True, dtype=wide(dtype)) / m  # db[l] = 1/m sum_i dZ[l](i)
    return Layer(dW.astype(dtype), db.astype(dtype), layer.activation)


def manual_backward(cache: Cache, Y: ArrayLike, weights: ArrayLike | None = None) -> Params:
    """The gradients of J: `gradients(cache, error_signals(cache, Y), weights)`.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> grads = dp.manual_backward(cache, jax.nn.one_hot(jnp.zeros(5, int), 2, axis=0))
    >>> jax.tree.structure(grads) == jax.tree.structure(params)
    True

    Args:
        cache: what `forward` gave.
        Y: (n_L, m), the targets, one example a column; for softmax each column adds up to 1.
        weights: (m,), one an example, none negative and not all 0.

    Returns:
        A tuple of layers like `params`, with dJ/dW for W and dJ/db for b, in the parameters' type.

    Raises:
        ValueError: the shape of Y or of the weights does not fit the cache.
        TypeError: Y or the weights are not real numbers, or `cache` is no cache.
    """
    return gradients(cache, error_signals(cache, Y), weights)
