"""A random permutation without sorting; a sort costs as much as many steps of a small network.

`jax.random.permutation` sorts random numbers. We compute the new position of each number directly,
all in parallel. The numbers 0 to m - 1 are laid out on a grid of a rows and b columns. Each round
rotates every column by a random amount, and then every row. This is a Feistel network with random
functions, and Luby and Rackoff (1988) proved that a few rounds of it mix well; chi-square tests
check ours. Rotations are reversible, so the result is a permutation of the grid.

The grid has a b >= m places, so a number may land at m or above. It then goes through the rounds
again until it lands below m (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite
Domains, 2002). On GPUs, Mitchell et al. shuffle this way (Bandwidth-Optimal Random Shuffling,
2022).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

ROUNDS = 6


def random_order(key: Array, m: int | Array, length: int | None = None) -> Array:
    """Return the numbers 0 to m - 1 in a random order.

    >>> import jax
    >>> sorted(random_order(jax.random.key(0), 7).tolist())
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        key: a JAX random key.
        m: the number of examples. With `length` it may be traced, and the order is the same.
        length: of the result, at least m; None for m.

    Returns:
        Each of 0 to m - 1 once, in the first m entries; after them m, m + 1, ...
    """
    length = int(m) if length is None else length
    m = jnp.asarray(m, jnp.uint32)
    a = _root(m)  # rows
    b = (m + a - 1) // a  # columns
    most = 2 * (math.isqrt(length - 1) + 1)  # a + b is not larger
    # One draw in a row, so that its first entries are the same for any length.
    bits = jax.random.bits(key, (ROUNDS * most,), jnp.uint32)
    rounds, places = (jnp.arange(n, dtype=jnp.uint32) for n in (ROUNDS, most))
    turns = bits[rounds[:, None] * (a + b) + places[None]]

    def turn(place: tuple[Array, Array], by: Array) -> tuple[tuple[Array, Array], None]:
        row, column = place
        row = _wrapped(row + (by % a)[column], a)
        column = _wrapped(column + (by % b)[b + row], b)
        return (row, column), None

    def all_rounds(walk: tuple[Array, Array]) -> tuple[Array, Array]:
        number, inside = walk
        (row, column), _ = jax.lax.scan(turn, (number // b, number % b), turns)
        number = jnp.where(inside, number, row * b + column)
        return number, inside | (number < m)

    number = jnp.arange(length, dtype=jnp.uint32)
    start = number, number >= m  # those stay where they are
    number, _ = jax.lax.while_loop(lambda walk: ~jnp.all(walk[1]), all_rounds, start)
    return number


def _root(m: Array) -> Array:
    """Return the root of m, rounded up, exactly: float32 may be one off."""
    root = jnp.sqrt((m - 1).astype(jnp.float32)).astype(jnp.uint32)
    root -= (root * root > m - 1).astype(jnp.uint32)
    root += ((root + 1) * (root + 1) <= m - 1).astype(jnp.uint32)
    return root + 1


def _wrapped(place: Array, size: Array) -> Array:
    """Return place % size, for place < 2 size."""
    return jnp.where(place < size, place, place - size)


def minibatches(
    key: Array, m: int | Array, batch_size: int, shards: int = 1, length: int | None = None
) -> tuple[Array, Array]:
    """Return which examples are in each minibatch of an epoch: each once, in a random order.

    If batch_size does not divide m, the last minibatch is filled with examples that don't count.

    >>> import jax
    >>> index, counted = minibatches(jax.random.key(0), 7, 3)
    >>> index.shape, sorted(index[counted].tolist())
    ((3, 3), [0, 1, 2, 3, 4, 5, 6])

    Args:
        key: a JAX random key.
        m: the number of examples.
        batch_size: examples per minibatch.
        shards: parts of m / shards examples, which are shuffled separately. A minibatch takes
            batch_size / shards examples from each.
        length: the places in all minibatches, if m is traced; the minibatches are the same.

    Returns:
        The indices of the examples, (steps, batch_size); with several shards
        (steps, shards, batch_size / shards), relative to the start of the shard. And whether each
        example counts, (steps, batch_size).
    """
    m, size = m // shards, batch_size // shards
    steps = -(-int(m if length is None else length) // size)
    place = jnp.arange(steps * size, dtype=jnp.int32)
    ordered = partial(random_order, m=m, length=steps * size)
    if shards == 1:  # noqa: SIM108 - a key by itself, as rbg keys draw differently under vmap
        order = ordered(key)[None]
    else:
        order = jax.vmap(ordered)(jax.random.split(key, shards))
    if length is not None or steps * size > m:
        order = order[:, jnp.where(place < m, place, place - m)]  # then the first again
    index = order.reshape(shards, steps, size).swapaxes(0, 1)
    counted = jnp.broadcast_to((place < m).reshape(steps, 1, size), index.shape)
    index = index[:, 0] if shards == 1 else index
    return index, counted.reshape(steps, shards * size)


def gathered(P: Array, index: Array) -> Array:
    """Return the rows of P (m, ...) that belong to a minibatch, given its entry of the indices.

    Before jax 0.12, XLA's CPU backend has no gather for numbers of two bytes: in every epoch it
    would widen all of P. There they are gathered as integers: a step of 784-256-10 at batch 2048
    took 4.7 instead of 6.5 ms. From 0.12 on, that takes longer (4.5 instead of 3.5 ms).
    """
    widened = P.dtype.itemsize == 2 and P.dtype != jnp.uint16 and jax.__version_info__ < (0, 12)
    if widened:
        bits = gathered(lax.bitcast_convert_type(P, jnp.uint16), index)
        narrow: Array = lax.bitcast_convert_type(bits, P.dtype)
        return narrow
    if index.ndim == 1:
        return P[index]
    parts = P.reshape(len(index), -1, *P.shape[1:])
    rows: Array = jax.vmap(lambda part, numbers: part[numbers])(parts, index)
    return rows.reshape(-1, *P.shape[1:])
