"""Private training (DP-SGD): sample examples, clip their gradients, sum them, add noise.

What is private: the parameters after every step, and whatever is computed from them later. The
guarantee holds against anyone, whatever they know about the other examples.

What is not private, because it is computed from the data without noise:

- the cost in the history, also where a callback or an error message shows it;
- the validation set, and the epoch that early stopping chooses with it;
- a folder of checkpoints, which has the history and checksums of the data and of the key;
- hyperparameters that were tuned on the data before, and a scaling of X computed from the data.

The key determines the samples and the noise, so anyone who has it or guesses it can subtract the
noise. It must be secret, and new in each call, for instance
jax.random.wrap_key_data(numpy.frombuffer(os.urandom(8), numpy.uint32)).

Two limits remain. JAX's default generator, Threefry, is made for simulation, not for cryptography.
And the proof assumes real numbers, while arithmetic rounds (Mironov 2012, On Significance of the
Least Significant Bits for Differential Privacy).

Poisson sampling: the accountant assumes that each step takes each example independently with
probability q. The number of examples therefore varies from step to step, but a compiled program
needs fixed shapes. Padding to the largest possible sample, m, would be slow, and truncating large
samples would break the guarantee. So a step processes its sample in blocks of fixed size, with a
loop that runs as often as needed. The size is chosen so that one block is almost always enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from deepprop._arithmetic import wide
from deepprop._checks import check_above_zero
from deepprop.backprop import error_signals, gradients, manual_backward
from deepprop.layers import Cache, Layer, Params, like, number_of_layers
from deepprop.mixed_precision import with_compute_dtype
from deepprop.network import cost
from deepprop.optimizers.optax_calls import check_state, updated
from deepprop.signals.clipping import clip_factors, max_norms
from deepprop.signals.per_example import per_example_norms
from deepprop.training.accountant import noise_for, spending
from deepprop.training.epoch import Sums, Trained, all_finite, end_of_epoch, no_sums
from deepprop.training.examples import Data, dropout_key, forward_checked, identity_of_data
from deepprop.training.loop import Training
from deepprop.training.programs import Programs
from deepprop.walk import by_entry, layer_map, recomputed


@dataclass(frozen=True)
class Privacy:
    """The (epsilon, delta)-differential privacy that `fit(..., privacy=)` guarantees.

    >>> Privacy(max_norm=1.0, delta=1e-5, epsilon=3.0)
    Privacy(max_norm=1.0, delta=1e-05, epsilon=3.0, noise_multiplier=None, gamma=None)

    Attributes:
        max_norm: C, as for `clipped_backward`: one number, or a tuple of L numbers.
        delta: the probability with which the bound may fail; choose it far below 1 / m.
        epsilon: what the whole run may spend; the noise is computed from it. Set either this or
            `noise_multiplier`.
        noise_multiplier: sigma; the standard deviation of the noise is sigma times the largest norm
            that one example's clipped gradient can have.
        gamma: as for `clipped_backward`: scale every gradient to about C instead of clipping.

    Raises:
        ValueError: a number is out of range, or both or neither of `epsilon` and
            `noise_multiplier` are set.
        TypeError: a value is not a real number.
    """

    max_norm: float | tuple[float, ...]
    delta: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                "privacy must have one of epsilon and noise_multiplier, got"
                f" {self.epsilon} and {self.noise_multiplier}"
            )
        for name in ("max_norm", "delta", "epsilon", "noise_multiplier", "gamma"):
            value = getattr(self, name)
            if value is not None:  # as Python numbers: a Privacy is a static argument of programs
                check_above_zero(name, value)
                several = name == "max_norm" and np.ndim(value) == 1
                number = tuple(map(float, value)) if several else _number(name, value)
                object.__setattr__(self, name, number)
        if not self.delta < 1:
            raise ValueError(f"delta must be below 1, got {self.delta}")


def _number(name: str, value: Any) -> float:
    if np.ndim(value):
        raise ValueError(f"{name} must be one number, got {value}")
    return float(value)


def check_alone(privacy: Privacy, others: Mapping[str, Any]) -> None:
    """Raise unless the arguments of `fit` that privacy would not cover are None.

    Args:
        privacy: the argument of `fit`.
        others: the other arguments, by name.

    Raises:
        ValueError: one of them is not None.
        TypeError: `privacy` is not a `Privacy`.
    """
    if not isinstance(privacy, Privacy):
        raise TypeError(f"privacy must be a dp.Privacy, got {privacy!r}")
    for name, other in others.items():
        if other is not None:
            raise ValueError(f"{name} must be left out with privacy, which would not cover it")


def private_training(
    privacy: Privacy,
    data: Data,
    key: Array,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    epochs: int,
    first_epoch: int,
) -> Training:
    """Return the way of training by DP-SGD.

    The noise is computed for all epochs of this call. The history gets "epsilon", spent so far.
    """
    X, Y = data.X, data.Y
    q, steps = sampling(X.shape[0], batch_size)
    sigma = privacy.noise_multiplier or noise_for(
        privacy.epsilon or 0.0, sampling_rate=q, steps=steps * epochs, delta=privacy.delta
    )
    spent = spending(sigma, q, steps * epochs, privacy.delta)

    def train(params: Params, state: optax.OptState, epoch: int) -> Trained:
        params, state, entries, finite = private_epoch(
            params, state, key, epoch, X, Y, sigma,
            optimizer=optimizer, privacy=privacy, batch_size=batch_size,
        )  # fmt: skip
        done = epoch - first_epoch + 1
        return params, state, {**entries, "epsilon": spent(done * steps)}, finite

    def identity() -> dict[str, Any]:
        text = f"noise {sigma} of {privacy.max_norm}, {privacy.gamma}, {privacy.delta}"
        return {**identity_of_data(data, key, batch_size, manual_backward), "privacy": text}

    return Training(train, identity, data.advice)


def sampling(m: int, batch_size: int) -> tuple[float, int]:
    """Return q, the probability with which a step takes an example, and the steps per epoch."""
    return batch_size / m, -(-m // batch_size)


def one_private_epoch(
    params: Params,
    state: optax.OptState,
    key: Array,
    epoch: int | Array,
    X: Array,
    Y: Array,
    noise_multiplier: float,
    *,
    optimizer: optax.GradientTransformation,
    privacy: Privacy,
    batch_size: int,
) -> Trained:
    """Train for one epoch of DP-SGD: (sum_i min(1, C / ||g_i||) g_i + noise) / batch_size.

    Each step takes each example independently with probability batch_size / m. So an epoch is not a
    pass over the data, but m / batch_size steps, rounded up. The sum is over the examples taken. It
    is divided by their expected number, `batch_size`, because their actual number is not public.
    The optimizer sees only this gradient.

    Args:
        params: the layers.
        state: the optimizer's state.
        key: a JAX random key, for the samples and the noise.
        epoch: its number.
        X: (m, n_0), one example per row.
        Y: (m, n_L), one example per row.
        noise_multiplier: sigma, in units of C.
        optimizer: an optax transformation.
        privacy: has the clipping norm C and gamma.
        batch_size: the expected number of examples per step.

    Returns:
        The result of `end_of_epoch`. J is the mean over the examples taken, and is not private; so
        only the parameters decide whether the result counts as finite.
    """
    m, dtype = X.shape[0], wide(params[0].W.dtype)
    q, steps = sampling(m, batch_size)
    C = max_norms(privacy.max_norm, number_of_layers(params), dtype)
    deviation = jnp.sqrt(jnp.sum(jnp.square(C))) * noise_multiplier
    block = min(m, batch_size + 2 * round(batch_size**0.5))  # holds 98 % of all samples

    def step(carry: tuple[Params, optax.OptState, Sums], key: Array) -> tuple[Any, None]:
        params, state, sums = carry
        of_sample, of_noise = jax.random.split(key)
        taken = jax.random.bernoulli(of_sample, q, (m,))
        total, sums = _clipped_sum(
            params, X, Y, taken, sums,
            block=block, privacy=privacy, key=dropout_key(params, key),
        )  # fmt: skip
        noisy = _with_noise(total, deviation, of_noise)
        grads = jax.tree.map(lambda g, p: (g / batch_size).astype(p.dtype), noisy, params)
        updates, new = updated(optimizer, grads, state, params)
        check_state(state, new)
        return (optax.apply_updates(params, updates), new, sums), None

    keys = jax.random.split(jax.random.fold_in(key, epoch), steps)
    carry, _ = jax.lax.scan(step, (params, state, no_sums(params)), keys)
    params, state, entries, _ = end_of_epoch(*carry)
    return params, state, entries, all_finite(params)


private_epoch = Programs(
    one_private_epoch,
    static=("optimizer", "privacy", "batch_size"),
    donate_argnums=(1,),  # the state
)


def _clipped_sum(
    params: Params,
    X: Array,
    Y: Array,
    taken: Array,
    sums: Sums,
    *,
    block: int,
    privacy: Privacy,
    key: Array | None = None,
) -> tuple[Params, Sums]:
    """Sum the clipped g_i over the examples taken, one block at a time, and add their J to `sums`.

    The sum is computed in the wide dtype: with narrow products, rounding could make the clipped
    gradient of one example larger than C.
    """
    m, dtype = taken.shape[0], wide(params[0].W.dtype)
    (index,) = jnp.nonzero(taken, size=m + block, fill_value=0)
    count = jnp.sum(taken)
    wide_params = with_compute_dtype(jax.tree.map(lambda p: p.astype(dtype), params), None)

    def next_block(carry: tuple[Array, Params, Sums]) -> tuple[Array, Params, Sums]:
        done, total, (J_sum, weight) = carry
        i = jax.lax.dynamic_slice(index, (done,), (block,))
        counted = done + jnp.arange(block) < count
        of_block = None if key is None else jax.random.fold_in(key, done)
        cache = forward_checked(wide_params, X[i].T, of_block)
        clipped = _clipped_sum_of_block(cache, Y[i].T, counted, privacy)
        w = counted.astype(dtype)
        n = jnp.sum(w)
        sums = J_sum + n * cost(cache, Y[i].T, w), weight + n
        return done + block, jax.tree.map(jnp.add, total, clipped), sums

    start = jnp.zeros((), count.dtype), jax.tree.map(jnp.zeros_like, wide_params), sums
    _, total, sums = jax.lax.while_loop(lambda carry: carry[0] < count, next_block, start)
    return like(params, total), sums


def _clipped_sum_of_block(cache: Cache, Y: Array, counted: Array, privacy: Privacy) -> Params:
    """Sum min(1, C / ||g_i||) g_i over the examples that count and whose ||g_i|| is finite.

    The others are removed with `where` from both factors of each outer product. A factor of 0 would
    not do: 0 times inf is nan.
    """
    cache, dZ = recomputed(cache), error_signals(cache, Y)
    counted = counted & jnp.isfinite(per_example_norms(cache, dZ))
    factors = clip_factors(cache, dZ, privacy.max_norm, privacy.gamma)

    def masked(P: Array) -> Array:
        return jnp.where(jnp.broadcast_to(counted, P.shape), P, 0)

    def scaled(_: Layer, factor: Array, dZ: Array) -> Array:
        return factor[None, :] * dZ

    clipped = map(masked, layer_map(scaled, cache.params, by_entry(cache.params, factors), dZ))
    cache = replace(cache, A=tuple(map(masked, cache.A)))
    m = counted.shape[0]
    total: Params = jax.tree.map(lambda mean: m * mean, gradients(cache, tuple(clipped)))
    return total


def _with_noise(total: Params, deviation: Array, key: Array) -> Params:
    """Add independent normal noise of that standard deviation to each entry."""
    leaves, structure = jax.tree.flatten(total)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    noisy_total: Params = jax.tree.unflatten(structure, noisy)
    return noisy_total
