"""The Gauss-Newton matrix of each layer in the eigenbasis of its Kronecker factors (EK-FAC).

A layer's block of the Gauss-Newton matrix G = 1/m sum_i J_i^T H_i J_i is close to the Kronecker
product of two small matrices, the means of a a^T and of dz dz^T. Their eigenvectors U_A and U_dZ
make a basis in which the block is nearly diagonal. Its best diagonal there is not the product of
the eigenvalues but the mean square of the gradients. No gradient is formed for it: in this basis an
example's gradient is still an outer product of two columns,

    (U_dZ^T dz) (U_A^T a)^T        values = 1/m sum_i sum_s (U_dZ^T dz_is)^2 ((U_A^T a_i)^2)^T

where s runs over the columns of S_i, with S_i S_i^T = H_i, and dz_is follows from dZ[L] = s. This
is exact: no targets are sampled.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import finite_inputs
from deepprop._arithmetic import product, wide
from deepprop._checks import (
    example_weights,
    sum_of_weights,
    whole_number,
)
from deepprop.layers import Cache, Layer, Params
from deepprop.signals.fisher import Factors, with_one
from deepprop.signals.gauss_newton import Signals, sum_over_roots
from deepprop.signals.over_batches import sum_over_batches
from deepprop.walk import inputs_of_layers, layer_map, recomputed, up

Tree = TypeVar("Tree")
WHAT = "the Gauss-Newton matrix"


class Curvature(NamedTuple):
    """One layer's block of the Gauss-Newton matrix, diagonal in a basis of outer products.

    Attributes:
        A: (n_{l-1} + 1, n_{l-1} + 1), the eigenvectors of the mean of a a^T as columns, where a is
            a_i[l-1] followed by a 1 for b.
        dZ: (n_l, n_l), the eigenvectors of the mean of dz_i[l] dz_i[l]^T as columns.
        values: (n_l, n_{l-1} + 1), the entry for column k of dZ and column q of A at [k, q].
    """

    A: Array
    dZ: Array
    values: Array


def ekfac(
    params: Params,
    X: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    batch_size: int = 1024,
) -> tuple[Curvature, ...]:
    """Approximate each layer's block of the Gauss-Newton matrix in its Kronecker eigenbasis.

    In that basis only the diagonal is kept, which is exact. This reads the examples twice, first
    for the Kronecker factors and then for the diagonal, with n_L backward passes each time. For the
    four canonical outputs the matrix is the Fisher matrix.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> X = jax.random.normal(jax.random.key(1), (3, 50))
    >>> [c.values.shape for c in dp.ekfac(params, X)]
    [(4, 4), (2, 5)]

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        weights: (m,), one per example, for means weighted by w_i / sum_i w_i.
        batch_size: examples at a time; it changes the memory and the speed, not the result.

    Returns:
        A `Curvature` for layers 1 to L, in float32 or wider; for a stack with a leading axis.

    Raises:
        ValueError: the output is not one of the four canonical ones, or X or the weights do not
            fit.
        TypeError: X or the weights are not real numbers, or `params` are not layers.

    Source:
        George et al. 2018, Fast Approximate Natural Gradient Descent in a Kronecker-factored
        Eigenbasis, arXiv:1806.03884.
    """
    A_0 = finite_inputs(params, X)
    m, dtype = A_0.shape[1], wide(A_0.dtype)
    w = jnp.ones(m, dtype) if weights is None else example_weights(weights, m, dtype)
    size = whole_number("batch_size", batch_size)
    curvature: tuple[Curvature, ...] = _ekfac(params, A_0, w, size=size)
    return curvature


@partial(jax.jit, static_argnames="size")
def _ekfac(params: Params, A_0: Array, w: Array, *, size: int) -> tuple[Curvature, ...]:
    """Compute the curvature from arguments that were checked."""
    share = w / sum_of_weights(w)

    def mean(f: Callable[[Cache, Array], Tree]) -> Tree:
        """Return the sum over batches of f(cache, the examples' shares)."""
        return sum_over_batches(lambda w, A_0: f(up(params, A_0), w), size, share, A_0)

    factors = mean(gauss_newton_factors)
    bases = tuple(layer_map(_eigenvectors, params, factors))
    values = mean(lambda cache, share: squares_in_basis(cache, bases, share))
    return tuple(Curvature(basis.A, basis.dZ, v) for basis, v in zip(bases, values, strict=True))


def gauss_newton_factors(cache: Cache, share: Array) -> tuple[Factors, ...]:
    """Compute the sums of share_i a_i a_i^T, and of share_i dz_is dz_is^T over i and s."""

    def outer(_: Layer, P: Array) -> Array:
        P = P.astype(share.dtype)
        return product(P * share[None, :], P.mT)

    def of_column(dZ: Signals) -> list[Array]:
        return list(layer_map(outer, cache.params, dZ))

    A = layer_map(_with_one, cache.params, inputs_of_layers(recomputed(cache)))
    pairs = zip(
        layer_map(outer, cache.params, A), sum_over_roots(cache, of_column, WHAT), strict=True
    )
    return tuple(starmap(Factors, pairs))


def squares_in_basis(cache: Cache, bases: tuple[Factors, ...], share: Array) -> tuple[Array, ...]:
    """Sum share_i (U_dZ^T dz_is)^2 ((U_A^T a_i)^2)^T over i and s, for each layer."""

    def squared(_: Layer, dZ: Array, basis: Factors) -> Array:
        return jnp.square(product(basis.dZ.mT, dZ.astype(share.dtype)))

    def of_column(dZ: Signals) -> list[Array]:
        return list(layer_map(squared, cache.params, dZ, bases))

    def of_layer(_: Layer, u: Array, A: Array, basis: Factors) -> Array:
        v = product(basis.A.mT, with_one(A.astype(share.dtype)))
        return product(u * share[None, :], jnp.square(v).mT)

    u = sum_over_roots(cache, of_column, WHAT)  # over s: v does not depend on it
    A = inputs_of_layers(recomputed(cache))
    return tuple(layer_map(of_layer, cache.params, u, A, bases))


def check_curvature(params: Params, curvature: Sequence[Curvature]) -> None:
    """Raise unless it is a `Curvature` for each layer, of its shape.

    Raises:
        ValueError: it belongs to another network.
        TypeError: it is not a sequence of `Curvature`.
    """
    if not isinstance(curvature, tuple | list) or not all(
        isinstance(c, Curvature) for c in curvature
    ):
        raise TypeError("curvature must be the result of dp.ekfac, a Curvature for each layer")
    due = [(*W.shape[:-1], W.shape[-1] + 1) for W in (layer.W for layer in params)]
    found = [tuple(c.values.shape) for c in curvature]
    if found != due:
        raise ValueError(f"curvature must have values of shapes {due}, got {found}")


def in_basis(basis: Factors | Curvature, dZ: Array, A: Array) -> tuple[Array, Array]:
    """Return U_dZ^T dZ (n_l, m) and U_A^T [A; 1] (n_{l-1} + 1, m): the same gradients, rotated."""
    return product(basis.dZ.mT, dZ), product(basis.A.mT, with_one(A))


def _with_one(_: Layer, A: Array) -> Array:
    return with_one(A)


def _eigenvectors(_: Layer, factors: Factors) -> Factors:
    return Factors(*(jnp.linalg.eigh(P)[1] for P in factors))
