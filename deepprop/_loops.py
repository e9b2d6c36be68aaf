"""Up and down through a stack, in loops that compile once, however many layers there are.

Inside the loops examples are rows, as they are in memory (see `rows` in _arithmetic.py): a carry of
columns would be transposed in every iteration.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepprop.entry import entering
from deepprop.equations import error_signal, forward_layer, signal_below
from deepprop.layers import Layer, depth, type_of_A

# visit(state, layer, dZ[l], U[l]) returns the layer's new state.
Visit = Callable[[Any, Layer, Array, Array], Any]


def forward_stack(stack: Layer, A: Array, kept: Array | None = None) -> tuple[Any, Array]:
    """Return Z and A (K, n, m) of a stack from A below it (n, m); or None and the stored A."""
    K, k = depth(stack), stack.keep
    if k == 1:
        return _up(stack, kept, A, 0, K, K)

    def segment(P: Array, start: Array) -> tuple[Array, Array]:
        def one(i: Array, P: Array) -> Array:
            layer, kept_l = layer_at((stack, kept), start + i)
            return forward_layer(layer, P.mT, kept_l)[1].mT

        P = lax.fori_loop(0, _count(K, k, start), one, P)
        return P, P

    _, stored = lax.scan(segment, A.mT, jnp.arange(0, K, k))
    return None, stored.mT


def predict_stack(stack: Layer, A: Array) -> Array:
    """Return A above a stack (n, m) from A below it, without storing what is in between."""

    def one(P: Array, layer: Layer) -> tuple[Array, None]:
        return forward_layer(layer, P.mT)[1].mT, None

    return lax.scan(one, A.mT, stack)[0].mT


def down_stack(
    stack: Layer | None,
    state: Any,
    visit: Visit,
    entry: tuple[Any, Array, Array, Array | None],
    dA: Array,
) -> tuple[Any, Array]:
    """Visit each layer of a stack from the top down; return the states and dA below the stack.

    Args:
        stack: the layers; None if `state` begins with them, and `visit` updates them.
        state: a tree with a leading axis of K, in which `visit` replaces layer l's part; or None.
        visit: a function of one layer.
        entry: the cache's Z and A of the stack, A below it, and what dropout kept.
        dA: (n, m), of the highest layer.
    """
    Z, A, A_below, kept = entry
    layers = _layers(stack, state)
    K, k = depth(layers), layers.keep
    if state is None:
        state = zeros_of(jax.eval_shape(visit, None, layer_at(layers, 0), dA, A_below), K)
    if Z is not None:
        return _down(stack, state, visit, (Z, A, A_below, kept), dA, 0, K)

    # Transposed outside of the loop; inside, XLA would copy all of the stored A to columns.
    stored, lowest = A.mT, A_below.mT

    def segment(carry: tuple[Any, Array], s: Array) -> tuple[tuple[Any, Array], None]:
        state, dA_rows = carry
        below = jnp.where(s > 0, layer_at(stored, jnp.maximum(s - 1, 0)), lowest).mT
        start = s * k
        count = _count(K, k, start)
        Z_s, A_s = _up(_layers(stack, state), kept, below, start, count, k)
        state, dA = _down(stack, state, visit, (Z_s, A_s, below, kept), dA_rows.mT, start, count)
        return (state, dA.mT), None

    (state, dA_rows), _ = lax.scan(segment, (state, dA.mT), jnp.arange(A.shape[0]), reverse=True)
    return state, dA_rows.mT


def _layers(stack: Layer | None, state: Any) -> Layer:
    layers: Layer = state[0] if stack is None else stack
    return layers


def _count(K: int, k: int, start: Array) -> Array | int:
    """Return the number of layers in a segment: k, or fewer in the highest one."""
    return k if K % k == 0 else jnp.minimum(k, K - start)


def _up(
    stack: Layer,
    kept: Array | None,
    A: Array,
    start: Array | int,
    count: Array | int,
    most: int,
) -> tuple[Array, Array]:
    """Return Z and A of `count` layers from number `start` up, in arrays (most, n, m)."""

    def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        P, Z, A = carry
        layer, kept_l = layer_at((stack, kept), start + i)
        Z_l, A_l = forward_layer(layer, P.mT, kept_l)
        return A_l.mT, _put(Z, i, Z_l.mT), _put(A, i, A_l.mT)

    P = A.mT
    empty = zeros_of(P.astype(type_of_A(stack)), most)
    _, Z, A = lax.fori_loop(0, count, one, (P, empty, empty))
    return Z.mT, A.mT


def _down(
    stack: Layer | None,
    state: Any,
    visit: Visit,
    entry: tuple[Array, Array, Array, Array | None],
    dA: Array,
    start: Array | int,
    count: Array | int,
) -> tuple[Any, Array]:
    """Visit `count` layers from number start + count - 1 down; Z and A are those layers' alone.

    When the layers themselves are updated in place, each write is delayed by one iteration, to
    before that iteration's first read; the last layer is written after the loop. XLA then updates
    the buffer in place. With the write after the reads of its own iteration, XLA copies the whole
    stack every time: the temporary bytes of the compiled program show it.
    """
    *arrays, kept = entry
    Z, A, below = (P.mT for P in arrays)
    top, delayed = start + count - 1, stack is None

    def one(i: Array, carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
        state, new, dA_rows = carry
        j = count - 1 - i
        l = start + j
        state = _put(state, jnp.minimum(l + 1, top), new) if delayed else state
        layer, kept_l = layer_at((_layers(stack, state), kept), l)
        dA = dA_rows.mT
        dZ = error_signal(layer, dA, layer_at(Z, j).mT, layer_at(A, j).mT)
        A_below = jnp.where(j > 0, layer_at(A, jnp.maximum(j - 1, 0)), below).mT
        new = visit(layer_at(state, l), layer, dZ, entering(layer, A_below, kept_l))
        state, new = (state, new) if delayed else (_put(state, l, new), ())
        return state, new, signal_below(layer, dZ, dA, A_below, kept_l).mT

    begin = state, layer_at(state, top) if delayed else (), dA.mT
    state, new, dA_rows = lax.fori_loop(0, count, one, begin)
    return _put(state, start, new) if delayed else state, dA_rows.mT


def layer_at(tree: Any, i: Array | int) -> Any:
    """Return layer i of a stack, or entry i of any tree with a leading axis."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def _put(tree: Any, i: Array | int, new: Any) -> Any:
    return jax.tree.map(
        lambda old, leaf: lax.dynamic_update_index_in_dim(old, leaf, i, 0), tree, new
    )


def zeros_of(one: Any, K: int) -> Any:
    """Return zeros with a leading axis of K, otherwise shaped like the tree `one`."""
    return jax.tree.map(lambda leaf: jnp.zeros((K, *leaf.shape), leaf.dtype), one)
