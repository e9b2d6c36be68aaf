"""Stacks: runs of equal hidden layers stored as one `Layer`, with a leading axis."""

from dataclasses import replace
from itertools import groupby
from math import isqrt
from typing import Any

import jax.numpy as jnp

from deepprop._arguments import check_params
from deepprop.costs import Output
from deepprop.layers import Layer, Params, depth, is_stack


def stack(params: Params, keep: int | str | None = None) -> Params:
    """Store each run of equal hidden layers as one `Layer`, with W (K, n, n) and b (K, n, 1).

    Equal layers have as many units as inputs and the same activation, and are alike in whether they
    are residual, normalise and drop. A stack compiles to a loop, so compilation takes as long for
    1,000 layers as for 10. Every function of deepprop takes stacks, with the same results. Call
    them under `jit`; outside of it, each call compiles its loop again. An optimizer that uses the
    norm or the shape of an array (LAMB, Adafactor, Muon) treats a stack as one array; `in_backward`
    shows it one layer at a time.

    >>> import jax, deepprop as dp
    >>> params = dp.stack(dp.init_params(jax.random.key(0), [3, *[8] * 5, 2]))
    >>> [layer.W.shape for layer in params]
    [(8, 3), (4, 8, 8), (2, 8)]

    Args:
        params: the layers, or gradients; stacks among them count as the layers they hold.
        keep: 1 stores Z and A of all layers for the backward pass. k stores A of every k-th layer
            and computes the others again in the backward pass: about 1/k of the memory, at the cost
            of one more forward pass. "sqrt" takes about sqrt(K), which needs the least memory. None
            leaves existing stacks as they are, and uses 1 for new ones.

    Returns:
        The layers, with stacks.

    Raises:
        ValueError: `keep` is neither a whole number above 0 nor "sqrt".
        TypeError: `params` is not a tuple of layers.
    """
    check_params(params)
    whole = isinstance(keep, int) and not isinstance(keep, bool) and keep > 0
    if keep not in (None, "sqrt") and not whole:
        raise ValueError(f'keep must be a whole number above 0, or "sqrt", got {keep!r}')
    stacked: list[Layer] = []
    for _, equal in groupby(enumerate(params), _kind):
        run = [layer for _, layer in equal]
        stacked.append(_joined(run, keep) if sum(map(depth, run)) > 1 else run[0])
    return tuple(stacked)


def unstack(params: Params) -> Params:
    """Split all stacks into single layers: the inverse of `stack`.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, *[8] * 5, 2])
    >>> len(dp.unstack(dp.stack(params)))
    6

    Args:
        params: the layers, or gradients.

    Returns:
        L single layers.

    Raises:
        TypeError: `params` is not a tuple of layers.
    """
    check_params(params)
    return tuple(one for layer in params for one in one_by_one(layer))


def one_by_one(layer: Layer) -> list[Layer]:
    """Return the layers of a stack, or a single layer by itself, as a list."""
    if not is_stack(layer):
        return [layer]
    K = layer.W.shape[0]
    return [replace(layer, W=layer.W[k], b=layer.b[k], keep=1) for k in range(K)]


def _kind(numbered: tuple[int, Layer]) -> Any:
    """Return what equal layers share; a layer that can't be stacked gets its number."""
    i, layer = numbered
    *_, n, n_below = layer.W.shape
    alone = n != n_below or isinstance(layer.activation, Output)
    kind = n, layer.activation, layer.residual, layer.normalize, layer.dropout
    return i if alone else kind


def _joined(run: list[Layer], keep: int | str | None) -> Layer:
    W, b = (
        jnp.concatenate([leaf if leaf.ndim == 3 else leaf[None] for leaf in leaves])
        for leaves in zip(*((layer.W, layer.b) for layer in run), strict=True)
    )
    K = W.shape[0]
    keep = max(layer.keep for layer in run) if keep is None else keep
    k = isqrt(K) if isinstance(keep, str) else min(keep, K)
    return replace(run[0], W=W, b=b, keep=k)
