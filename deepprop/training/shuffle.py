"""A random order without a sort, which takes as long as many steps of a small network."""

import math

import jax
import jax.numpy as jnp
from jax import Array

ROUNDS = 6


def random_order(key: Array, m: int) -> Array:
    """The numbers 0 to m - 1 in a random order.

    They lie on a grid of a rows and b columns, a b >= m. Each round turns every column by a random
    number of places, and then every row: a Feistel network with random functions, which Luby and
    Rackoff (1988) showed to mix. A number that ends at m or above goes on until it is below (cycle
    walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). On GPUs Mitchell et
    al. shuffle so (Bandwidth-Optimal Random Shuffling, 2022).

    >>> import jax
    >>> sorted(random_order(jax.random.key(0), 7).tolist())
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        key: a JAX random key.
        m: how many.

    Returns:
        (m,) integers, each of 0 to m - 1 once.
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
    """Which examples are in each minibatch of an epoch: all of them once, in a random order.

    What the last minibatch lacks is filled up with examples that do not count.

    >>> import jax
    >>> index, counted = minibatches(jax.random.key(0), 7, 3)
    >>> index.shape, sorted(index[counted].tolist())
    ((3, 3), [0, 1, 2, 3, 4, 5, 6])

    Args:
        key: a JAX random key.
        m: how many examples.
        batch_size: of them in a minibatch.
        shards: parts of m / shards examples, each shuffled by itself; a minibatch takes
            batch_size / shards of each.

    Returns:
        The numbers of the examples, (steps, batch_size), or with several shards
        (steps, shards, batch_size / shards), where each counts from its own first; and whether each
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
    """The rows of P (m, ...) of a minibatch, from an entry of what `minibatches` gives."""
    if index.ndim == 1:
        return P[index]
    parts = P.reshape(len(index), -1, *P.shape[1:])
    rows: Array = jax.vmap(lambda part, numbers: part[numbers])(parts, index)
    return rows.reshape(-1, *P.shape[1:])
