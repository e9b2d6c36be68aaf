"""Ways through the layers: up, down, and each on its own. Here alone a stack is told from a layer.

A function that reads (cache, dZ) is written for one layer, and `each_layer` applies it to all. It
sees neither that a run of layers is held as a stack, nor that some Z and A were not kept and are
computed again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from deepprop._arguments import signals, targets
from deepprop._arithmetic import rows
from deepprop._loops import Visit, down_stack, forward_stack, predict_stack
from deepprop.equations import error_signal, forward_layer, output_signal, signal_below
from deepprop.layers import Cache, Params, depth, is_stack, top


def up(params: Params, A_0: Array) -> Cache:
    """From A[0] to A[L]: the cache, with the Z and A that each layer or stack keeps."""
    A, Z = [rows(A_0)], []
    for layer in params:
        step = forward_stack if is_stack(layer) else forward_layer
        Z_l, A_l = step(layer, top(A[-1]))
        Z.append(Z_l)
        A.append(A_l)
    return Cache(params, tuple(Z), tuple(A))


def to_the_top(params: Params, A_0: Array) -> Array:
    """From A[0] to A[L], with nothing kept."""
    A = rows(A_0)
    for layer in params:
        A = predict_stack(layer, A) if is_stack(layer) else forward_layer(layer, A)[1]
    return A


def down(
    cache: Cache,
    Y: ArrayLike,
    visit: Visit,
    held: Sequence[Any] | None = None,
    *,
    in_place: bool = False,
) -> list[Any]:
    """Down the network, dZ[L] to dZ[1]: what `visit` gives of each layer, of its dZ[l] and A[l-1].

    Args:
        cache: what `forward` gave.
        Y: (n_L, m), the targets.
        visit: (held, layer, dZ[l], A[l-1]) to what is held of the layer from then on.
        held: an entry for each of params, with a leading axis for a stack; None for nothing to
            begin with.
        in_place: whether the layers are what is held first, and `visit` changes them.
    """
    Y, held = targets(cache, Y), list(held or [None] * len(cache.params))
    dA = jnp.zeros_like(Y)  # not read: the output's dZ comes of the cost
    for i in reversed(range(len(held))):
        layer, Z, A, A_below = cache.params[i], cache.Z[i], cache.A[i + 1], top(cache.A[i])
        if is_stack(layer):
            stack = None if in_place else layer
            held[i], dA = down_stack(stack, held[i], visit, (Z, A, A_below), dA)
            continue
        last = i == len(held) - 1
        dZ = output_signal(layer, Z, A, Y) if last else error_signal(layer, dA, Z, A)
        held[i] = visit(held[i], layer, dZ, A_below)
        dA = signal_below(layer, dZ, dA) if i else dA
    return held


def each_layer(
    f: Callable[..., Any], cache: Cache, dZ: Sequence[ArrayLike], out_axes: int = 0
) -> tuple[Any, ...]:
    """f(layer, dZ[l], A[l-1]) of each layer on its own; of a stack's layers with a leading axis.

    Raises:
        ValueError: dZ is of another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """
    return tuple(layer_map(f, *local(cache, dZ), out_axes=out_axes))


def local(cache: Cache, dZ: Sequence[ArrayLike]) -> tuple[Params, list[Array], list[Array]]:
    """What the gradients of layers 1 to L are made of: the layers, dZ[l] and A[l-1].

    Raises:
        ValueError, TypeError: as `each_layer`.
    """
    dZ = signals(cache, dZ)
    return cache.params, dZ, inputs_of_layers(recomputed(cache))


def layer_map(
    f: Callable[..., Any], layers: Params, *entries: Any, out_axes: int = 0
) -> Iterator[Any]:
    """f(layer, *entries of that layer) of each; f is of one layer, and of a stack's all at once."""
    for layer, *its in zip(layers, *entries, strict=True):
        of_layer = jax.vmap(f, out_axes=out_axes) if is_stack(layer) else f
        yield of_layer(layer, *its)


def layer_scan(f: Callable[..., Any], carry: Any, layers: Params, *entries: Any) -> Any:
    """The last of carry = f(carry, layer, *entries of that layer), from the lowest layer on."""
    for layer, *its in zip(layers, *entries, strict=True):
        if is_stack(layer):
            carry, _ = lax.scan(lambda c, one: (f(c, *one), None), carry, (layer, *its))
        else:
            carry = f(carry, layer, *its)
    return carry


def by_entry(params: Params, P: Array) -> list[Array]:
    """P (L, ...) with a row per layer, split as params is: a row, or K of them for a stack."""
    ends = list(accumulate(map(depth, params)))
    parts = zip(params, ends, strict=True)
    return [P[end - depth(p) : end] if is_stack(p) else P[end - 1] for p, end in parts]


def recomputed(cache: Cache) -> Cache:
    """The cache with all Z and A, those that were not kept computed again."""
    Z, A = list(cache.Z), list(cache.A)
    for i, layer in enumerate(cache.params):
        if Z[i] is None:
            Z[i], A[i + 1] = forward_stack(replace(layer, keep=1), top(A[i]))
    return Cache(cache.params, tuple(Z), tuple(A))


def inputs_of_layers(cache: Cache) -> list[Array]:
    """A[l-1] for layers 1 to L: (n_{l-1}, m), or (K, n, m) for a stack.

    Args:
        cache: with all A.
    """
    below = [top(A) for A in cache.A[:-1]]
    return [
        jnp.concatenate([A[None], above[:-1]]) if is_stack(layer) else A
        for layer, A, above in zip(cache.params, below, cache.A[1:], strict=True)
    ]
