"""Private training (DP-SGD): sample, clip, sum, add noise.

Private are all parameters, after every step, against anyone, whatever they know about the other
examples; and so is whatever is computed from the parameters later.

Not private are the cost in the history, what a callback sees of it, and the text of an error, which
come from the training data; a validation set, and what early stopping takes from it; a folder of
checkpoints, which has the history and checksums of the data and the key; hyperparameters tried on
the data before; a scaling of X computed from the data.

The key makes the samples and the noise: whoever has it, or guesses it, can subtract the noise. It
must be secret, and new in each call, for instance
jax.random.wrap_key_data(numpy.frombuffer(os.urandom(8), numpy.uint32)). JAX's generator, Threefry,
is made for simulation, not for cryptography. And arithmetic is rounded, which the proof does not
cover (Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy).

The accountant assumes Poisson sampling: each step takes each example independently with probability
q, so the number of examples in a step varies. A compiled program needs fixed shapes. A step
therefore goes through the examples it took in blocks of fixed size, of which one is almost always
enough.
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
from deepprop.backprop import error_signals, gradients
from deepprop.layers import Cache, Layer, Params, like, number_of_layers
from deepprop.mixed_precision import with_compute_dtype
from deepprop.network import cost, forward
from deepprop.optimizers.optax_calls import check_state, updated
from deepprop.signals.clipping import clip_factors, max_norms
from deepprop.signals.per_example import per_example_norms
from deepprop.training.accountant import noise_for, spending
from deepprop.training.epoch import Sums, Trained, all_finite, end_of_epoch, no_sums
from deepprop.training.loop import Train
from deepprop.training.programs import Programs
from deepprop.walk import by_entry, layer_map, recomputed


@dataclass(frozen=True)
class Privacy:
    """The (epsilon, delta)-differential privacy that `fit(..., privacy=)` guarantees.

    >>> Privacy(max_norm=1.0, delta=1e-5, epsilon=3.0)
    Privacy(max_norm=1.0, delta=1e-05, epsilon=3.0, noise_multiplier=None, gamma=None)

    Attributes:
        max_norm: C, as for `clipped_backward`: one number, or a tuple of L numbers.
        delta: the probability with which the bound may fail; far below 1 / m.
        epsilon: what the whole run may spend; the noise is chosen for it. Give either this or
        noise_multiplier: sigma; the standard deviation of the noise is sigma times the largest norm
            of one example's clipped gradient.
        gamma: as for `clipped_backward`: scales all gradients to about C instead of clipping.

    Raises:
        ValueError: a number is out of its range, or not exactly one of `epsilon` and
            `noise_multiplier` is given.
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
            if value is not None:  # as plain numbers, by which programs are distinguished
                check_above_zero(name, value)
                several = name == "max_norm" and np.ndim(value) == 1
                plain = tuple(map(float, value)) if several else _number(name, value)
                object.__setattr__(self, name, plain)
        if not self.delta < 1:
            raise ValueError(f"delta must be below 1, got {self.delta}")


def _number(name: str, value: Any) -> float:
    if np.ndim(value):
        raise ValueError(f"{name} must be one number, got {value}")
    return float(value)


def check_alone(privacy: Privacy, others: Mapping[str, Any]) -> None:
    """Raise unless the other arguments of `fit` are None, which privacy would not cover.

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
    key: Array,
    X: Array,
    Y: Array,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    epochs: int,
    first_epoch: int,
) -> tuple[Train, dict[str, Any]]:
    """Return the function that trains an epoch, and what identifies this way of training.

    The function returns the result of `private_epoch`, with the "epsilon" spent by this run so far.
    """
    q, steps = sampling(X.shape[0], batch_size)
    sigma = privacy.noise_multiplier or noise_for(
        privacy.epsilon or 0.0, sampling_rate=q, steps=steps * epochs, delta=privacy.delta
    )
    spent = spending(sigma, q, steps * epochs, privacy.delta)

    def train(params: Params, state: optax.OptState, epoch: int) -> Trained:
        params, state, seen, finite = private_epoch(
            params, state, key, epoch, X, Y, sigma,
            optimizer=optimizer, privacy=privacy, batch_size=batch_size,
        )  # fmt: skip
        done = epoch - first_epoch + 1
        return params, state, {**seen, "epsilon": spent(done * steps)}, finite

    noise = f"noise {sigma} of {privacy.max_norm}, {privacy.gamma}, {privacy.delta}"
    return train, {"privacy": noise}


def sampling(m: int, batch_size: int) -> tuple[float, int]:
    """Return the probability q with which a step takes an example, and the steps per epoch."""
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

    Each step takes each example with probability batch_size / m, independently, so an epoch is
    m / batch_size steps rather than a pass. The sum is over the examples taken, and is divided by
    their expected number, `batch_size`. The optimizer sees only this gradient.

    Args:
        params: the layers.
        state: the optimizer's state.
        key: a JAX random key, for the samples and the noise.
        epoch: its number.
        X: (m, n_0), one example per row.
        Y: (m, n_L), one example per row.
        noise_multiplier: sigma.
        optimizer: an optax transformation.
        privacy: its max_norm and gamma.
        batch_size: the expected number of examples per step.

    Returns:
        The same as `one_epoch`; J is the mean over the examples taken, and is not private.
    """
    m, dtype = X.shape[0], wide(params[0].W.dtype)
    q, steps = sampling(m, batch_size)
    C = max_norms(privacy.max_norm, number_of_layers(params), dtype)
    deviation = jnp.sqrt(jnp.sum(jnp.square(C))) * noise_multiplier
    at_once = min(m, batch_size + 2 * round(batch_size**0.5))  # one block holds 98 % of all samples

    def step(carry: tuple[Params, optax.OptState, Sums], key: Array) -> tuple[Any, None]:
        params, state, sums = carry
        of_sample, of_noise = jax.random.split(key)
        taken = jax.random.bernoulli(of_sample, q, (m,))
        total, sums = _add_up(params, X, Y, taken, sums, at_once=at_once, privacy=privacy)
        noisy = _with_noise(total, deviation, of_noise)
        grads = jax.tree.map(lambda g, p: (g / batch_size).astype(p.dtype), noisy, params)
        updates, new = updated(optimizer, grads, state, params)
        check_state(state, new)
        return (optax.apply_updates(params, updates), new, sums), None

    keys = jax.random.split(jax.random.fold_in(key, epoch), steps)
    carry, _ = jax.lax.scan(step, (params, state, no_sums(params)), keys)
    params, state, seen, _ = end_of_epoch(*carry)
    return params, state, seen, all_finite(params)  # J is not private, and must not end the run


private_epoch = Programs(
    one_private_epoch,
    static=("optimizer", "privacy", "batch_size"),
    donate_argnums=(1,),  # the state
)


def _add_up(
    params: Params, X: Array, Y: Array, taken: Array, sums: Sums, *, at_once: int, privacy: Privacy
) -> tuple[Params, Sums]:
    """Sum the clipped g_i over the examples taken, `at_once` at a time; also sum their J."""
    m, dtype = taken.shape[0], wide(params[0].W.dtype)
    (index,) = jnp.nonzero(taken, size=m + at_once, fill_value=0)
    count = jnp.sum(taken)

    # In the wide dtype, so that rounding can hardly exceed the bound of a clipped gradient.
    wide_params = with_compute_dtype(jax.tree.map(lambda p: p.astype(dtype), params), None)

    def further(carry: tuple[Array, Params, Sums]) -> tuple[Array, Params, Sums]:
        done, total, (J_sum, weight) = carry
        some = jax.lax.dynamic_slice(index, (done,), (at_once,))
        counted = done + jnp.arange(at_once) < count
        _, cache = forward(wide_params, X[some].T)
        clipped = _sum_of_clipped(cache, Y[some].T, counted, privacy)
        w = counted.astype(dtype)
        n = jnp.sum(w)
        sums = J_sum + n * cost(cache, Y[some].T, w), weight + n
        return done + at_once, jax.tree.map(jnp.add, total, clipped), sums

    start = jnp.zeros((), count.dtype), jax.tree.map(jnp.zeros_like, wide_params), sums
    _, total, sums = jax.lax.while_loop(lambda carry: carry[0] < count, further, start)
    return like(params, total), sums


def _sum_of_clipped(cache: Cache, Y: Array, counted: Array, privacy: Privacy) -> Params:
    """Sum min(1, C / ||g_i||) g_i over the examples that count and whose ||g_i|| is finite.

    A non-finite gradient would reach the sum despite a factor of 0, because 0 times it is not 0.
    """
    cache, dZ = recomputed(cache), error_signals(cache, Y)
    counted = counted & jnp.isfinite(per_example_norms(cache, dZ))
    factors = clip_factors(cache, dZ, privacy.max_norm, privacy.gamma)

    def counted_only(P: Array) -> Array:
        return jnp.where(jnp.broadcast_to(counted, P.shape), P, 0)

    def scaled(_: Layer, factor: Array, dZ: Array) -> Array:
        return factor[None, :] * dZ

    clipped = map(
        counted_only, layer_map(scaled, cache.params, by_entry(cache.params, factors), dZ)
    )
    cache = replace(cache, A=tuple(map(counted_only, cache.A)))
    m = counted.shape[0]
    total: Params = jax.tree.map(lambda mean: m * mean, gradients(cache, tuple(clipped)))
    return total


def _with_noise(total: Params, deviation: Array, key: Array) -> Params:
    """Add independent normal noise to each entry."""
    leaves, structure = jax.tree.flatten(total)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    with_noise: Params = jax.tree.unflatten(structure, noisy)
    return with_noise
