"""The backward pass, by hand, in two steps.

1. The error signals run down the network: dZ[L], dZ[L-1], ..., dZ[1].
2. Each layer's gradient is local: dW[l] and db[l] follow from dZ[l] and A[l-1] alone.

Both are made of the equations in equations.py; walk.py goes through the layers. `manual_backward`
does both steps layer by layer, so that no dZ has to be stored.

The cost is J = 1/m sum_i L(i), and dW and db are dJ/dW and dJ/db. Column i of dZ or dA is the
derivative of example i's own loss L(i), without 1/m and without its weight. What belongs to one
example stays separate until the gradient sums over examples.
"""

from collections.abc import Callable, Sequence
from functools import partial

from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache
from deepprop._arithmetic import times_each, wide
from deepprop._checks import example_weights, sum_of_weights
from deepprop.ends import start_from
from deepprop.equations import layer_gradient
from deepprop.layers import Cache, Layer, Params
from deepprop.walk import down, each_layer

Backward = Callable[[Cache, Array, Array | None], Params]  # cache, Y and weights to gradients


def error_signals(
    cache: Cache,
    Y: ArrayLike | None = None,
    *,
    dA: ArrayLike | None = None,
    dZ: ArrayLike | None = None,
) -> tuple[Array, ...]:
    """Compute the error signals: dZ[L], and dZ[l] = W[l+1]^T dZ[l+1] * g[l]'(Z[l]) below.

    dZ[L] comes from the network's own cost and the targets Y. Bring dA[L] or dZ[L] instead for any
    other loss: of a policy gradient, of several networks, of the head of another library.

    `walk.down` goes down the layers; the two equations of each layer are in equations.py.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dZ = dp.error_signals(cache, jnp.zeros((2, 5)))
    >>> [d.shape for d in dZ], bool(jnp.array_equal(dZ[-1], A))  # dZ[L] = A[L] - Y, and Y = 0
    ([(4, 5), (2, 5)], True)

    Args:
        cache: the cache returned by `forward`.
        Y: (n_L, m), the targets, one example per column.
        dA: (n_L, m), the derivative of each example's own loss by A[L], without 1/m. For a loss J
            that couples examples, m times dJ/dA[L]. Any sign and size.
        dZ: (n_L, m), the same by Z[L].

    Returns:
        dZ[1], ..., dZ[L], each (n_l, m) in the dtype of the parameters: `dZ[l - 1]` is layer l's.
        Column i is the derivative of example i's own loss L(i), without 1/m.

    Raises:
        ValueError: the shape of Y, dA or dZ does not fit the cache, or the output has no cost for
            Y.
        TypeError: not exactly one of the three is given, it is not real numbers, or `cache` is not
            a cache.
    """
    start = start_from(cache, Y, dA, dZ)
    signals, _ = down(cache, start, lambda _, layer, dZ, A_below: dZ.mT)  # as rows: see _loops.py
    return tuple(dZ_l.mT for dZ_l in signals)


def gradients(cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None) -> Params:
    """Compute the gradients of J from the error signals: each layer's from its dZ[l] and A[l-1].

    dW[l] = 1/m dZ[l] A[l-1]^T and db[l] = 1/m sum_i dZ[l](i). With weights w, column i of dZ is
    multiplied by w_i, and sum_i w_i takes the place of m.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> grads = dp.gradients(cache, dp.error_signals(cache, A))  # Y = A[L]
    >>> float(jnp.abs(grads[0].W).max())
    0.0

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals, L arrays (n_l, m), layer 1 first, without 1/m.
        weights: (m,), one per example; none negative, not all 0.

    Returns:
        Layers like `params`, with dJ/dW in the place of W and dJ/db in that of b, in their dtype.

    Raises:
        ValueError: dZ belongs to another network or batch, or the weights do not fit.
        TypeError: dZ or the weights are not real numbers, or `cache` is not a cache.
    """
    check_cache(cache)
    return each_layer(gradient_of(cache, weights_of(cache, weights)), cache, dZ)


def manual_backward(
    cache: Cache,
    Y: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    dA: ArrayLike | None = None,
    dZ: ArrayLike | None = None,
) -> Params:
    """Compute the gradients of J: `gradients(cache, error_signals(cache, Y), weights)`.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> grads = dp.manual_backward(cache, jax.nn.one_hot(jnp.zeros(5, int), 2, axis=0))
    >>> jax.tree.structure(grads) == jax.tree.structure(params)
    True

    Args:
        cache: the cache returned by `forward`.
        Y: (n_L, m), the targets, one example per column; for softmax each column sums to 1.
        weights: (m,), one per example; none negative, not all 0.
        dA: instead of Y, as for `error_signals`; J is then 1/m sum_i of the losses it belongs to.
        dZ: instead of Y, as for `error_signals`.

    Returns:
        Layers like `params`, with dJ/dW in the place of W and dJ/db in that of b, in their dtype.

    Raises:
        ValueError: the shape of Y or of the weights does not fit the cache.
        TypeError: Y or the weights are not real numbers, or `cache` is not a cache.
    """
    check_cache(cache)
    return mean_gradient(cache, Y, weights_of(cache, weights), dA=dA, dZ=dZ)


def mean_gradient(
    cache: Cache, Y: ArrayLike | None, w: Array | None, **brought: ArrayLike | None
) -> Params:
    """Compute the gradients of J in one walk down, with weights that were checked.

    Each layer's gradient is taken as soon as its dZ is there, so that no dZ has to be stored. The
    largest entry of w is about 1.
    """
    gradient = gradient_of(cache, w)
    start = start_from(cache, Y, **brought)
    grads, _ = down(cache, start, lambda _, layer, dZ, A: gradient(layer, dZ, A))
    return tuple(grads)


def weights_of(cache: Cache, weights: ArrayLike | None) -> Array | None:
    """Return the weights of a cache's examples, checked and scaled to at most about 1."""
    if weights is None:
        return None
    return example_weights(weights, cache.A[0].shape[-1], wide(cache.params[0].W.dtype))


def gradient_of(cache: Cache, w: Array | None = None) -> Callable[[Layer, Array, Array], Layer]:
    """Return the function of (layer, dZ[l], A[l-1]) that computes dW[l] and db[l]."""
    if w is None:
        return partial(layer_gradient, m=cache.A[0].shape[-1])
    total = sum_of_weights(w)
    return lambda layer, dZ, A: layer_gradient(layer, times_each(w, dZ), A, total)
