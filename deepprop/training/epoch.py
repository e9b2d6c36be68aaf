"""Training: one step, and one epoch as one compiled program.

A step is a forward pass, a backward pass and the update of an optax transformation. An epoch is a
`lax.scan` of steps over minibatches, which are shuffled on the device.

An epoch donates the optimizer's state: the new state is written into the memory of the old one. It
does not donate the parameters, because a run may have to return those of an earlier epoch: after a
non-finite cost, or with patience. `train_step` donates both: its caller has the loop, and can copy.

`train_step` checks its arguments, and `fit` and its siblings check theirs before the first epoch. A
compiled epoch trusts them: it calls the walk and the functions that don't check.
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

from deepprop._arguments import output_of
from deepprop._arithmetic import wide
from deepprop._checks import check_shape, example_weights, real_array
from deepprop._own_backward import as_layers
from deepprop.backprop import Backward, manual_backward, mean_gradient
from deepprop.layers import Cache, Params
from deepprop.network import forward, mean_loss
from deepprop.optimizers.fused_update import InBackward, check_optimizer, update_in_backward
from deepprop.optimizers.optax_calls import check_state, updated
from deepprop.outputs import target_rows
from deepprop.training.examples import dropout_key, forward_checked
from deepprop.training.programs import Programs
from deepprop.training.record import Recorded, columns_of, recorder
from deepprop.training.shuffle import gathered, minibatches

Step = Callable[..., tuple[Params, optax.OptState, Array]]
Sums = tuple[Array, Array]  # sum of w J, and sum of w, over an epoch's minibatches so far
Carry = tuple[Params, optax.OptState, Sums]
Trained = tuple[Params, optax.OptState, dict[str, Array], Array]
fold_in_each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))


def step(
    cache: Cache,
    Y: Array,
    w: Array | None,
    state: optax.OptState,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward,
) -> tuple[Params, optax.OptState, Array]:
    """Take one step from the cache of its forward pass; Y and the weights were checked.

    Returns:
        The new params and state, and J before the step.
    """
    params = cache.params
    J = mean_loss(cache, Y.astype(cache.A[-1].dtype), w)
    if isinstance(optimizer, InBackward):
        return *update_in_backward(optimizer, cache, Y, w, state, J), J
    backward = mean_gradient if backward is manual_backward else backward
    grads = as_layers(backward(cache, Y, w), params)
    # Some optimizers use more than the gradient, such as the cost (optax's reduce_on_plateau) or
    # the cache (dp.kfac); the others ignore it.
    extra = {"value": J, "cache": cache, "Y": Y, "weights": w}
    updates, state = updated(optimizer, grads, state, params, **extra)
    return optax.apply_updates(params, updates), state, J


def train_step(
    optimizer: optax.GradientTransformation, backward: Backward = manual_backward
) -> Step:
    """Compile a step: W := W - update(dW), b := b - update(db), with the update of `optimizer`.

    The input buffers are donated: use the returned params and state, not the ones you passed in.

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
        backward: maps (cache, Y, weights) to gradients like params.

    Returns:
        step(params, state, X, Y, weights=None, key=None) -> (params, state, J), with X (n_0, m), Y
        (n_L, m), weights (m,), and J before the update. A network with dropout needs a key.

    Raises:
        TypeError: `optimizer` is not an optax transformation.
        ValueError: `backward` together with `in_backward`. The step itself raises if the shapes of
            its arguments don't fit.
    """
    check_training(optimizer, backward)

    def checked(
        params: Params,
        state: optax.OptState,
        X: Array,
        Y: Array,
        weights: ArrayLike | None = None,
        key: Array | None = None,
    ) -> tuple[Params, optax.OptState, Array]:
        w = None
        if weights is not None:
            w = example_weights(weights, X.shape[-1], wide(params[0].W.dtype))
        check_dropout(params, key)
        _, cache = forward(params, X, key=key)
        Y = real_array("Y", Y)
        n_L, m = cache.A[-1].shape
        check_shape("Y", Y.shape, target_rows(output_of(params), n_L), m)
        return step(cache, Y, w, state, optimizer=optimizer, backward=backward)

    return jax.jit(checked, donate_argnums=(0, 1))


def minibatch(
    carry: Carry,
    X: Array,
    Y: Array,
    w: Array | None,
    share: Array | None = None,
    key: Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward,
) -> Carry:
    """Take one step on a minibatch with one example per row, and return the next carry.

    The epoch's J is a weighted mean over minibatches; `share` is the weight of this one. By default
    it is the sum of w, or the number of examples. `key` is for dropout.
    """
    params, state, (total, weight) = carry
    m, X, Y = X.shape[0], X.T, Y.T
    cache = forward_checked(params, X, key)
    params, state, J = step(cache, Y, w, state, optimizer=optimizer, backward=backward)
    if share is None:
        share = jnp.asarray(m, total.dtype) if w is None else jnp.sum(w)
    return params, state, (total + share * J.astype(total.dtype), weight + share)


def no_sums(params: Params) -> Sums:
    """Return the sums before the first minibatch of an epoch."""
    zero = jnp.zeros((), wide(params[0].W.dtype))
    return zero, zero


def end_of_epoch(
    params: Params,
    state: optax.OptState,
    sums: Sums,
    recorded: Mapping[str, Array] = MappingProxyType({}),
) -> Trained:
    """Return the result of an epoch.

    Returns:
        params, state, the epoch's entries of the history (the mean J as "cost", and the records),
        and whether J and params are finite.
    """
    J = sums[0] / jnp.where(sums[1] > 0, sums[1], 1)
    return params, state, {"cost": J, **recorded}, all_finite((params, J))


def all_finite(tree: Any) -> Array:
    """Return whether every value in a pytree is finite.

    0 x is 0 for a finite x, and nan for any other; XLA keeps the product, unless it is told that no
    number is nan. Compiling this sum takes half as long as compiling a test of each number, which
    was a tenth of what an epoch takes to compile.
    """
    sums = [jnp.sum(0 * leaf, dtype=leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.isfinite(jnp.stack([total.astype(jnp.float32) for total in sums])))


def one_epoch(
    params: Params,
    state: optax.OptState,
    key: Array,
    epoch: int | Array,
    X: Array,
    Y: Array,
    weights: Array | None = None,
    m: Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    backward: Backward = manual_backward,
    batch_size: int,
    record: Recorded | None = None,
    record_every: int = 1,
    shards: int = 1,
) -> Trained:
    """Train for one epoch: every example once, in minibatches in a random order.

    The last minibatch is filled with examples of weight 0, so that all have one shape. The data is
    an argument rather than a closure, which the compiler would treat as a constant. It has one
    example per row, because rows are contiguous in memory and so cheap to gather.

    Args:
        params: the layers.
        state: the optimizer's state.
        key: a JAX random key, for the order and for dropout.
        epoch: its number; the order depends on `key` and this number.
        X: (M, n_0), one example per row.
        Y: (M, n_L), one example per row.
        weights: (M,), one per example.
        m: the number of examples, if the last rows are none; M is then a multiple of the batch
            size, and there is one shard. None if all rows are examples.
        optimizer: an optax transformation.
        backward: maps (cache, Y, weights) to gradients like params.
        batch_size: examples per step.
        record: maps (cache, dZ, updates) to a pytree of arrays to record; None for no records.
        record_every: steps from one record to the next.
        shards: parts of the data that are shuffled separately. Each contributes the same number of
            examples to every minibatch, so that none moves if every device has its own shard.

    Returns:
        The result of `end_of_epoch`. "cost" is the mean of every J before its step. Records have a
        leading axis.
    """
    length, w = X.shape[0], weights
    key = jax.random.fold_in(key, epoch)
    index, counted = (
        minibatches(key, length, batch_size, shards)
        if m is None
        else minibatches(key, m, batch_size, length=length)
    )
    steps, of_dropout = len(index), dropout_key(params, key)
    keys = of_dropout if of_dropout is None else fold_in_each(of_dropout, jnp.arange(steps))
    if w is None and (m is not None or steps * batch_size > length):
        w = jnp.ones(length, wide(params[0].W.dtype))
    train = partial(minibatch, optimizer=optimizer, backward=backward)
    # The scan carries the records, so their shapes must be known before it: a minibatch shows them.
    records = recorder(record, record_every, steps, params, X[:batch_size], Y[:batch_size], key)

    def of_batch(
        carry: tuple[Carry, Any], batch: tuple[Array, Array, Array | None]
    ) -> tuple[tuple[Carry, Any], None]:
        before, recorded = carry
        index, count, key = batch
        X_batch, Y_batch = gathered(X, index), gathered(Y, index)
        w_batch = None if w is None else jnp.where(count, gathered(w, index), 0)
        after = train(before, X_batch, Y_batch, w_batch, key=key)
        check_state(before[1], after[1])
        recorded = records.update(recorded, before[0], after[0], X_batch, Y_batch, key)
        return (after, recorded), None

    start = (params, state, no_sums(params)), records.empty
    (trained, recorded), _ = jax.lax.scan(of_batch, start, (index, counted, keys))
    return end_of_epoch(*trained, columns_of(recorded))


train_epoch = Programs(
    one_epoch,
    static=("optimizer", "backward", "batch_size", "record", "record_every", "shards"),
    donate_argnums=(1,),  # the state
)


def check_dropout(params: Params, key: Array | None) -> None:
    """Raise if the network has dropout and no key is given.

    Raises:
        ValueError: it does, and `key` is None.
    """
    if key is None and any(layer.dropout for layer in params):
        raise ValueError("key must be a JAX random key, as the network has dropout, got None")


def check_training(optimizer: optax.GradientTransformation, backward: Backward) -> None:
    """Raise unless `optimizer` is an optax transformation that works with that backward pass.

    Raises:
        TypeError: `optimizer` is anything else, such as its name.
        ValueError: it is an `in_backward`, and `backward` is not `manual_backward`.
    """
    check_optimizer(optimizer)
    if isinstance(optimizer, InBackward) and backward is not manual_backward:
        raise ValueError(
            "backward must be left out with in_backward, which has its own backward pass, got"
            f" {backward!r}"
        )
