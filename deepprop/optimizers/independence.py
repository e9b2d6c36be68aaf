"""Whether an optimizer treats each layer alone, tried on small stand-ins of the user's layers.

A jaxpr can't show everything: a mask or a label may depend on a layer's index, path, shape or size,
and Python code decides that before anything is traced. So the optimizer is run: two steps on the
whole network, and the same two steps on each layer by itself. The stand-ins are layers of a few
units whose sizes are equal, smaller or larger than one another in the same way as the real ones,
so a rule by shape or size treats them as it would treat the real layers.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepprop.layers import Params
from deepprop.optimizers.optax_calls import explained

CLOSE = 1e-4  # relative: XLA may round two programs differently


def check_each_alone(optimizer: optax.GradientTransformationExtraArgs, params: Params) -> None:
    """Raise unless two steps on the whole network equal those on each of its layers alone.

    Layers of one kind are tried alone all at once, under `vmap`. If values are not known, such as
    those of a sweep, nothing can be compared.

    Raises:
        ValueError: they differ.
    """
    layers, *grads = (_standins(params, seed) for seed in range(3))
    try:
        found, expected = (
            _steps(optimizer, *jax.device_put((layers, grads))),
            _alone(optimizer, layers, grads),
        )
    except Exception as error:
        told = explained(error, "init or update", "updates, state, params, value")
        raise ValueError(f"optimizer must be one for each layer alone: {told}") from error
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((found, expected))):
        return
    for l, (whole, alone) in enumerate(zip(found, expected, strict=True), start=1):
        pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True)
        if not all(_close(np.asarray(one), np.asarray(other)) for one, other in pairs):
            raise ValueError(
                "optimizer must treat all layers alike to be applied in the backward pass, got one"
                f" that updates layer {l} of these params differently than that layer by itself, as"
                " labels or a mask by layer do"
            )


def _standins(params: Params, seed: int) -> Params:
    """Return small layers of random values; their sizes are ordered like those of `params`."""
    rng = np.random.default_rng(seed)
    sizes = sorted({n for layer in params for n in layer.W.shape[-2:]})
    small = {n: i + min(sizes[0], 2) for i, n in enumerate(sizes)}

    def standin(layer: Any) -> Any:
        n, n_below = (small[n] for n in layer.W.shape[-2:])
        W, b = (
            (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)).astype(leaf.dtype)
            for shape, leaf in (((n, n_below), layer.W), ((n, 1), layer.b))
        )
        return replace(layer, W=W, b=b, keep=1)

    return tuple(map(standin, params))


def _steps(
    optimizer: optax.GradientTransformationExtraArgs, params: Params, grads: Sequence[Params]
) -> list[tuple[Any, ...]]:
    """Return each layer's updates: of one step with gradient 0, to see decay, and of two more."""
    zero = jax.tree.map(jnp.zeros_like, params)
    update = partial(optimizer.update, value=jnp.ones(()))
    all_updates = [update(zero, optimizer.init(params), params)[0]]
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return list(zip(*all_updates, strict=True))


def _alone(
    optimizer: optax.GradientTransformationExtraArgs, params: Params, grads: Sequence[Params]
) -> list[Any]:
    """Return the same updates for each layer by itself, those of one kind at once."""
    kinds = defaultdict(list)
    for i, layer in enumerate(params):
        kinds[jax.tree.structure(layer), layer.W.shape].append(i)
    updates: list[Any] = [None] * len(params)

    def steps(layer: Any, *gradients: Any) -> Any:
        return _steps(optimizer, (layer,), [(g,) for g in gradients])[0]

    for members in kinds.values():
        of_kind = [
            jax.tree.map(lambda *leaves: np.stack(leaves), *(tree[i] for i in members))
            for tree in (params, *grads)
        ]
        of_each = jax.tree.map(_known, jax.vmap(steps)(*jax.device_put(of_kind)))
        for k, i in enumerate(members):
            updates[i] = jax.tree.map(lambda leaf, k=k: leaf[k], of_each)
    return updates


def _known(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    one, other = one.astype(float), other.astype(float)
    size = np.nanmax(abs(other), initial=0)
    return bool(np.allclose(one, other, rtol=CLOSE, atol=1e-2 * CLOSE * size, equal_nan=True))
