"""Stacks: runs of equal hidden layers held as one `Layer`, with a leading axis."""

from dataclasses import replace
from itertools import groupby
from math import isqrt
from typing import Any

import jax.numpy as jnp

from deepprop._arguments import check_params
from deepprop.costs import Output
from deepprop.layers import Layer, Params, depth, is_stack


def stack(params: Params, keep: int | str | None = None) -> Params:
    """Hold each run of equal hidden layers as one `Layer`, with W (K, n, n) and b (K, n, 1).

    Equal means as many units as inputs, the same activation, and both residual or neither. All
    functions of deepprop take such params, and mean the same by them; use them under `jit`, as
    outside of it a loop is compiled at each call. An optimizer that looks at an array as a whole,
    at its norm or shape (LAMB, Adafactor, Muon), sees a stack as one: `in_backward` shows it one
    layer at a time.

    >>> import jax, deepprop as dp
    >>> params = dp.stack(dp.init_params(jax.random.key(0), [3, *[8] * 5, 2]))
    >>> [layer.W.shape for layer in params]
    [(8, 3), (4, 8, 8), (2, 8)]

    Args:
        params: the layers; stacks among them are taken as the layers they are. Gradients too.
        keep: 1 keeps Z and A of all layers from the forward pass for the backward pass. k keeps A
            of every k-th, and computes the others again on the way back: about 1/k of the memory,
            for one more forward pass. "sqrt" takes about sqrt(K), where memory is least. None
            leaves a stack as it is, and takes 1 for a new one.

    Returns:
        The layers, with stacks.

    Raises:
        ValueError: `keep` is no number above 0, nor "sqrt".
        TypeError: `params` is no tuple of layers.
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
    """The layers of all stacks one by one: what `stack` joined. Gradients too.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, *[8] * 5, 2])
    >>> len(dp.unstack(dp.stack(params)))
    6

    Args:
        params: the layers.

    Raises:
        TypeError: `params` is no tuple of layers.
    """
    check_params(params)
    return tuple(one for layer in params for one in one_by_one(layer))


def one_by_one(layer: Layer) -> list[Layer]:
    """The layers of a stack; a layer that is none is the only one."""
    if not is_stack(layer):
        return [layer]
    return [replace(layer, W=W, b=b, keep=1) for W, b in zip(layer.W, layer.b, strict=True)]


def _kind(numbered: tuple[int, Layer]) -> Any:
    """What equal layers have in common; a layer that is like no other has its number."""
    i, layer = numbered
    *_, n, n_below = layer.W.shape
    alone = n != n_below or isinstance(layer.activation, Output)
    return i if alone else (n, layer.activation, layer.residual)


def _joined(run: list[Layer], keep: int | str | None) -> Layer:
    W, b = (
        jnp.concatenate([leaf if leaf.ndim == 3 else leaf[None] for leaf in leaves])
        for leaves in zip(*((layer.W, layer.b) for layer in run), strict=True)
    )
    K = W.shape[0]
    keep = max(layer.keep for layer in run) if keep is None else keep
    k = isqrt(K) if isinstance(keep, str) else min(keep, K)
    return replace(run[0], W=W, b=b, keep=k)
