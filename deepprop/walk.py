"""The walk through the layers: up, down, or each layer by itself.

Whatever computes with layers does so through this file: it alone tells a stack from a single layer
and recomputes any Z and A that the cache does not store. A function that reads (cache, dZ) is
therefore written for one layer:

    each_layer(f, cache, dZ)         f(layer, dZ[l], U[l]) of each layer; U[l] is A[l-1], or what
                                     a normalisation and dropout make of it
    layer_map(f, layers, *entries)   the same for entries of any kind, such as `columns` returns
    layer_scan(f, start, ...)        a sum over the layers, without storing a term for each
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from deepprop._arguments import signals
from deepprop._arithmetic import rows
from deepprop._loops import Visit, down_stack, forward_stack, predict_stack
from deepprop.entry import entering, mask
from deepprop.equations import error_signal, forward_layer, signal_below
from deepprop.layers import Cache, Layer, Params, depth, is_stack, top

Start = Callable[[Layer, Array, Array], Array]


def up(params: Params, A_0: Array, kept: Sequence[Array | None] = ()) -> Cache:
    """Walk up from A[0] to A[L] and return the cache, with the Z and A that each layer stores."""
    A, Z = [rows(A_0)], []
    for layer, kept_l in zip(params, kept or [None] * len(params), strict=True):
        step = forward_stack if is_stack(layer) else forward_layer
        Z_l, A_l = step(layer, top(A[-1]), kept_l)
        Z.append(Z_l)
        A.append(A_l)
    return Cache(params, tuple(Z), tuple(A), tuple(kept))


def keys_of(params: Params, key: Array | None) -> tuple[Array | None, ...]:
    """Return each layer's own key for dropout, made of `key` and the layer's number; K for a stack.

    Returns:
        None for a layer that drops nothing; nothing at all if no layer does, or without a key.
    """
    if key is None or not any(layer.dropout for layer in params):
        return ()
    of_number = partial(jax.random.fold_in, key)
    numbers = by_entry(params, jnp.arange(1, sum(map(depth, params)) + 1))
    keys = [jax.vmap(of_number)(n) if n.ndim else of_number(n) for n in numbers]
    return tuple(k if layer.dropout else None for layer, k in zip(params, keys, strict=True))


def masks(cache: Cache) -> tuple[Array | None, ...]:
    """Return `cache.kept` with masks (n_{l-1}, m) in the place of keys, (K, n, m) for a stack.

    A part of the examples can be cut out of a mask; a key would draw another one for them.
    """
    drawn = partial(mask, m=cache.A[0].shape[-1])
    layers = zip(cache.params, cache.kept, strict=False)
    return tuple(
        None if kept is None else next(layer_map(drawn, (layer,), [kept])) for layer, kept in layers
    )


def kept_by(cache: Cache) -> Sequence[Array | None]:
    """Return what dropout kept in each layer, or None for all: see `Cache`."""
    return cache.kept or [None] * len(cache.params)


def to_the_top(params: Params, A_0: Array) -> Array:
    """Walk up from A[0] to A[L] and return A[L], without a cache."""
    A = rows(A_0)
    for layer in params:
        A = predict_stack(layer, A) if is_stack(layer) else forward_layer(layer, A)[1]
    return A


def down(
    cache: Cache,
    start: Start,
    visit: Visit,
    states: Sequence[Any] | None = None,
    *,
    in_place: bool = False,
    to_inputs: bool = False,
) -> tuple[list[Any], Array]:
    """Walk down from dZ[L] to dZ[1] and return what `visit` returns for each layer.

    Args:
        cache: the cache returned by `forward`.
        start: (output layer, Z[L], A[L]) to dZ[L]: see ends.py.
        visit: (state, layer, dZ[l], U[l]) to the layer's new state.
        states: the state of each layer before its visit, with a leading axis for a stack; None if
            `visit` needs none.
        in_place: whether each state begins with the layer itself, which `visit` updates: see
            _loops.py.
        to_inputs: whether to go on to dA[0].

    Returns:
        The states of all layers, and dA[0] (n_0, m) if asked for.
    """
    states = list(states or [None] * len(cache.params))
    dA = jnp.zeros_like(cache.A[-1])  # not read: `start` gives dZ[L], and layer L is never residual
    kept = kept_by(cache)
    for i in reversed(range(len(states))):
        layer, Z, A, A_below = cache.params[i], cache.Z[i], cache.A[i + 1], top(cache.A[i])
        if is_stack(layer):
            stack = None if in_place else layer
            entry = Z, A, A_below, kept[i]
            states[i], dA = down_stack(stack, states[i], visit, entry, dA)
            continue
        last = i == len(states) - 1
        if last:  # noqa: SIM108 - a line for each equation
            dZ = start(layer, Z, A)
        else:
            dZ = error_signal(layer, dA, Z, A)  # dZ[l] = W[l+1]^T dZ[l+1] * g[l]'(Z[l])
        states[i] = visit(states[i], layer, dZ, entering(layer, A_below, kept[i]))
        dA = signal_below(layer, dZ, dA, A_below, kept[i]) if i or to_inputs else dA
    return states, dA


def below_residual_layers(cache: Cache, dZ: Sequence[Array]) -> Array:
    """Return dA[0]: the derivative through layer 1 and, if it is residual, also around it.

    The path around residual layers begins above the highest of them, at the first layer that is
    not residual.
    """
    cache, n = recomputed(cache), 1
    while cache.params[n - 1].residual:  # the last layer never is
        n += 1

    def below(dA: Array, one: tuple[Layer, Array, Array, Array | None]) -> tuple[Array, None]:
        layer, dZ_l, A, kept = one
        return signal_below(layer, dZ_l, dA, A, kept), None

    dA = jnp.zeros_like(top(dZ[n - 1]))  # not read: layer n is not residual
    entries = list(zip(cache.params, dZ, below_layers(cache), kept_by(cache), strict=True))[:n]
    for one in reversed(entries):
        go = partial(lax.scan, below, reverse=True) if is_stack(one[0]) else below
        dA, _ = go(dA, one)
    return dA


def each_layer(
    f: Callable[..., Any], cache: Cache, dZ: Sequence[ArrayLike], out_axes: int = 0
) -> tuple[Any, ...]:
    """Return f(layer, dZ[l], U[l]) for each layer; for a stack with a leading axis.

    Args:
        f: a function of one layer.
        cache: the cache returned by `forward`.
        dZ: the error signals of that cache.
        out_axes: where a stack's axis goes in the results of f.

    Raises:
        ValueError: dZ belongs to another network or batch than the cache.
        TypeError: dZ is not real numbers, or `cache` is not a cache.
    """
    return tuple(layer_map(f, *local(cache, dZ), out_axes=out_axes))


def local(cache: Cache, dZ: Sequence[ArrayLike]) -> tuple[Params, list[Array], list[Array]]:
    """Return what the gradient of each layer is made of: the layers, all dZ[l] and all U[l].

    Raises:
        ValueError, TypeError: as `each_layer`.
    """
    dZ = signals(cache, dZ)
    return cache.params, dZ, inputs_of_layers(recomputed(cache))


def layer_map(
    f: Callable[..., Any], layers: Params, *entries: Any, out_axes: int = 0
) -> Iterator[Any]:
    """Yield f(layer, *entries of that layer); all layers of a stack are mapped at once."""
    for layer, *of_layer in zip(layers, *entries, strict=True):
        mapped = jax.vmap(f, out_axes=out_axes) if is_stack(layer) else f
        yield mapped(layer, *of_layer)


def layer_scan(
    f: Callable[..., Any], carry: Any, layers: Params, *entries: Any, downwards: bool = False
) -> Any:
    """Fold carry = f(carry, layer, *entries of that layer) over the layers, the lowest first.

    Args:
        f: a function of the carry and one layer.
        carry: where to start.
        layers: the layers.
        entries: sequences with one entry for each layer.
        downwards: whether to begin with the highest layer.
    """
    of_layers = list(zip(layers, *entries, strict=True))
    for layer, *of_layer in reversed(of_layers) if downwards else of_layers:
        if is_stack(layer):
            one = layer, *of_layer
            carry, _ = lax.scan(lambda c, e: (f(c, *e), None), carry, one, reverse=downwards)
        else:
            carry = f(carry, layer, *of_layer)
    return carry


def by_entry(params: Params, P: Array) -> list[Array]:
    """Split P (L, ...) as params is split: one row per layer, K rows for a stack."""
    ends = list(accumulate(map(depth, params)))
    parts = zip(params, ends, strict=True)
    return [P[end - depth(p) : end] if is_stack(p) else P[end - 1] for p, end in parts]


def recomputed(cache: Cache) -> Cache:
    """Return the cache with all Z and A; those it does not store are computed again."""
    Z, A = list(cache.Z), list(cache.A)
    for i, (layer, kept) in enumerate(zip(cache.params, kept_by(cache), strict=True)):
        if Z[i] is None:
            Z[i], A[i + 1] = forward_stack(replace(layer, keep=1), top(A[i]), kept)
    return replace(cache, Z=tuple(Z), A=tuple(A))


def inputs_of_layers(cache: Cache) -> list[Array]:
    """Return U[l], which enters layers 1 to L: (n_{l-1}, m), or (K, n, m) for a stack.

    Args:
        cache: a cache that stores all A.
    """
    return list(layer_map(entering, cache.params, below_layers(cache), kept_by(cache)))


def below_layers(cache: Cache) -> list[Array]:
    """Return A[l-1] of layers 1 to L: (n_{l-1}, m), or (K, n, m) for a stack.

    Args:
        cache: a cache that stores all A.
    """
    below = [top(A) for A in cache.A[:-1]]
    return [
        jnp.concatenate([A.mT[None], above.mT[:-1]]).mT if is_stack(layer) else A  # as rows
        for layer, A, above in zip(cache.params, below, cache.A[1:], strict=True)
    ]
