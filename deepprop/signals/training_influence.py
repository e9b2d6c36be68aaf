"""Which training examples taught the network what it says about a test example.

Without training example i, the loss of test example j would rise, to first order, by

    1/m g'_j^T (G + damping I)^-1 g_i

where g are gradients of single examples and G is the Gauss-Newton matrix (Koh and Liang 2017,
arXiv:1703.04730). In the eigenbasis of the Kronecker factors G is a diagonal, and each gradient is
an outer product of two columns u = U_dZ^T dz and v = U_A^T a. A layer's term is therefore

    sum_kq  u_ki u'_kj  v_qi v'_qj / (values_kq + damping)

and no gradient of a training example is made.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from deepprop._arguments import check_like, pair_of
from deepprop._arithmetic import product, wide
from deepprop._checks import (
    check_above_zero,
    check_scalar,
    example_weights,
    real_array,
    sum_of_weights,
    whole_number,
)
from deepprop.backprop import error_signals
from deepprop.layers import Cache, Layer, Params
from deepprop.signals.curvature import Curvature, check_curvature, ekfac, in_basis
from deepprop.signals.over_batches import list_over_batches
from deepprop.signals.per_example import columns, per_example_products
from deepprop.walk import layer_scan, up

SHARE = 0.3  # of the mean of all values, as damping; docs/questions.md has the measurement


def influence(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    X_test: ArrayLike,
    Y_test: ArrayLike,
    *,
    damping: float | None = None,
    weights: ArrayLike | None = None,
    curvature: Sequence[Curvature] | None = None,
    batch_size: int = 1024,
) -> Array:
    """Compute 1/m g'_j^T (G + damping I)^-1 g_i: the rise of test loss j without example i.

    A positive entry means that the training example helps. The training examples are read in
    batches, so the memory is that of the result, of one batch, and of all test examples.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> X = jax.random.normal(jax.random.key(1), (3, 50))
    >>> Y = jax.nn.one_hot((X[0] > 0).astype(int), 2, axis=0)
    >>> scores = dp.influence(params, X, Y, X[:, :5], Y[:, :5])
    >>> scores.shape, bool((jnp.diag(scores) > 0).all())  # each helps itself
    ((50, 5), True)

    Args:
        params: the layers of the trained network.
        X: (n_0, m), the training examples.
        Y: (n_L, m), their targets.
        X_test: (n_0, m'), the examples whose loss is in question.
        Y_test: (n_L, m'), their targets.
        damping: added to the curvature, in its units. None takes 0.3 times the mean of the
            values of all layers. Grosse et al. take 0.1 times the mean of each layer's own values;
            docs/questions.md compares the two.
        weights: (m,), the weights with which the network was trained; w_i / sum_i w_i takes the
            place of 1/m.
        curvature: the result of `ekfac`, if you have it already.
        batch_size: examples at a time; it changes the memory and the speed, not the result.

    Returns:
        (m, m'), in float32 or wider.

    Raises:
        ValueError: the output is not one of the four canonical ones, a shape does not fit, or the
            damping is not above 0.
        TypeError: an array is not real numbers, or `params` are not layers.

    Source:
        Koh and Liang 2017, Understanding Black-box Predictions via Influence Functions,
        arXiv:1703.04730; Grosse et al. 2023, Studying Large Language Model Generalization with
        Influence Functions, arXiv:2308.03296.
    """
    A_0, Y = pair_of(params, X, Y)
    m, dtype = A_0.shape[1], wide(A_0.dtype)
    w = jnp.ones(m, dtype) if weights is None else example_weights(weights, m, dtype)
    size = whole_number("batch_size", batch_size)
    if curvature is None:
        curvature = ekfac(params, A_0, weights=weights, batch_size=size)
    check_curvature(params, curvature)
    if damping is not None:
        check_scalar("damping", damping)
        check_above_zero("damping", damping)
    test = pair_of(params, X_test, Y_test, "_test")
    scores: Array = _influence(params, (A_0, Y), w, test, tuple(curvature), damping, size=size)
    return scores


@partial(jax.jit, static_argnames="size")
def _influence(
    params: Params,
    train: tuple[Array, Array],
    w: Array,
    test: tuple[Array, Array],
    curvature: tuple[Curvature, ...],
    damping: Array | None,
    *,
    size: int,
) -> Array:
    """Compute the influence from arguments that were checked."""
    other = _signals(params, *test)
    added = _damping(curvature) if damping is None else damping

    def of_batch(A_0: Array, Y: Array) -> Array:
        return inverse_products(*_signals(params, A_0, Y), *other, curvature, added)

    products = list_over_batches(of_batch, size, *train)
    return products * (w / sum_of_weights(w))[:, None]


def inverse_products(
    cache: Cache,
    dZ: Sequence[Array],
    cache_2: Cache,
    dZ_2: Sequence[Array],
    curvature: Sequence[Curvature],
    damping: ArrayLike,
) -> Array:
    """Compute g_i^T (G + damping I)^-1 g'_j for the examples of two batches, (m, m').

    For each j, one product of 1 / (values + damping), times v'_j, with the columns v.

    Args:
        cache: the cache returned by `forward` for m examples.
        dZ: the error signals of that cache.
        cache_2: the cache returned by `forward` for m' examples of the same network.
        dZ_2: the error signals of cache_2.
        curvature: that of each layer, as `ekfac` returns it.
        damping: as for `influence`.
    """
    (layers, *one), (_, *other) = columns(cache, dZ), columns(cache_2, dZ_2)

    def add(total: Array, _: Layer, dz: Array, a: Array, dz_2: Array, a_2: Array, c: Any) -> Array:
        (u, v), (u_2, v_2) = in_basis(c, dz, a), in_basis(c, dz_2, a_2)
        R = 1 / (c.values + jnp.asarray(damping, c.values.dtype))

        def of_test(j: tuple[Array, Array]) -> Array:
            u_j, v_j = j
            return jnp.sum(u * product(R * u_j[:, None] * v_j[None, :], v), axis=0)

        of_layer: Array = lax.map(of_test, (u_2.mT, v_2.mT)).mT
        return total + of_layer

    m, m_2 = one[0][0].shape[-1], other[0][0].shape[-1]
    start = jnp.zeros((m, m_2), one[0][0].dtype)
    total: Array = layer_scan(add, start, layers, *one, *other, tuple(curvature))
    return total


def tracin(
    checkpoints: Sequence[Params],
    learning_rates: ArrayLike,
    X: ArrayLike,
    Y: ArrayLike,
    X_test: ArrayLike,
    Y_test: ArrayLike,
    *,
    batch_size: int = 1024,
) -> Array:
    """Compute sum_t eta_t g_i(t) . g'_j(t): how SGD steps on example i lowered test loss j.

    Collect the checkpoints with a callback of `fit`. For eta_t, take the learning rate there times
    the number of epochs between two checkpoints; divide by the batch size too if the scores should
    be changes of the loss.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> X = jax.random.normal(jax.random.key(1), (3, 50))
    >>> Y, kept = jax.nn.one_hot((X[0] > 0).astype(int), 2, axis=0), []
    >>> def keep(epoch, row, params):
    ...     kept.append(jax.tree.map(jnp.copy, params))
    >>> fit = dp.fit(params, optax.sgd(0.1), X, Y, epochs=3, batch_size=10,
    ...              key=jax.random.key(2), callbacks=[keep])
    >>> dp.tracin(kept, [0.1] * 3, X, Y, X[:, :5], Y[:, :5]).shape
    (50, 5)

    Args:
        checkpoints: the layers at T moments of a run.
        learning_rates: (T,), eta_t.
        X: (n_0, m), the training examples.
        Y: (n_L, m), their targets.
        X_test: (n_0, m'), the examples whose loss is in question.
        Y_test: (n_L, m'), their targets.
        batch_size: examples at a time; it changes the memory and the speed, not the result.

    Returns:
        (m, m'), in float32 or wider; positive where the training example helped.

    Raises:
        ValueError: `checkpoints` is empty, their shapes differ, or an array does not fit.
        TypeError: an array is not real numbers, or a checkpoint is not layers.

    Source:
        Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
        arXiv:2002.08484.
    """
    rates = real_array("learning_rates", learning_rates)
    if not checkpoints or rates.shape != (len(checkpoints),):
        raise ValueError(
            "checkpoints and learning_rates must have the same length, above 0, got"
            f" {len(checkpoints)} checkpoints and rates of shape {rates.shape}"
        )
    first = checkpoints[0]
    train, test = pair_of(first, X, Y), pair_of(first, X_test, Y_test, "_test")
    size = whole_number("batch_size", batch_size)
    total = jnp.zeros((), wide(train[0].dtype))
    for t, (params, rate) in enumerate(zip(checkpoints, rates, strict=True)):
        check_like(f"checkpoints[{t}]", params, first)
        total = total + rate.astype(total.dtype) * _products(params, train, test, size=size)
    return total


@partial(jax.jit, static_argnames="size")
def _products(
    params: Params, train: tuple[Array, Array], test: tuple[Array, Array], *, size: int
) -> Array:
    """Compute g_i . g'_j (m, m')."""
    other = _signals(params, *test)

    def of_batch(A_0: Array, Y: Array) -> Array:
        return per_example_products(*_signals(params, A_0, Y), *other)

    return list_over_batches(of_batch, size, *train)


def _signals(params: Params, A_0: Array, Y: Array) -> tuple[Cache, tuple[Array, ...]]:
    cache = up(params, A_0)
    return cache, error_signals(cache, Y)


def _damping(curvature: Sequence[Curvature]) -> Array:
    """Return the default damping: SHARE times the mean of all values, or 1 if they are all 0."""
    mean = sum(jnp.sum(c.values) for c in curvature) / sum(c.values.size for c in curvature)
    return jnp.where(mean > 0, SHARE * mean, 1)
