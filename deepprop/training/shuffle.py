"""A random permutation without a sort; a sort takes as long as many steps of a small network.

The numbers are put on a grid of a rows and b columns. Each round rotates every column by a random
amount, and then every row. This is a Feistel network with random functions, of which Luby and
Rackoff (1988) proved that a few rounds mix well; chi-square tests check ours. A grid has a b >= m
places, so a number may end at m or above: it then goes through the rounds again until it is below
(cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). Mitchell et al.
shuffle this way on GPUs (Bandwidth-Optimal Random Shuffling, 2022).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

ROUNDS = 6


def random_order(key: Array, m: int) -> Array:
    """Return the numbers 0 to m - 1 in a random order.

    >>> import jax
    >>> sorted(random_order(jax.random.key(0), 7).tolist())
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        key: a JAX random key.
        m: the number of examples.

    Returns:
        (m,) integers.
    """
    rows = math.isqrt(m - 1) + 1
    columns = -(-m // rows)
    turns = jax.random.bits(key, (ROUNDS, columns + rows), jnp.uint32)
    a, b = jnp.uint32(rows), jnp.uint32(columns)

    def turn(place: tuple[Array, Array], by: Array) -> tuple[tuple[Array, Array], None]:
        row, column = place
        row = (row + by[column] % a) % a
        column = (column + by[b + row] % b) % b
        return (row, column), None

    def on(walk: tuple[Array, Array]) -> tuple[Array, Array]:
        number, inside = walk
        (row, column), _ = jax.lax.scan(turn, (number // b, number % b), turns)
        number = jnp.where(inside, number, row * b + column)
        return number, number < m

    begin = jnp.arange(m, dtype=jnp.uint32), jnp.zeros(m, bool)
    number, _ = jax.lax.while_loop(lambda walk: ~jnp.all(walk[1]), on, begin)
    return number


def minibatches(key: Array, m: int, batch_size: int, shards: int = 1) -> tuple[Array, Array]:
    """Return which examples are in each minibatch of an epoch: each once, in a random order.

    The last minibatch is filled with examples that do not count.

    >>> import jax
    >>> index, counted = minibatches(jax.random.key(0), 7, 3)
    >>> index.shape, sorted(index[counted].tolist())
    ((3, 3), [0, 1, 2, 3, 4, 5, 6])

    Args:
        key: a JAX random key.
        m: the number of examples.
        batch_size: examples per minibatch.
        shards: parts of m / shards examples, each shuffled by itself; a minibatch takes
            batch_size / shards of each.

    Returns:
        The indices of the examples, (steps, batch_size), or with several shards
        (steps, shards, batch_size / shards), each relative to its shard; and whether each example
        counts, (steps, batch_size).
    """
    m, size = m // shards, batch_size // shards
    steps = -(-m // size)
    if shards == 1:
        order = random_order(key, m)[None]
    else:
        order = jax.vmap(random_order, in_axes=(0, None))(jax.random.split(key, shards), m)
    if lacking := steps * size - m:
        order = jnp.concatenate([order, order[:, :lacking]], axis=1)
    index = order.reshape(shards, steps, size).swapaxes(0, 1)
    counted = jnp.broadcast_to((jnp.arange(steps * size) < m).reshape(steps, 1, size), index.shape)
    index = index[:, 0] if shards == 1 else index
    return index, counted.reshape(steps, shards * size)


def gathered(P: Array, index: Array) -> Array:
    """Return the rows of P (m, ...) of one minibatch, given its indices from `minibatches`."""
    if index.ndim == 1:
        return P[index]
    parts = P.reshape(len(index), -1, *P.shape[1:])
    rows: Array = jax.vmap(lambda part, numbers: part[numbers])(parts, index)
    return rows.reshape(-1, *P.shape[1:])
