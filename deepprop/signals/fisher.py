"""The Fisher matrix: Kronecker factors of each layer's block, and targets drawn for it.

The Fisher matrix is the mean of g_i g_i^T over examples *and over targets drawn from the network's
own predictions*. The empirical Fisher uses the data's targets instead, and is a different matrix
(Kunstner et al. 2019, arXiv:1905.12558). The functions here take dZ, and dZ says which one is
meant:

    dZ = error_signals(cache, Y)                            the empirical Fisher
    dZ = error_signals(cache, sampled_targets(key, cache))  the Fisher, by sampling

For the four canonical outputs the Fisher matrix is the Gauss-Newton matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache, output_of
from deepprop._arithmetic import product
from deepprop._checks import check_key, example_weights, sum_of_weights
from deepprop.costs import OUTPUTS
from deepprop.layers import Cache, Layer
from deepprop.signals.per_example import columns
from deepprop.walk import layer_map

Entry = TypeVar("Entry")
MANY = 1e6


class Factors(NamedTuple):
    """The two factors whose Kronecker product approximates one layer's block of the Fisher matrix.

    Attributes:
        A: (n_{l-1} + 1, n_{l-1} + 1), the mean of a a^T, where a is a_i[l-1] followed by a 1 for b.
        dZ: (n_l, n_l), the mean of dz_i[l] dz_i[l]^T.
    """

    A: Array
    dZ: Array


def kfac_factors(
    cache: Cache, dZ: Sequence[Array], weights: ArrayLike | None = None
) -> tuple[Factors, ...]:
    """Compute each layer's Kronecker factors: 1/m A[l-1] A[l-1]^T, with b's 1, and 1/m dZ dZ^T.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dZ = dp.error_signals(cache, dp.sampled_targets(jax.random.key(1), cache))
    >>> [(f.A.shape, f.dZ.shape) for f in dp.kfac_factors(cache, dZ)]
    [((4, 4), (4, 4)), ((5, 5), (2, 2))]

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals: of `sampled_targets` for the Fisher matrix, of the data's targets for
            the empirical Fisher.
        weights: (m,), one per example, for means weighted by w_i / sum_i w_i.

    Returns:
        `Factors` for layers 1 to L, in float32 or wider; for a stack with a leading axis.

    Raises:
        ValueError: dZ belongs to another network or batch, or the weights do not fit.
        TypeError: the weights are not real numbers, or `cache` is not a cache.

    Source:
        Martens and Grosse 2015, Optimizing Neural Networks with Kronecker-factored Approximate
        Curvature, section 3, arXiv:1503.05671.
    """
    layers, dZ, A = columns(cache, dZ)
    m, dtype = dZ[0].shape[-1], dZ[0].dtype
    w = jnp.ones(m, dtype) if weights is None else example_weights(weights, m, dtype)
    mean = partial(_mean_outer_product, share=w / sum_of_weights(w))

    def factors(_: Layer, dZ: Array, A: Array) -> Factors:
        return Factors(mean(with_one(A)), mean(dZ))

    return tuple(layer_map(factors, layers, dZ, A))


def sampled_targets(key: Array, cache: Cache) -> Array:
    """Draw targets from the network's own prediction: Y ~ p(Y | A[L]), one draw per example.

    softmax: one class; sigmoid: 0 or 1 for each unit; identity: normal with mean A[L] and variance
    1; exp: Poisson with mean A[L]. The mean of Y is A[L], so the mean of dZ over draws is 0.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dp.sampled_targets(jax.random.key(1), cache).sum(axis=0)
    Array([1., 1., 1., 1., 1.], dtype=float32)

    Args:
        key: a JAX random key.
        cache: the cache returned by `forward`.

    Returns:
        (n_L, m), in the dtype of A[L].

    Raises:
        ValueError: the output is not one of these four; its cost defines no distribution.
        TypeError: `key` is not a random key, or `cache` is not a cache.
    """
    check_key(key)
    A, draw = cache.A[-1], entry_for_output(cache, DRAWS, "sampled targets")
    drawn: Array = draw(key, A).astype(A.dtype)
    return drawn


def _one_hot_draw(key: Array, A: Array) -> Array:
    chosen = jax.random.categorical(key, jnp.log(A), axis=-2)
    return jax.nn.one_hot(chosen, A.shape[-2], axis=-2)


def _count_draw(key: Array, A: Array) -> Array:
    """Draw from Poisson; above a million from its normal limit: jax.random.poisson uses int32."""
    few = jax.random.poisson(key, jnp.minimum(A, MANY)).astype(A.dtype)
    many = jnp.round(A + jnp.sqrt(A) * jax.random.normal(key, A.shape, A.dtype))
    return jnp.where(A < MANY, few, many)


# By the name of the output: a draw from p(Y | A).
DRAWS: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": _one_hot_draw,
    "sigmoid": lambda key, A: jax.random.bernoulli(key, A),
    "identity": lambda key, A: A + jax.random.normal(key, A.shape, A.dtype),
    "exp": _count_draw,
}


def entry_for_output(cache: Cache, table: Mapping[str, Entry], what: str) -> Entry:
    """Return the table's entry for the network's output.

    Raises:
        ValueError: it is another output; the message names `what`.
        TypeError: `cache` is not a cache.
    """
    check_cache(cache)
    output = output_of(cache.params)
    if output.name not in table or output != OUTPUTS[output.name]:
        names = ", ".join(table)
        raise ValueError(f"for {what} the network must have output {names}, got {output.name}")
    return table[output.name]


def _mean_outer_product(P: Array, share: Array) -> Array:
    """Return sum_i share_i p_i p_i^T, for the columns p_i of P."""
    return product(P * share[None, :], P.mT)


def with_one(A: Array) -> Array:
    """Return A with a row of ones below it, the input of b."""
    return jnp.concatenate([A, jnp.ones_like(A[:1])])
