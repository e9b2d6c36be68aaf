"""Curvature from A and dZ: the Fisher matrix's factors, and the Gauss-Newton diagonal.

The Fisher matrix is the mean of g_i g_i^T over examples *and over targets drawn from the network's
own predictions*; the empirical Fisher takes the data's targets instead, and is another matrix
(Kunstner et al. 2019, arXiv:1905.12558). So that nobody mistakes one for the other, what is here
takes dZ, and dZ says which it is:

    dZ = error_signals(cache, Y)                            the empirical Fisher
    dZ = error_signals(cache, sampled_targets(key, cache))  the Fisher, by sampling

For the four outputs with a name of their own the Fisher is the Gauss-Newton matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop.activations import Activation
from deepprop.backprop import error_signals, gradients
from deepprop.costs import OUTPUTS
from deepprop.layers import Cache, Params, check_cache, output_of
from deepprop.moments import squared_gradients
from deepprop.per_example import columns
from deepprop.precision import product, wide
from deepprop.validation import check_key, example_weights, sum_of_weights

Entry = TypeVar("Entry")


class Factors(NamedTuple):
    """The two factors of one layer's block of the Fisher matrix, which is about their product.

    Attributes:
        A: (n_{l-1} + 1, n_{l-1} + 1), the mean of a a^T, where a is a_i[l-1] with a 1 below it for
            b.
        dZ: (n_l, n_l), the mean of dz_i[l] dz_i[l]^T.
    """

    A: Array
    dZ: Array


def kfac_factors(
    cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None
) -> tuple[Factors, ...]:
    """Kronecker factors of each layer's block: 1/m A[l-1] A[l-1]^T, with b's 1, and 1/m dZ dZ^T.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dZ = dp.error_signals(cache, dp.sampled_targets(jax.random.key(1), cache))
    >>> [(f.A.shape, f.dZ.shape) for f in dp.kfac_factors(cache, dZ)]
    [((4, 4), (4, 4)), ((5, 5), (2, 2))]

    Args:
        cache: what `forward` gave.
        dZ: what `error_signals` gave: of `sampled_targets` for the Fisher, of the data's targets
            for the empirical Fisher.
        weights: (m,), one an example: means over w_i / sum_i w_i.

    Returns:
        `Factors` for layers 1 to L, in float32 at least.

    Raises:
        ValueError: dZ is of another network or batch than the cache, or the weights do not fit.
        TypeError: the weights are not real numbers, or `cache` is no cache.

    Source:
        Martens and Grosse 2015, Optimizing Neural Networks with Kronecker-factored Approximate
        Curvature, section 3, arXiv:1503.05671.
    """
    pairs = columns(cache, dZ)
    m = pairs[0][0].shape[-1]
    dtype = pairs[0][0].dtype
    w = jnp.ones(m, dtype) if weights is None else example_weights(weights, m, dtype)
    mean = partial(_mean_outer_product, share=w / sum_of_weights(w))
    return tuple(Factors(mean(_with_one(A)), mean(dZ_l)) for dZ_l, A in pairs)


def sampled_targets(key: Array, cache: Cache) -> Array:
    """Targets drawn from what the network predicts: Y ~ p(Y | A[L]), one draw an example.

    softmax: one class; sigmoid: 0 or 1 a unit; identity: normal about A[L] with variance 1; exp:
    Poisson with mean A[L]. Their mean is A[L], so the mean of dZ over draws is 0.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dp.sampled_targets(jax.random.key(1), cache).sum(axis=0)
    Array([1., 1., 1., 1., 1.], dtype=float32)

    Args:
        key: a JAX random key.
        cache: what `forward` gave.

    Returns:
        (n_L, m), as A[L].

    Raises:
        ValueError: the output is not one of those four: its cost tells no distribution.
        TypeError: `key` is no random key, or `cache` is no cache.
    """
    check_key(key)
    A, draw = cache.A[-1], _of_output(cache, DRAWS, "sampled targets")
    drawn: Array = draw(key, A).astype(A.dtype)
    return drawn


def gauss_newton_diagonal(cache: Cache, weights: ArrayLike | None = None) -> Params:
    """The diagonal of the Gauss-Newton matrix, exactly: 1/m sum_i J_i^T H_i J_i.

    J_i is dZ[L]/d parameters of example i, and H_i its loss's second derivative by Z[L]. With
    H_i = S S^T it is the sum over the columns s of S of the squared gradients that come of
    dZ[L] = s: n_L backward passes instead of one. `squared_gradients` with `sampled_targets`
    estimates the same in one.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> _, cache = dp.forward(params, 2 * jnp.ones((3, 5)))
    >>> dp.gauss_newton_diagonal(cache)[0].W[0]  # J is linear in W: the mean of X^2
    Array([4., 4., 4.], dtype=float32)

    Args:
        cache: what `forward` gave.
        weights: (m,), one an example: a mean over w_i / sum_i w_i.

    Returns:
        Layers like `params`, in float32 at least.

    Raises:
        ValueError: the output is not one of the four with a name of their own, or the weights do
            not fit.
        TypeError: the weights are not real numbers, or `cache` is no cache.

    Source:
        Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent;
        Dangel et al. 2020, BackPACK, arXiv:1912.10985.
    """
    root = _of_output(cache, ROOTS, "the Gauss-Newton diagonal")
    A_L = cache.A[-1]

    def of_column(total: Params, unit: Array) -> tuple[Params, None]:
        dZ = _signals_from(cache, root(A_L, unit[:, None]))  # dZ[L] = s
        return jax.tree.map(jnp.add, total, squared_gradients(cache, dZ, weights)), None

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p.dtype)), cache.params)
    total: Params
    total, _ = jax.lax.scan(of_column, zero, jnp.eye(len(A_L), dtype=A_L.dtype))
    return total


def tangent(cache: Cache, V: Params) -> Array:
    """The derivative of Z[L] along V, layer by layer upwards: J_i v in column i.

        RZ[l] = V[l] A[l-1] + v[l] + W[l] RA[l-1]        RA[l] = g[l]'(Z[l]) * RZ[l]

    Args:
        cache: what `forward` gave.
        V: a direction, like `params`: V[l] for W[l] and v[l] for b[l].

    Returns:
        RZ[L] (n_L, m), in float32 at least.

    Source:
        Pearlmutter 1994, Fast Exact Multiplication by the Hessian (the R operator).
    """
    RA = jnp.zeros_like(cache.A[0])
    for l, (layer, v) in enumerate(zip(cache.params, V, strict=True)):
        kept = cache.Z[l].dtype
        RZ = product(v.W, cache.A[l], kept) + v.b.astype(kept) + product(layer.W, RA, kept)
        if isinstance(layer.activation, Activation):
            RA = (layer.activation.g_prime(cache.Z[l], cache.A[l + 1]) * RZ).astype(RA.dtype)
    return RZ


def gauss_newton_product(cache: Cache, V: Params, weights: ArrayLike | None = None) -> Params:
    """G V, the Gauss-Newton matrix times a direction: 1/m sum_i J_i^T H_i J_i v.

    `tangent` goes up with V, H_i is multiplied by, and the backward pass comes down with
    dZ[L] = H J V: about the cost of one forward and one backward pass, and no matrix G.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> _, cache = dp.forward(params, 2 * jnp.ones((3, 5)))
    >>> along_b = (dp.Layer(jnp.zeros((2, 3)), jnp.ones((2, 1)), params[0].activation),)
    >>> dp.gauss_newton_product(cache, along_b)[0].W  # the mean of x 1: 2 everywhere
    Array([[2., 2., 2.],
           [2., 2., 2.]], dtype=float32)

    Args:
        cache: what `forward` gave.
        V: a direction, like `params`.
        weights: (m,), one an example: a mean over w_i / sum_i w_i.

    Returns:
        Layers like `params`, in their type.

    Raises:
        ValueError: the output is not one of the four with a name of their own, or the weights do
            not fit.
        TypeError: the weights are not real numbers, or `cache` is no cache.

    Source:
        Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent.
    """
    times_H = _of_output(cache, TIMES_H, "the Gauss-Newton product")
    dZ_L = times_H(cache.A[-1], tangent(cache, V))
    return gradients(cache, _signals_from(cache, dZ_L), weights)


def gauss_newton_form(
    cache: Cache, directions: Sequence[Params], weights: ArrayLike | None = None
) -> Array:
    """V_a^T G V_b for each pair of directions, without a backward pass: (k, k) for k of them."""
    times_H = _of_output(cache, TIMES_H, "the Gauss-Newton product")
    R = jnp.stack([tangent(cache, V) for V in directions])  # (k, n_L, m)
    w = jnp.ones(R.shape[-1], R.dtype)
    w = w if weights is None else example_weights(weights, R.shape[-1], R.dtype)
    HR = jax.vmap(partial(times_H, cache.A[-1]))(R) * (w / sum_of_weights(w))[None, None, :]
    return jnp.einsum("aki,bki->ab", R, HR)


def _signals_from(cache: Cache, dZ_L: Array) -> tuple[Array, ...]:
    """The error signals that come of dZ[L] as it is given, for an output with dZ[L] = A[L] - Y."""
    cache = replace(cache, A=(*cache.A[:-1], dZ_L))
    return error_signals(cache, jnp.zeros_like(dZ_L))


def _one_hot_draw(key: Array, A: Array) -> Array:
    chosen = jax.random.categorical(key, jnp.log(A), axis=-2)
    return jax.nn.one_hot(chosen, A.shape[-2], axis=-2)


def _softmax_root(A: Array, unit: Array) -> Array:
    """H = diag(A) - A A^T = sum_k A_k (e_k - A) (e_k - A)^T."""
    return jnp.sqrt(jnp.sum(unit * A, axis=-2, keepdims=True)) * (unit - A)


# By the output's name: a draw from p(Y | A); the column of S that belongs to a unit, where S S^T is
# H, the second derivative of the loss by Z[L]; and H R.
DRAWS: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": _one_hot_draw,
    "sigmoid": lambda key, A: jax.random.bernoulli(key, A),
    "identity": lambda key, A: A + jax.random.normal(key, A.shape, A.dtype),
    "exp": lambda key, A: jax.random.poisson(key, A),
}
ROOTS: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": _softmax_root,
    "sigmoid": lambda A, unit: jnp.sqrt(A * (1 - A)) * unit,
    "identity": lambda A, unit: jnp.ones_like(A) * unit,
    "exp": lambda A, unit: jnp.sqrt(A) * unit,
}
TIMES_H: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": lambda A, R: A * (R - jnp.sum(A * R, axis=-2, keepdims=True)),
    "sigmoid": lambda A, R: A * (1 - A) * R,
    "identity": lambda A, R: R,
    "exp": lambda A, R: A * R,
}


def _of_output(cache: Cache, table: Mapping[str, Entry], what: str) -> Entry:
    check_cache(cache)
    output = output_of(cache.params)
    if output != OUTPUTS.get(output.name):
        raise ValueError(
            f"{what} must be of a network with output {', '.join(table)}, got {output.name}"
        )
    return table[output.name]


def _mean_outer_product(P: Array, share: Array) -> Array:
    """Sum_i share_i p_i p_i^T, for the columns p_i of P."""
    return product(P * share[None, :], P.mT)


def _with_one(A: Array) -> Array:
    """A with a row of ones below it, which b is multiplied by."""
    return jnp.concatenate([A, jnp.ones_like(A[:1])])
