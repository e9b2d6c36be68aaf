"""Training: one step, and one epoch as one compiled program.

A step is a forward pass, a backward pass and the update of an optax transformation. An epoch is a
`lax.scan` of steps over minibatches that are shuffled on the device.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import targets
from deepprop._arithmetic import wide
from deepprop._checks import example_weights
from deepprop._own_backward import as_layers
from deepprop.backprop import Backward, manual_backward, mean_gradient
from deepprop.layers import Params
from deepprop.network import forward, mean_loss
from deepprop.optimizers.fused_update import InBackward, check_optimizer, update_in_backward
from deepprop.optimizers.optax_calls import check_state, updated
from deepprop.training.programs import Programs
from deepprop.training.record import Recorded, named, watching
from deepprop.training.shuffle import gathered, minibatches

Step = Callable[..., tuple[Params, optax.OptState, Array]]
Sums = tuple[Array, Array]  # sum of w J, and of w, over the minibatches of an epoch so far
Carry = tuple[Params, optax.OptState, Sums]
Trained = tuple[Params, optax.OptState, dict[str, Array], Array]


def step(
    params: Params,
    state: optax.OptState,
    X: Array,
    Y: Array,
    w: Array | None,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward,
) -> tuple[Params, optax.OptState, Array]:
    """One step: the new params and state, and J before the step. The weights w were checked."""
    _, cache = forward(params, X)
    J = mean_loss(cache, targets(cache, Y), w)
    if isinstance(optimizer, InBackward):
        return *update_in_backward(optimizer, cache, Y, w, state, J), J
    backward = mean_gradient if backward is manual_backward else backward
    grads = as_layers(backward(cache, Y, w), params)
    # Some optimizers look at more than the gradient, such as the cost (reduce_on_plateau) or the
    # cache (dp.kfac); the others ignore it.
    looks = {"value": J, "cache": cache, "Y": Y, "weights": w}
    updates, state = updated(optimizer, grads, state, params, **looks)
    return optax.apply_updates(params, updates), state, J


def train_step(
    optimizer: optax.GradientTransformation, backward: Backward = manual_backward
) -> Step:
    """A compiled step: W := W - update(dW), b := b - update(db), with the update of `optimizer`.

    The step gives params and state back changed, and gives their old memory to the new ones: use
    what it returns, and no longer what it was given.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 1], output="identity")
    >>> optimizer = optax.sgd(0.1)
    >>> step, state = dp.train_step(optimizer), optimizer.init(params)
    >>> X, Y = jnp.ones((3, 5)), jnp.ones((1, 5))
    >>> params, state, J = step(params, state, X, Y)
    >>> params, state, J_next = step(params, state, X, Y)
    >>> bool(J_next < J)
    True

    Args:
        optimizer: an optax transformation.
        backward: (cache, Y, weights) to gradients like params.

    Returns:
        step(params, state, X, Y, weights=None) -> (params, state, J), with J before the update.

    Raises:
        TypeError: `optimizer` is not an optax transformation.
    """
    check_training(optimizer, backward)

    def checked(
        params: Params, state: optax.OptState, X: Array, Y: Array, weights: ArrayLike | None = None
    ) -> tuple[Params, optax.OptState, Array]:
        w = None
        if weights is not None:
            w = example_weights(weights, X.shape[-1], wide(params[0].W.dtype))
        return step(params, state, X, Y, w, optimizer=optimizer, backward=backward)

    return jax.jit(checked, donate_argnums=(0, 1))


def minibatch(
    carry: Carry,
    X: Array,
    Y: Array,
    w: Array | None,
    share: Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward,
) -> Carry:
    """One step on a minibatch with an example per row; the carry is that of the next.

    Its J counts by `share` in the mean over minibatches: by default the sum of w, or its examples.
    """
    params, state, (total, weight) = carry
    params, state, J = step(params, state, X.T, Y.T, w, optimizer=optimizer, backward=backward)
    if share is None:
        share = jnp.asarray(X.shape[0], total.dtype) if w is None else jnp.sum(w)
    return params, state, (total + share * J.astype(total.dtype), weight + share)


def no_sums(params: Params) -> Sums:
    """The sums before the first minibatch of an epoch."""
    zero = jnp.zeros((), wide(params[0].W.dtype))
    return zero, zero


def end_of_epoch(
    params: Params,
    state: optax.OptState,
    sums: Sums,
    seen: Mapping[str, Array] = MappingProxyType({}),
) -> Trained:
    """What an epoch gives.

    Returns:
        params, state, the mean J as "cost" beside what else was seen, and whether J and the params
        are finite.
    """
    J = sums[0] / jnp.where(sums[1] > 0, sums[1], 1)
    return params, state, {"cost": J, **seen}, all_finite((params, J))


def all_finite(tree: Any) -> Array:
    """Whether every number in it is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def one_epoch(
    params: Params,
    state: optax.OptState,
    key: Array,
    epoch: int | Array,
    X: Array,
    Y: Array,
    weights: Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward = manual_backward,
    batch_size: int,
    record: Recorded | None = None,
    record_every: int = 1,
    shards: int = 1,
) -> Trained:
    """One epoch: every example once, in minibatches of a random order.

    What the last minibatch lacks is filled with examples of weight 0. The data is an argument, not
    a closure, which the compiler would fold; and it has one example per row, so that a minibatch is
    gathered from whole rows.

    Args:
        params: the layers.
        state: of the optimizer.
        key: a JAX random key, for the order.
        epoch: which one it is: the order is drawn from `key` and this number.
        X: (m, n_0), one example per row.
        Y: (m, n_L), one example per row.
        weights: (m,), one per example.
        optimizer: an optax transformation.
        backward: (cache, Y, weights) to gradients like params.
        batch_size: examples per step.
        record: what to see of the layers, of (cache, dZ, updates), or None.
        record_every: steps from one record to the next.
        shards: parts of the data that are shuffled apart, each of which gives the same number of
            examples to every minibatch: where each lies on a device of its own, none is exchanged.

    Returns:
        What `end_of_epoch` gives; each minibatch's J is taken before its step. Records have a
        leading axis.
    """
    m = X.shape[0]
    index, counted = minibatches(jax.random.fold_in(key, epoch), m, batch_size, shards)
    steps, w = len(index), weights
    if steps * batch_size > m and w is None:
        w = jnp.ones(m, wide(params[0].W.dtype))
    train = partial(minibatch, optimizer=optimizer, backward=backward)
    watch = watching(record, record_every, steps, params, X[:batch_size], Y[:batch_size])

    def of_batch(
        carry: tuple[Carry, Any], batch: tuple[Array, Array]
    ) -> tuple[tuple[Carry, Any], None]:
        before, seen = carry
        index, count = batch
        X_batch, Y_batch = gathered(X, index), gathered(Y, index)
        w_batch = None if w is None else jnp.where(count, gathered(w, index), 0)
        after = train(before, X_batch, Y_batch, w_batch)
        check_state(before[1], after[1])
        return (after, watch.see(seen, before[0], after[0], X_batch, Y_batch)), None

    start = (params, state, no_sums(params)), watch.nothing
    (trained, seen), _ = jax.lax.scan(of_batch, start, (index, counted))
    return end_of_epoch(*trained, named(seen))


train_epoch = Programs(
    one_epoch,
    static=("optimizer", "backward", "batch_size", "record", "record_every", "shards"),
    donate_argnums=(1,),  # the state
)


def check_training(optimizer: optax.GradientTransformation, backward: Backward) -> None:
    """Raise unless it is an optax transformation, which goes with that backward pass.

    Raises:
        TypeError: `optimizer` is anything else, such as its name.
        ValueError: `in_backward` with another backward pass than its own.
    """
    check_optimizer(optimizer)
    if isinstance(optimizer, InBackward) and backward is not manual_backward:
        raise ValueError(
            "backward must be left out with in_backward, whose backward pass is its own, got"
            f" {backward!r}"
        )
