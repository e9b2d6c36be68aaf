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
        (m,), each of 0 to m - 1 once.
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

    def all_rounds(walk: tuple[Array, Array]) -> tuple[Array, Array]:
        number, inside = walk
        (row, column), _ = jax.lax.scan(turn, (number // b, number % b), turns)
        number = jnp.where(inside, number, row * b + column)
        return number, number < m

    start = jnp.arange(m, dtype=jnp.uint32), jnp.zeros(m, bool)
    number, _ = jax.lax.while_loop(lambda walk: ~jnp.all(walk[1]), all_rounds, start)
    return number


def minibatches(key: Array, m: int, batch_size: int, shards: int = 1) -> tuple[Array, Array]:
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

    Returns:
        The indices of the examples, (steps, batch_size); with several shards
        (steps, shards, batch_size / shards), relative to the start of the shard. And whether each
        example counts, (steps, batch_size).
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
    """Return the rows of P (m, ...) that belong to a minibatch, given its entry of the indices."""
    if index.ndim == 1:
        return P[index]
    parts = P.reshape(len(index), -1, *P.shape[1:])
    rows: Array = jax.vmap(lambda part, numbers: part[numbers])(parts, index)
    return rows.reshape(-1, *P.shape[1:])
