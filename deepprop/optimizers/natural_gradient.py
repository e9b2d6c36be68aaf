"""K-FAC as an optax transformation: gradients times the inverse of the Fisher's two factors.

A layer's block of the Fisher matrix is about A (x) G, with its factors A = mean of a a^T and
G = mean of dz dz^T. The inverse of a Kronecker product is that of its factors, so the natural
gradient of a layer is two products of small matrices: G^-1 [dW db] A^-1.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import product, wide
from deepprop._checks import check_above_zero, check_key, real_array
from deepprop.backprop import error_signals
from deepprop.layers import Cache, Layer, Params
from deepprop.optimizers.quadratic_model import by_quadratic_model, check_whole
from deepprop.signals.fisher import Factors, kfac_factors, sampled_targets
from deepprop.walk import layer_map


class KfacState(NamedTuple):
    """What K-FAC remembers.

    Attributes:
        steps: so far.
        key: for the targets that are drawn.
        factors: their moving averages, layer by layer.
        inverses: of the damped averages, as they were last computed.
    """

    steps: Array
    key: Array
    factors: tuple[Factors, ...]
    inverses: tuple[Factors, ...]


def scale_by_kfac(
    *,
    damping: float = 0.01,
    decay: float = 0.95,
    every: int = 5,
    key: Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """G^-1 [dW db] A^-1 for each layer, with the damped moving averages of its factors A and G.

    Damping is split over the factors: A + pi sqrt(damping) I and G + sqrt(damping) / pi I, where
    pi^2 = (tr(A) / dim(A)) / (tr(G) / dim(G)).

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> _, cache = dp.forward(params, jax.random.normal(jax.random.key(1), (3, 5)))
    >>> dZ = dp.error_signals(cache, jax.nn.one_hot(jnp.zeros(5, int), 2, axis=0))
    >>> optimizer = scale_by_kfac(damping=0.01)
    >>> natural, state = optimizer.update(dp.gradients(cache, dZ), optimizer.init(params),
    ...                                   factors=dp.kfac_factors(cache, dZ))
    >>> natural[0].W.shape
    (4, 3)

    Args:
        damping: added to the curvature, in its units; `update` may be given another.
        decay: of the moving averages; step t takes min(1 - 1/t, decay).
        every: steps from one computation of the inverses to the next; the first `every` steps
            compute them each time, as the averages still change much.
        key: a JAX random key for the targets that are drawn; None takes jax.random.key(0).

    Returns:
        An optax transformation. Its `update` takes `factors=`, what `kfac_factors` gave; or
        `cache=` (and `weights=`), as `fit` and `train_step` give it, and then makes the factors of
        the Fisher itself, with targets drawn from the network's predictions.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `key` is no random key.

    Source:
        Martens and Grosse 2015, sections 3, 4.2, 5 and 6.3, arXiv:1503.05671.
    """
    check_above_zero("damping", damping)
    _check_share("decay", decay)
    if not isinstance(every, jax.Array) and (not isinstance(every, int) or every < 1):
        raise ValueError(f"every must be a whole number above 0, got {every!r}")
    if key is not None:
        check_key(key)

    def init(params: Params) -> KfacState:
        check_whole("kfac", params)
        start = jax.random.key(0) if key is None else jnp.copy(key)
        factors, inverses = (tuple(map(_identities, params)) for _ in range(2))
        return KfacState(jnp.zeros((), jnp.int32), start, factors, inverses)

    def update(
        grads: Params,
        state: KfacState,
        params: Params | None = None,
        *,
        factors: Sequence[Factors] | None = None,
        cache: Cache | None = None,
        weights: Array | None = None,
        damping: ArrayLike = damping,
        **_: Any,
    ) -> tuple[Params, KfacState]:
        if factors is None:
            factors = _fisher_factors(jax.random.fold_in(state.key, state.steps), cache, weights)
        steps = state.steps + 1
        mix = partial(_mix, steps=steps, decay=decay)
        average = jax.tree.map(mix, state.factors, tuple(factors))

        def inverse(_: Layer, factors: Factors) -> Factors:
            return _damped_inverses(factors, damping)

        inverses = jax.lax.cond(
            (steps % every == 0) | (steps <= every),
            lambda: tuple(layer_map(inverse, grads, average)),
            lambda: state.inverses,
        )
        natural = tuple(layer_map(_natural, grads, inverses))
        return natural, KfacState(steps, state.key, average, inverses)

    return optax.GradientTransformationExtraArgs(init, update)


def kfac(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    damping: float | None = None,
    min_damping: float = 1e-3,
    decay: float = 0.95,
    every: int = 5,
    momentum: float = 0.5,
    max_kl: float | None = 0.003,
    key: Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC: the natural gradient by Kronecker factors; no learning rate has to be chosen.

    How far to go along it and along the last step, and how much to damp, follow from the quadratic
    model of the cost (`by_quadratic_model`), for which minibatches should be large; below 32
    examples each step is judged by the next minibatch, which learns more slowly. With a learning
    rate the steps are that times the natural gradient, with momentum.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [2, 8, 1], hidden="tanh", output="sigmoid")
    >>> X = jax.random.normal(jax.random.key(1), (2, 200))
    >>> fit = dp.fit(params, dp.kfac(), X, X[:1] * X[1:] > 0, epochs=10, batch_size=100,
    ...              key=jax.random.key(2))
    >>> bool(fit.history["cost"][-1] < fit.history["cost"][0])
    True

    Args:
        learning_rate: None, a number, or an optax schedule.
        damping: added to the curvature, in its units: 0.1 without a learning rate, to begin with;
            0.003 with one.
        min_damping: without a learning rate, to which the damping may fall.
        decay: of the moving averages of the factors.
        every: steps from one computation of the inverses to the next.
        momentum: of the steps, with a learning rate; 0 for none.
        max_kl: with a learning rate, steps are shortened, before momentum, where they would change
            the predictions by more: half the step's squared length in the Fisher's metric, about
            the KL divergence, is at most this. With more momentum take less. None leaves them; then
            a step may be far too long while the averages are young.
        key: a JAX random key for the targets that are drawn.

    Returns:
        An optax transformation for `fit` and `train_step`. In a loop of your own its `update` takes
        `factors=` or `cache=`, as that of `scale_by_kfac`; without a learning rate it takes
        `value=`, `cache=` and `Y=` too, as that of `by_quadratic_model`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `key` is no random key.

    Source:
        Martens and Grosse 2015, arXiv:1503.05671; for `max_kl` Ba, Grosse and Martens 2017,
        Distributed Second-Order Optimization using Kronecker-Factored Approximations.
    """
    if damping is None:
        damping = 0.1 if learning_rate is None else 0.003
    natural = scale_by_kfac(damping=damping, decay=decay, every=every, key=key)
    _check_share("momentum", momentum)
    if max_kl is not None:
        check_above_zero("max_kl", max_kl)
    if learning_rate is None:
        return by_quadratic_model(natural, damping=damping, min_damping=min_damping)
    if not callable(learning_rate):
        check_above_zero("learning_rate", learning_rate)
    if max_kl is not None:
        natural = _shortened(natural, learning_rate, max_kl)
    return optax.chain(natural, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))


def _check_share(name: str, value: Any) -> None:
    """Raise unless it is from 0 to below 1, as far as it is known.

    Raises:
        ValueError: it is not.
        TypeError: it is no real number.
    """
    real_array(name, value)
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value}")


def _shortened(
    natural: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    max_kl: float,
) -> optax.GradientTransformationExtraArgs:
    """`natural`, times min(1, sqrt(max_kl / (1/2 rate^2 v . grad))) for its v.

    v is F^-1 grad, so v . grad is v's squared length in the Fisher's metric.
    """

    def update(grads: Params, state: KfacState, params: Any = None, **extra: Any) -> Any:
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        v, state = natural.update(grads, state, params, **extra)
        kl = jnp.square(rate) / 2 * jnp.maximum(_dot(v, grads), 0)
        scale = jnp.sqrt(max_kl / jnp.maximum(kl, max_kl))
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), v), state

    return optax.GradientTransformationExtraArgs(natural.init, update)


def _dot(v: Params, grads: Params) -> Array:
    pairs = zip(jax.tree.leaves(v), jax.tree.leaves(grads), strict=True)
    return jnp.sum(jnp.stack([jnp.sum(x * y, dtype=wide(x.dtype)) for x, y in pairs]))


def _fisher_factors(key: Array, cache: Cache | None, weights: Array | None) -> tuple[Factors, ...]:
    if cache is None:
        raise ValueError(
            "kfac must be given factors=dp.kfac_factors(cache, dZ) or cache=cache with its update"
        )
    return kfac_factors(cache, error_signals(cache, sampled_targets(key, cache)), weights)


def _identities(layer: Layer) -> Factors:
    *K, n, n_below = layer.W.shape
    one = [jnp.eye(size, dtype=wide(layer.W.dtype)) for size in (n_below + 1, n)]
    return Factors(*(jnp.broadcast_to(eye, (*K, *eye.shape)) for eye in one))


def _mix(old: Array, new: Array, steps: Array, decay: float) -> Array:
    kept = jnp.minimum(1 - 1 / steps.astype(old.dtype), decay)
    return kept * old + (1 - kept) * new.astype(old.dtype)  # of narrow products and float64


def _damped_inverses(factors: Factors, damping: ArrayLike) -> Factors:
    """(A + pi sqrt(damping) I)^-1 and (G + sqrt(damping) / pi I)^-1."""
    mean_A, mean_dZ = (jnp.trace(P) / len(P) for P in factors)
    pi = jnp.where(mean_dZ > 0, jnp.sqrt(mean_A / jnp.where(mean_dZ > 0, mean_dZ, 1)), 1)
    root = jnp.sqrt(jnp.asarray(damping, mean_A.dtype))
    return Factors(_inverse(factors.A, pi * root), _inverse(factors.dZ, root / pi))


def _inverse(P: Array, damping: Array) -> Array:
    """(P + damping I)^-1 of a symmetric P without negative eigenvalues, by Cholesky."""
    one = jnp.eye(len(P), dtype=P.dtype)
    triangle = jnp.linalg.cholesky(P + damping * one)
    inverse: Array = jax.scipy.linalg.cho_solve((triangle, True), one)
    return inverse


def _natural(layer: Layer, inverse: Factors) -> Layer:
    """G^-1 [dW db] A^-1."""
    whole = jnp.concatenate([layer.W, layer.b], axis=-1).astype(inverse.A.dtype)
    natural = product(product(inverse.dZ, whole), inverse.A).astype(layer.W.dtype)
    return replace(layer, W=natural[:, :-1], b=natural[:, -1:])
