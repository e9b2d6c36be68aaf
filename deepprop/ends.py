"""The two ends of the backward pass: where it starts, at layer L, and where it ends, at dA[0].

It starts from the targets Y of the network's own cost, or from a dA[L] or dZ[L] that the caller
brings. Column i is always the derivative of example i's own loss, without 1/m. For a loss J that
couples examples, dA[L] is m times dJ/dA[L]: the gradients divide by m.

It ends at dA[0] = W[1]^T dZ[1], the derivative of each example's loss with respect to its inputs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_cache, signals, targets
from deepprop._checks import check_shape, real_array
from deepprop.equations import output_signal, output_signal_from
from deepprop.layers import Cache, type_of_dZ
from deepprop.walk import Start, below_residual_layers, down


def start_from(
    cache: Cache,
    Y: ArrayLike | None = None,
    dA: ArrayLike | None = None,
    dZ: ArrayLike | None = None,
) -> Start:
    """Return what computes dZ[L] from the one of Y, dA[L] and dZ[L] that is given.

    Raises:
        ValueError: a shape does not fit the cache.
        TypeError: not exactly one is given, or it is not real numbers.
    """
    check_cache(cache)
    given = [name for name, value in (("Y", Y), ("dA", dA), ("dZ", dZ)) if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise TypeError(f"the backward pass starts from one of Y, dA and dZ, got {got}")
    if Y is not None:
        Y_L = targets(cache, Y)
        return lambda layer, Z, A: output_signal(layer, Z, A, Y_L)
    if dA is not None:
        dA_L = _of_last_layer(cache, "dA", dA, cache.A[-1].dtype)
        return lambda layer, Z, A: output_signal_from(layer, dA_L, Z, A)
    dZ_L = _of_last_layer(cache, "dZ", dZ, type_of_dZ(cache.params[-1]))
    return lambda layer, Z, A: dZ_L


def _of_last_layer(cache: Cache, name: str, value: ArrayLike | None, dtype: jnp.dtype) -> Array:
    array = real_array(name, value, dtype)
    check_shape(name, array.shape, *cache.A[-1].shape)
    return array


def input_signal(cache: Cache, dZ: Sequence[ArrayLike]) -> Array:
    """Compute dA[0] = W[1]^T dZ[1], the derivative of each example's own loss by its inputs.

    For residual layers at the bottom of the network the derivative also passes around them:
    dA[0] = W[1]^T dZ[1] + dA[1], and so on up to the first layer that is not residual.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> dp.input_signal(cache, dp.error_signals(cache, dA=jnp.ones((2, 5)))).shape
    (3, 5)

    Args:
        cache: the cache returned by `forward`.
        dZ: the error signals of that cache, L arrays (n_l, m), without 1/m.

    Returns:
        dA[0] (n_0, m), in the dtype of dZ[1]; column i is the derivative of example i's own loss
        with respect to x_i, without 1/m. So dJ/dX is dA[0] / m.

    Raises:
        ValueError: dZ belongs to another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """
    return below_residual_layers(cache, signals(cache, dZ))


def jacobian(cache: Cache, of: str = "A") -> Array:
    """Compute the derivative of A[L] or Z[L] with respect to the inputs, for every example.

    One walk down per output unit k: from dA[L] = e_k, or dZ[L] = e_k, to dA[0].

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> A, cache = dp.forward(params, jnp.ones((3, 5)))
    >>> J = dp.jacobian(cache)
    >>> J.shape, bool(jnp.allclose(J[0], params[0].W))  # a linear network
    ((5, 2, 3), True)

    Args:
        cache: the cache returned by `forward`.
        of: "A" for A[L], "Z" for Z[L].

    Returns:
        (m, n_L, n_0), in the dtype of dZ.

    Raises:
        ValueError: `of` is neither.
        TypeError: `cache` is not a cache.
    """
    units = each_unit(cache, of)

    def of_unit(e: Array) -> Array:
        return down(cache, start_from(cache, **{f"d{of}": e}), _nothing, to_inputs=True)[1].mT

    return jnp.moveaxis(jax.vmap(of_unit)(units), 0, 1)


def each_unit(cache: Cache, of: str) -> Array:
    """Return e_k in every column, for each k: (n_L, n_L, m).

    Raises:
        ValueError: `of` is neither "A" nor "Z".
        TypeError: `cache` is not a cache.
    """
    check_cache(cache)
    if of not in ("A", "Z"):
        raise ValueError(f'of must be "A" or "Z", got {of!r}')
    n_L, m = cache.A[-1].shape
    e = jnp.eye(n_L, dtype=cache.A[-1].dtype)
    return jnp.broadcast_to(e[:, :, None], (n_L, n_L, m))


def _nothing(*_: Any) -> None:
    """Visit a layer, and keep nothing of it."""
