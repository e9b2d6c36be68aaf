"""The optimizer's update inside of the backward pass.

Layer l is updated as soon as dW[l] and db[l] are computed, and they are dropped at once. The
gradient of the whole network never exists, which saves as much memory as the parameters take.

This equals the ordinary update only if the optimizer treats each layer alone. `in_backward` finds
out by three tests, because optax has no such declaration: `_check_alone` reads from the jaxpr of
the update which layers each output depends on; `_check_alike` compares the updates of two equal
layers; and at `init` independence.py compares two steps on stand-ins of the user's layers with the
same steps on each layer by itself.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.interpreters import partial_eval
from jax.typing import ArrayLike

from deepprop._checks import raw_key_shape
from deepprop.activations import activation
from deepprop.backprop import gradient_of
from deepprop.ends import start_from
from deepprop.layers import Cache, Layer, Params
from deepprop.optimizers.independence import check_each_alone
from deepprop.optimizers.optax_calls import explained
from deepprop.walk import down, layer_map


class InBackward(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """The result of `in_backward`: an optax transformation that treats each layer alone."""


def in_backward(optimizer: optax.GradientTransformation) -> InBackward:
    """Apply the optimizer to each layer as soon as its gradient is computed.

    `fit`, `fit_batches`, `fit_ensemble` and `train_step` then update the parameters in place on the
    way down. The result equals the ordinary update, and the memory of the gradient is saved. Each
    layer has its own state, also in a stack, so per-array statistics such as a norm are computed
    per layer.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 8, 1], hidden="tanh", output="identity")
    >>> X = jnp.linspace(-1, 1, 64).reshape(1, 64)
    >>> fit = dp.fit(params, dp.in_backward(optax.sgd(0.3)), X, X**2, epochs=100, batch_size=16,
    ...              key=jax.random.key(1))
    >>> bool(fit.history["cost"][-1] < 0.01)
    True

    Args:
        optimizer: an optax transformation that treats each array alone, as SGD, Adam and most
            others do, with schedules, weight decay or elementwise clipping.

    Returns:
        An optax transformation. Outside of deepprop's loops it is the same optimizer.

    Raises:
        ValueError: the optimizer needs several layers at once, as a clip by the global norm does;
            or it draws random numbers, or treats layers differently, such as by labels. What
            depends on a layer's position or size is found by `init`.
        TypeError: `optimizer` is not an optax transformation.

    Source:
        Lv et al. 2023, Full Parameter Fine-tuning for Large Language Models with Limited Resources
        (LOMO), arXiv:2306.09782.
    """
    check_optimizer(optimizer)
    of_layer = optax.with_extra_args_support(optimizer)
    _check_alone(of_layer)
    _check_alike(of_layer)

    def init_one(layer: Layer) -> Any:
        return of_layer.init((layer,))

    def init(params: Params) -> tuple[Any, ...]:
        check_each_alone(of_layer, params)
        return tuple(layer_map(init_one, params))

    def update(
        grads: Params, state: tuple[Any, ...], params: Params | None = None, **extra: Any
    ) -> tuple[Params, tuple[Any, ...]]:
        def one(gradient: Layer, state: Any, layer: Layer | None) -> tuple[Layer, Any]:
            layers = None if layer is None else (layer,)
            (change,), state = of_layer.update((gradient,), state, layers, **extra)
            return change, state

        new = layer_map(one, grads, state, params or [None] * len(grads))
        changes, states = zip(*new, strict=True)
        return changes, states

    return InBackward(init, update)


def update_in_backward(
    optimizer: InBackward,
    cache: Cache,
    Y: ArrayLike,
    w: Array | None,
    state: tuple[Any, ...],
    J: Array,
) -> tuple[Params, tuple[Any, ...]]:
    """Run the backward pass, update each layer on the way, and return params and state.

    The weights w were checked.
    """
    gradient = gradient_of(cache, w)

    def visit(pair: tuple[Layer, Any], layer: Layer, dZ: Array, A: Array) -> tuple[Layer, Any]:
        grads, of_layer = (gradient(layer, dZ, A),), (pair[1],)
        changes, (state,) = optimizer.update(grads, of_layer, (layer,), value=J)
        (layer,) = optax.apply_updates((layer,), changes)
        return layer, state

    pairs = list(zip(cache.params, state, strict=True))
    updated, _ = down(cache, start_from(cache, Y), visit, pairs, in_place=True)
    params, states = zip(*updated, strict=True)
    return params, states


def check_optimizer(optimizer: optax.GradientTransformation) -> None:
    """Raise unless it is an optax transformation.

    Raises:
        TypeError: it is anything else, such as its name.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        turn = getattr(optimizer, "gradient_transformation", None)
        cure = ": pass its .gradient_transformation()" if callable(turn) else ""
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got {optimizer!r}{cure}"
        )


def _check_alone(optimizer: optax.GradientTransformationExtraArgs) -> None:
    """Raise unless the update of a layer depends on that layer alone, at every step.

    The jaxpr of the update for two small layers says which outputs depend on which inputs. A
    dependence may pass from one entry of the state to another, one entry per step; repeating the
    analysis as often as the state has entries therefore covers every later step.
    """
    one = Layer(jnp.zeros((2, 2)), jnp.zeros((2, 1)), activation("identity"))
    layers = (one, one)
    try:
        state = jax.eval_shape(optimizer.init, layers)
        update = partial(optimizer.update, value=jnp.zeros(()))
        jaxpr = jax.make_jaxpr(lambda s, g, p: update(g, s, p)[::-1])(state, layers, layers).jaxpr
    except Exception as error:
        told = explained(error, "init or update", "updates, state, params, value")
        raise ValueError(f"optimizer must be one for each layer alone: {told}") from error
    entries = jax.tree.leaves(state)
    if any(_is_key(leaf) for leaf in entries):
        raise ValueError(
            "optimizer must not draw random numbers, which would be the same in every layer, got"
            " one with a random key in its state"
        )
    # The state before the first update depends on no layer.
    of: list[set[int]] = [set() for _ in entries]
    for _ in range(len(entries) + 1):
        of = depend(jaxpr, [*of, *({l} for l in (0, 0, 1, 1) * 2)])
        of, of_updates = of[: len(entries)], of[len(entries) :]
    if any(own - {l} for own, l in zip(of_updates, (0, 0, 1, 1), strict=True)):
        raise ValueError(
            "optimizer must treat each layer alone to be applied in the backward pass, got one"
            " whose update of a layer depends on other layers' gradients, as a clip by the global"
            " norm does"
        )


def _check_alike(optimizer: optax.GradientTransformationExtraArgs) -> None:
    """Raise if two equal layers are updated differently, as by labels.

    In the backward pass the optimizer sees one layer at a time, and can't tell which one it is.
    """
    layer = Layer(jnp.eye(2) + 1, jnp.ones((2, 1)), activation("identity"))
    layers = layer, layer

    @jax.jit
    def one_step() -> Any:
        return optimizer.update(layers, optimizer.init(layers), layers, value=jnp.ones(()))[0]

    leaves = jax.tree.leaves(one_step())
    if isinstance(leaves[0], jax.core.Tracer):  # the values of a sweep are not known here
        return
    pairs = zip(leaves[:2], leaves[2:], strict=True)  # XLA may round the two differently
    if not all(np.allclose(one, other, rtol=1e-3, atol=0, equal_nan=True) for one, other in pairs):
        raise ValueError(
            "optimizer must treat all layers alike to be applied in the backward pass, got one that"
            " updates two equal layers differently, as labels or a mask by layer do"
        )


def depend(jaxpr: Any, of_inputs: list[set[int]]) -> list[set[int]]:
    """Return the layers that each output of a jaxpr depends on, given those of its inputs."""
    n = len(jaxpr.outvars)
    masks = (partial_eval.dce_jaxpr(jaxpr, [i == out for i in range(n)])[1] for out in range(n))
    pairs = (zip(mask, of_inputs, strict=True) for mask in masks)
    return [set().union(*(layers for used, layers in pair if used)) for pair in pairs]


def _is_key(leaf: Any) -> bool:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    raw = leaf.shape in ((2,), (4,), raw_key_shape())  # threefry, rbg, and the generator in use
    return bool(typed) or (leaf.dtype == jnp.uint32 and raw)
