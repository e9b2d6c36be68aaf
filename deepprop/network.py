"""A network: its parameters, the forward pass and the cost.

L layers; m examples, one per column; n_l units in layer l:

    W[l] (n_l, n_{l-1})    b[l] (n_l, 1)    Z[l], A[l] (n_l, m)    A[0] = X (n_0, m)    Y (n_L, m)
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from deepprop import outputs
from deepprop._arguments import check_entry, inputs, output_of, targets
from deepprop._checks import (
    by_name,
    check_finite,
    check_key,
    example_weights,
    is_known,
    sum_of_weights,
)
from deepprop._renamed import renamed_argument
from deepprop.activations import Activation, activation
from deepprop.costs import Output
from deepprop.initialisers import INITIALISERS, Wanted, initial_arrays
from deepprop.layers import Cache, Layer, Params
from deepprop.mixed_precision import with_compute_dtype
from deepprop.outputs import OutputChoice
from deepprop.stacks import one_by_one
from deepprop.walk import keys_of, to_the_top, up


@renamed_argument("products", "compute_dtype")
def init_params(
    key: Array,
    sizes: Sequence[int],
    *,
    hidden: str | Activation | Sequence[str | Activation] = "relu",
    output: OutputChoice = "softmax",
    init: str | None = None,
    dtype: DTypeLike = jnp.float32,
    residual: bool = False,
    stack: bool = False,
    compute_dtype: DTypeLike | None = None,
    normalize: str | Sequence[str | None] | None = None,
    dropout: float | Sequence[float] = 0.0,
) -> Params:
    """Initialise the parameters of a network: random W, and b = 0.

    The variance of W is 2/n_{l-1} for He, 2/(n_{l-1} + n_l) for Glorot, 1/n_{l-1} for LeCun.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [784, 256, 10])
    >>> [layer.W.shape for layer in params]
    [(256, 784), (10, 256)]

    Args:
        key: a JAX random key.
        sizes: units per layer, n_0 to n_L, the inputs first.
        hidden: the activation of the hidden layers, or a sequence of L - 1 activations: see
            `deepprop.activation`.
        output: the output layer and the cost: see `deepprop.output`.
        init: "he", "glorot" or "lecun", with "_normal" or "_uniform"; None takes the one that suits
            each layer's activation.
        dtype: of W and b; a floating type.
        residual: whether hidden layers with as many units as the layer below are residual:
            A[l] = A[l-1] + g(Z[l]). The W of R such layers are divided by R, so that A keeps its
            size however many there are.
        stack: whether runs of equal hidden layers are stored as one, with a leading axis: see
            `deepprop.stack`.
        compute_dtype: the dtype of the factors of matrix products, or "auto": see
            `deepprop.with_compute_dtype`.
        normalize: "layer" or "rms" to normalise what enters layers 2 to L; or one of them, or None,
            for each layer. It has no gain or bias: W and b serve as both (see entry.py).
        dropout: the probability with which an entry of what enters layers 2 to L is dropped in
            training; or a sequence of L, for each layer.

    Returns:
        L layers, each with W (n_l, n_{l-1}) and b (n_l, 1); with `stack`, fewer entries.

    Raises:
        ValueError: a size is below 1, there are fewer than two, a name is unknown, `hidden` is a
            sequence of another length than L - 1, no layer can be residual, or `normalize` or
            `dropout` is not one of those above.
        TypeError: `key` is not a random key, a size is not an integer, or `dtype` is not a floating
            type.
    """
    check_key(key)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating type, got {jnp.dtype(dtype)}")
    units = _checked_sizes(list(sizes))
    entries = _entries(len(units) - 1, normalize, dropout)
    runs = _runs_of_equal_layers(units, hidden, outputs.output(output), residual, *entries)
    R = sum(K for kind, K in runs if kind.residual)  # residual layers
    wanted = []
    for (n_below, n, g, adds, *_), K in runs:
        (variance, draw), _ = by_name("init", init or g.init, INITIALISERS)
        deviation = math.sqrt(variance(n_below, n)) / (R if adds else 1)
        wanted.append(Wanted((n, n_below) if K == 1 else (K, n, n), draw, deviation))
    params: list[Layer] = []
    arrays = initial_arrays(key, tuple(wanted), jnp.dtype(dtype))
    for ((*_, g, adds, norm, p), _), (W, b) in zip(runs, arrays, strict=True):
        equal = Layer(W, b, g, residual=adds, normalize=norm, dropout=p)
        params += [equal] if stack else one_by_one(equal)
    return with_compute_dtype(tuple(params), compute_dtype)


def forward(params: Params, X: ArrayLike, *, key: Array | None = None) -> tuple[Array, Cache]:
    """Run the forward pass: Z[l] = W[l] A[l-1] + b[l], A[l] = g[l](Z[l]), for l = 1 to L.

    If a layer normalises or drops what enters it, U[l] takes the place of A[l-1]: see entry.py.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> A.shape, len(cache.A), len(cache.Z)
    ((2, 5), 3, 2)

    Args:
        params: the layers, as returned by `init_params`.
        X: (n_0, m), one example per column; cast to the dtype of the parameters.
        key: a JAX random key, for layers with dropout; without it nothing is dropped.

    Returns:
        A[L] (n_L, m), in float32 or wider, and the cache for the backward pass.

    Raises:
        ValueError: the shape of X, or of a layer, does not fit the network.
        TypeError: X is not real numbers, `params` is not a tuple of layers, or `key` is not a key.
    """
    if key is not None:
        check_key(key)
    A_0 = inputs(params, X)
    cache = up(params, A_0, keys_of(params, key))
    return cache.A[-1], cache


def predict(params: Params, X: ArrayLike) -> Array:
    """Compute A[L] of the forward pass, without a cache.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> float(dp.predict(params, jnp.ones((3, 5))).sum().round(3))  # softmax: 1 per example
    5.0

    Args:
        params: the layers, as returned by `init_params`.
        X: (n_0, m), one example per column.

    Returns:
        A[L] (n_L, m), in float32 or wider.

    Raises:
        ValueError, TypeError: as for `forward`; or X holds a non-finite value. Under `jit`, where
            values are not known, that example's column of A[L] is non-finite instead.
    """
    A_0 = inputs(params, X)
    if not is_known(A_0):
        return to_the_top(params, A_0)
    check_finite("X", np.asarray(A_0))
    A_L: Array = _compiled_to_the_top(params, A_0)  # one program; else each operation would be one
    return A_L


_compiled_to_the_top = jax.jit(to_the_top)


def cost(cache: Cache, Y: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Compute J = 1/m sum_i L(i), or with weights J = sum_i w_i L(i) / sum_i w_i.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 1], output="identity")
    >>> A, cache = dp.forward(params, jnp.zeros((3, 2)))
    >>> float(dp.cost(cache, jnp.array([[2.0, 4.0]])))  # 1/2 (2^2/2 + 4^2/2)
    5.0

    Args:
        cache: the cache returned by `forward`.
        Y: (n_L, m), the targets, one example per column; for softmax each column sums to 1.
        weights: (m,), one per example; none negative, not all 0.

    Returns:
        J, a scalar in float32 or wider.

    Raises:
        ValueError: the shape of Y or of the weights does not fit the cache, or your own cost
            returns losses of another shape than (m,).
        TypeError: Y or the weights are not real numbers, or `cache` is not a cache.
    """
    Y = targets(cache, Y)
    if weights is not None:
        weights = example_weights(weights, Y.shape[1], cache.Z[-1].dtype)
    return mean_loss(cache, Y, weights)


def mean_loss(cache: Cache, Y: Array, w: Array | None) -> Array:
    """Compute J from arguments that were checked; the largest entry of w is about 1."""
    output, m = output_of(cache.params), Y.shape[1]
    losses = output.loss(cache.Z[-1], Y)
    if losses.shape != (m,):
        raise ValueError(
            f"the loss of {output.name} must have shape ({m},), one per example, got {losses.shape}"
        )
    if w is None:
        return jnp.mean(losses)  # J = 1/m sum_i L(i)
    w = w.astype(losses.dtype)  # wider than the losses if W is float64 and compute_dtype is narrow
    return jnp.sum(w * losses) / sum_of_weights(w)


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    for n in sizes:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"sizes must be integers, n_0 to n_L, got {n!r}")
    units = [int(n) for n in sizes]
    if len(units) < 2 or min(units) < 1:
        raise ValueError(f"sizes must be at least two numbers above 0, n_0 to n_L, got {units}")
    return units


class _Kind(NamedTuple):
    """What equal layers share."""

    n_below: int
    n: int
    g: Activation | Output
    residual: bool
    normalize: str | None
    dropout: float


def _entries(L: int, normalize: Any, dropout: Any) -> tuple[list[str | None], list[float]]:
    """Return the normalisation and the dropout of what enters each of L layers.

    Raises:
        ValueError, TypeError: a sequence has another length than L, or as `check_entry`.
    """
    entries = []
    for name, given, none in (("normalize", normalize, None), ("dropout", dropout, 0.0)):
        single = given is None or isinstance(given, str) or np.ndim(given) == 0
        entry = [none] + [given] * (L - 1) if single else list(given)
        if len(entry) != L:
            raise ValueError(
                f"{name} must be one for all layers, or L = {L} of them, got {len(entry)}"
            )
        entries.append(entry)
    for l, of_layer in enumerate(zip(*entries, strict=True), start=1):
        check_entry(f"layer {l}", *of_layer)
    return entries[0], [float(p) for p in entries[1]]


def _runs_of_equal_layers(
    sizes: list[int],
    hidden: Any,
    output: Output,
    residual: bool,
    normalize: list[str | None],
    dropout: list[float],
) -> list[tuple[_Kind, int]]:
    """Return the kind of each run of equal layers, and their number K.

    Raises:
        ValueError: `hidden` is a sequence of another length than L - 1, or no layer can be
            residual.
    """
    L = len(sizes) - 1
    hidden = [hidden] * (L - 1) if isinstance(hidden, str | Activation) else list(hidden)
    if len(hidden) != L - 1:
        raise ValueError(
            f"hidden must name one activation, or L - 1 = {L - 1} of them for {L} layers,"
            f" got {len(hidden)}"
        )
    adds = [residual and l < L and sizes[l] == sizes[l - 1] for l in range(1, L + 1)]
    if residual and not any(adds):
        raise ValueError(
            f"residual needs a hidden layer with as many units as the one below, got sizes {sizes}"
        )
    g: list[Activation | Output] = [*map(activation, hidden), output]
    kinds = map(_Kind, sizes, sizes[1:], g, adds, normalize, dropout)
    return [(kind, len(list(equal))) for kind, equal in groupby(kinds)]
