"""Up and down through a stack, in a loop that is compiled once however many layers there are.

In the loops an example is a row, as it lies in memory (`rows`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepprop.equations import error_signal, forward_layer, signal_below
from deepprop.layers import Layer, depth, type_of_A

# What is held of a layer, the layer, dZ[l] and A[l-1], to what is held of it then.
Visit = Callable[[Any, Layer, Array, Array], Any]


def forward_stack(stack: Layer, A: Array) -> tuple[Any, Array]:
    """Up through a stack: A below it (n, m) to Z and A (K, n, m); or to None and what is kept."""
    K, k = depth(stack), stack.keep
    if k == 1:
        return _up(stack, A, 0, K, K)

    def segment(P: Array, start: Array) -> tuple[Array, Array]:
        def one(i: Array, P: Array) -> Array:
            return forward_layer(layer_at(stack, start + i), P.mT)[1].mT

        P = lax.fori_loop(0, _count(K, k, start), one, P)
        return P, P

    _, kept = lax.scan(segment, A.mT, jnp.arange(0, K, k))
    return None, kept.mT


def predict_stack(stack: Layer, A: Array) -> Array:
    """Up through a stack, with nothing kept: A below it to A above it."""

    def one(P: Array, layer: Layer) -> tuple[Array, None]:
        return forward_layer(layer, P.mT)[1].mT, None

    return lax.scan(one, A.mT, stack)[0].mT


def down_stack(
    stack: Layer | None, held: Any, visit: Visit, entry: tuple[Any, Array, Array], dA: Array
) -> tuple[Any, Array]:
    """Down through a stack: `visit` each layer from the highest on, and dA above it to dA below it.

    Args:
        stack: the layers; None where they are what is held first, and `visit` changes them.
        held: anything with a leading axis of K, of which `visit` replaces layer l's; or None.
        visit: of one layer.
        entry: Z and A of the cache for the stack, and A below it.
        dA: (n, m), of the highest layer.
    """
    Z, A, A_below = entry
    layers = _layers(stack, held)
    K, k = depth(layers), layers.keep
    if held is None:
        held = zeros_of(jax.eval_shape(visit, None, layer_at(layers, 0), dA, A_below), K)
    if Z is not None:
        return _down(stack, held, visit, (Z, A, A_below), dA, 0, K)

    kept, lowest = A.mT, A_below.mT  # turned here, or XLA copies all that is kept into columns

    def segment(carry: tuple[Any, Array], s: Array) -> tuple[tuple[Any, Array], None]:
        held, dA_rows = carry
        below = jnp.where(s > 0, layer_at(kept, jnp.maximum(s - 1, 0)), lowest).mT
        start = s * k
        count = _count(K, k, start)
        Z_s, A_s = _up(_layers(stack, held), below, start, count, k)
        held, dA = _down(stack, held, visit, (Z_s, A_s, below), dA_rows.mT, start, count)
        return (held, dA.mT), None

    (held, dA_rows), _ = lax.scan(segment, (held, dA.mT), jnp.arange(A.shape[0]), reverse=True)
    return held, dA_rows.mT


def _layers(stack: Layer | None, held: Any) -> Layer:
    layers: Layer = held[0] if stack is None else stack
    return layers


def _count(K: int, k: int, start: Array) -> Array | int:
    """How many layers a segment has: k, but for the highest."""
    return k if K % k == 0 else jnp.minimum(k, K - start)


def _up(
    stack: Layer, A: Array, start: Array | int, count: Array | int, most: int
) -> tuple[Array, Array]:
    """Z and A of `count` layers from number `start` on, in room for `most`: (most, n, m) each."""

    def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        P, Z, A = carry
        Z_l, A_l = forward_layer(layer_at(stack, start + i), P.mT)
        return A_l.mT, _put(Z, i, Z_l.mT), _put(A, i, A_l.mT)

    P = A.mT
    empty = zeros_of(P.astype(type_of_A(stack)), most)
    _, Z, A = lax.fori_loop(0, count, one, (P, empty, empty))
    return Z.mT, A.mT


def _down(
    stack: Layer | None,
    held: Any,
    visit: Visit,
    entry: tuple[Array, Array, Array],
    dA: Array,
    start: Array | int,
    count: Array | int,
) -> tuple[Any, Array]:
    """Down through `count` layers from number start + count - 1 on; Z and A are of these alone.

    Where the layers themselves are held, what is new of one is written in the next turn, before
    anything is read: only then does XLA write in place, instead of a copy of all in each turn.
    """
    Z, A, below = (P.mT for P in entry)
    top, late = start + count - 1, stack is None

    def one(i: Array, carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
        held, new, dA_rows = carry
        j = count - 1 - i
        l = start + j
        held = _put(held, jnp.minimum(l + 1, top), new) if late else held
        layer, dA = layer_at(_layers(stack, held), l), dA_rows.mT
        dZ = error_signal(layer, dA, layer_at(Z, j).mT, layer_at(A, j).mT)
        A_below = jnp.where(j > 0, layer_at(A, jnp.maximum(j - 1, 0)), below).mT
        new = visit(layer_at(held, l), layer, dZ, A_below)
        held, new = (held, new) if late else (_put(held, l, new), ())
        return held, new, signal_below(layer, dZ, dA).mT

    begin = held, layer_at(held, top) if late else (), dA.mT
    held, new, dA_rows = lax.fori_loop(0, count, one, begin)
    return _put(held, start, new) if late else held, dA_rows.mT


def layer_at(tree: Any, i: Array | int) -> Any:
    """Layer i of a stack; or of anything with the same leading axis."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def _put(tree: Any, i: Array | int, new: Any) -> Any:
    return jax.tree.map(
        lambda old, leaf: lax.dynamic_update_index_in_dim(old, leaf, i, 0), tree, new
    )


def zeros_of(one: Any, K: int) -> Any:
    """Zeros for K of what one array or tree is like."""
    return jax.tree.map(lambda leaf: jnp.zeros((K, *leaf.shape), leaf.dtype), one)
