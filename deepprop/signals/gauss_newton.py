"""The Gauss-Newton matrix: its diagonal, and its product with a direction, without the matrix.

It is 1/m sum_i J_i^T H_i J_i, where J_i is the derivative of example i's Z[L] with respect to the
parameters, and H_i the second derivative of its loss with respect to Z[L]. For the four canonical
outputs it is the Fisher matrix.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache, check_like
from deepprop._arithmetic import product
from deepprop._checks import example_weights, sum_of_weights
from deepprop.backprop import error_signals, gradients
from deepprop.entry import along_entry, entering
from deepprop.equations import slope
from deepprop.layers import Cache, Layer, Params, type_of_dZ
from deepprop.signals.fisher import entry_for_output
from deepprop.signals.moments import squared_gradients
from deepprop.walk import below_layers, kept_by, layer_scan, recomputed

Tree = TypeVar("Tree")
Signals = tuple[Array, ...]


def gauss_newton_diagonal(cache: Cache, weights: ArrayLike | None = None) -> Params:
    """Compute the diagonal of the Gauss-Newton matrix 1/m sum_i J_i^T H_i J_i, exactly.

    J_i is the derivative of example i's Z[L] with respect to the parameters, and H_i the second
    derivative of its loss with respect to Z[L]. Write H_i = S S^T; the diagonal is the sum, over
    the columns s of S, of the squared gradients that follow from dZ[L] = s. This takes n_L backward
    passes. `squared_gradients` with `sampled_targets` estimates the same in one.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> _, cache = dp.forward(params, 2 * jnp.ones((3, 5)))
    >>> dp.gauss_newton_diagonal(cache)[0].W[0]  # J is linear in W: the mean of X^2
    Array([4., 4., 4.], dtype=float32)

    Args:
        cache: the cache returned by `forward`.
        weights: (m,), one per example, for means weighted by w_i / sum_i w_i.

    Returns:
        Layers like `params`, in float32 or wider.

    Raises:
        ValueError: the output is not one of the four canonical ones, or the weights do not fit.
        TypeError: the weights are not real numbers, or `cache` is not a cache.

    Source:
        Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent;
        Dangel et al. 2020, BackPACK, arXiv:1912.10985.
    """

    def of_column(dZ: Signals) -> Params:
        return squared_gradients(cache, dZ, weights)

    return sum_over_roots(cache, of_column, "the Gauss-Newton diagonal")


def sum_over_roots(cache: Cache, f: Callable[[Signals], Tree], what: str) -> Tree:
    """Sum f(dZ) over the columns s of S, where S S^T = H and dZ follows from dZ[L] = s.

    Column i of the dZ[L] that starts a pass is a column of S_i; there are n_L passes.

    Args:
        cache: the cache returned by `forward`.
        f: a function of the error signals.
        what: is computed, for the message.

    Raises:
        ValueError: the output is not one of the four canonical ones.
        TypeError: `cache` is not a cache.
    """
    root = entry_for_output(cache, ROOTS, what)
    A_L = cache.A[-1]

    def of_column(unit: Array) -> Tree:
        return f(error_signals(cache, dZ=root(A_L, unit[:, None])))  # dZ[L] = s

    units = jnp.eye(len(A_L), dtype=A_L.dtype)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_column, units[0]))
    total: Tree
    total, _ = jax.lax.scan(
        lambda total, unit: (jax.tree.map(jnp.add, total, of_column(unit)), None), zero, units
    )
    return total


def tangent(cache: Cache, V: Params) -> Array:
    """Compute the derivative of Z[L] along V, layer by layer upwards: J_i v in column i.

        RZ[l] = V[l] A[l-1] + v[l] + W[l] RA[l-1]        RA[l] = g[l]'(Z[l]) * RZ[l]

    A residual layer adds RA[l-1] to RA[l]. If a layer normalises or drops what enters it, U[l] and
    RU[l] take the places of A[l-1] and RA[l-1].

    Args:
        cache: the cache returned by `forward`.
        V: a direction, like `params`: V[l] for W[l] and v[l] for b[l].

    Returns:
        RZ[L] (n_L, m), in float32 or wider.

    Source:
        Pearlmutter 1994, Fast Exact Multiplication by the Hessian (the R operator).
    """
    check_cache(cache)
    check_like("V", V, cache.params)
    cache = recomputed(cache)
    RA = jnp.zeros(cache.A[0].shape, type_of_dZ(cache.params[0]))
    entries = list(zip(V, below_layers(cache), kept_by(cache), strict=True))
    hidden = zip(*entries[:-1], strict=True) if entries[:-1] else ((), (), ())
    RA = layer_scan(_tangent_above, RA, cache.params[:-1], *hidden, cache.Z[:-1], cache.A[1:-1])
    return _tangent_at(RA, cache.params[-1], *entries[-1], cache.Z[-1].dtype)


def _tangent_at(
    RA: Array, layer: Layer, v: Layer, A: Array, kept: Array | None, dtype: np.dtype
) -> Array:
    """RZ[l] = V[l] U[l] + v[l] + W[l] RU[l], from A[l-1] and RA[l-1]."""
    times = partial(product, dtype=dtype, factors=layer.compute_dtype)
    U, RU = entering(layer, A, kept), along_entry(layer, RA, A, kept)
    at: Array = times(v.W, U) + v.b.astype(dtype) + times(layer.W, RU)
    return at


def _tangent_above(
    RA: Array, layer: Layer, v: Layer, A_below: Array, kept: Array | None, Z: Array, A: Array
) -> Array:
    """RA[l], in the dtype of dZ[l]: V may differ from A in size as much as a gradient does."""
    RZ = _tangent_at(RA, layer, v, A_below, kept, RA.dtype)
    through = slope(layer, Z, A).astype(RA.dtype) * RZ
    above: Array = RA + through if layer.residual else through
    return above


def gauss_newton_product(cache: Cache, V: Params, weights: ArrayLike | None = None) -> Params:
    """Compute G V, the Gauss-Newton matrix times a direction: 1/m sum_i J_i^T H_i J_i v.

    A forward pass computes J_i v, H_i multiplies it, and a backward pass starts from
    dZ[L] = H_i J_i v. This costs about one forward and one backward pass; G is never made.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> _, cache = dp.forward(params, 2 * jnp.ones((3, 5)))
    >>> along_b = (dp.Layer(jnp.zeros((2, 3)), jnp.ones((2, 1)), params[0].activation),)
    >>> dp.gauss_newton_product(cache, along_b)[0].W  # the mean of x 1: 2 everywhere
    Array([[2., 2., 2.],
           [2., 2., 2.]], dtype=float32)

    Args:
        cache: the cache returned by `forward`.
        V: a direction, like `params`.
        weights: (m,), one per example, for means weighted by w_i / sum_i w_i.

    Returns:
        Layers like `params`, in their dtype.

    Raises:
        ValueError: the output is not one of the four canonical ones, V belongs to another network,
            or the weights do not fit.
        TypeError: V is not layers, the weights are not real numbers, or `cache` is not a cache.

    Source:
        Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent.
    """
    times_H = entry_for_output(cache, TIMES_H, "the Gauss-Newton product")
    dZ_L = times_H(cache.A[-1], tangent(cache, V))
    return gradients(cache, error_signals(cache, dZ=dZ_L), weights)


def gauss_newton_form(
    cache: Cache, directions: Sequence[Params], weights: ArrayLike | None = None
) -> Array:
    """Compute V_a^T G V_b for each pair of k directions, (k, k), without a backward pass."""
    times_H = entry_for_output(cache, TIMES_H, "the Gauss-Newton product")
    R = jnp.stack([tangent(cache, V) for V in directions])  # (k, n_L, m)
    w = jnp.ones(R.shape[-1], R.dtype)
    w = w if weights is None else example_weights(weights, R.shape[-1], R.dtype)
    HR = jax.vmap(partial(times_H, cache.A[-1]))(R) * (w / sum_of_weights(w))[None, None, :]
    return jnp.einsum("aki,bki->ab", R, HR)


def _softmax_root(A: Array, unit: Array) -> Array:
    """H = diag(A) - A A^T = sum_k A_k (e_k - A) (e_k - A)^T."""
    return jnp.sqrt(jnp.sum(unit * A, axis=-2, keepdims=True)) * (unit - A)


# By the name of the output: the column of S that belongs to a unit, where S S^T = H; and H R.
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
