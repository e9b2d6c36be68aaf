"""The backward pass, by hand, in two steps that stay apart.

1. The error signals run down the network: dZ[L], dZ[L-1], ..., dZ[1].
2. Each layer's gradient is local: dW[l] and db[l] from dZ[l] and A[l-1] alone.

The equations of both are in equations.py, a line each; walk.py is the way through the layers.
`manual_backward` takes both steps at each layer, so that no dZ has to be kept.

The cost is J = 1/m sum_i L(i). dW and db are dJ/dW and dJ/db. A column of dZ or dA is the
derivative of that one example's loss L(i), without 1/m, and without its weight: what belongs to one
example stays apart until the gradient adds the examples up.
"""

from collections.abc import Callable, Sequence
from functools import partial

from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache
from deepprop._arithmetic import times_each, wide
from deepprop._checks import example_weights, sum_of_weights
from deepprop.equations import layer_gradient
from deepprop.layers import Cache, Layer, Params
from deepprop.walk import down, each_layer

Backward = Callable[[Cache, Array, Array | None], Params]  # cache, Y and weights to gradients


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
    dZ = down(cache, Y, lambda _, layer, dZ, A_below: dZ.mT)  # in rows (`rows`)
    return tuple(dZ_l.mT for dZ_l in dZ)


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
    check_cache(cache)
    return each_layer(gradient_of(cache, weights_of(cache, weights)), cache, dZ)


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
    check_cache(cache)
    return mean_gradient(cache, Y, weights_of(cache, weights))


def mean_gradient(cache: Cache, Y: ArrayLike, w: Array | None) -> Params:
    """What `manual_backward` returns, from weights that were checked; w is about 1 at the most."""
    gradient = gradient_of(cache, w)
    return tuple(down(cache, Y, lambda _, layer, dZ, A: gradient(layer, dZ, A)))


def weights_of(cache: Cache, weights: ArrayLike | None) -> Array | None:
    """The weights of a cache's examples, checked, and at most about 1."""
    if weights is None:
        return None
    return example_weights(weights, cache.A[0].shape[-1], wide(cache.params[0].W.dtype))


def gradient_of(cache: Cache, w: Array | None = None) -> Callable[[Layer, Array, Array], Layer]:
    """The function of (layer, dZ[l], A[l-1]) that returns dW[l] and db[l], with these weights."""
    if w is None:
        return partial(layer_gradient, m=cache.A[0].shape[-1])
    total = sum_of_weights(w)
    return lambda layer, dZ, A: layer_gradient(layer, times_each(w, dZ), A, total)
