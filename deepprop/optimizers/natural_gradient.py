"""K-FAC as an optax transformation: the gradient times the inverse of the Fisher matrix.

One layer's block of the Fisher matrix is approximately the Kronecker product of A = mean of a a^T
and G = mean of dz dz^T. Its inverse is the Kronecker product of the inverses, so the natural
gradient of a layer takes two products with small matrices: G^-1 [dW db] A^-1.
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
    """The state of K-FAC.

    Attributes:
        steps: the number of steps so far.
        key: the random key for the drawn targets.
        factors: the moving averages of each layer's factors.
        inverses: the inverses of the damped averages, as last computed.
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
    """Scale each layer's gradient to G^-1 [dW db] A^-1, with damped moving averages of A and G.

    The damping is split between the factors: A + pi sqrt(damping) I and G + sqrt(damping) / pi I,
    where pi^2 = (tr(A) / dim(A)) / (tr(G) / dim(G)).

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
        damping: added to the curvature, in its units; `update` accepts another value.
        decay: decay of the moving averages; step t uses min(1 - 1/t, decay).
        every: steps between two computations of the inverses. The first `every` steps compute them
            each time, because the averages still change quickly.
        key: a JAX random key for the drawn targets; None uses jax.random.key(0).

    Returns:
        An optax transformation. Its `update` takes `factors=`, the result of `kfac_factors`; or
        `cache=` (and `weights=`), which `fit` and `train_step` pass. It then computes the factors
        of the Fisher matrix itself, with targets drawn from the network's predictions.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `key` is not a random key.

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
    """Return K-FAC, the natural gradient by Kronecker factors; it needs no learning rate.

    The step length, the momentum and the damping follow from the quadratic model of the cost
    (`by_quadratic_model`). Use large minibatches: below 32 examples, each step is judged on the
    next minibatch, which learns more slowly. With a learning rate, a step is the natural gradient
    times that rate, with momentum.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [2, 8, 1], hidden="tanh", output="sigmoid")
    >>> X = jax.random.normal(jax.random.key(1), (2, 200))
    >>> fit = dp.fit(params, dp.kfac(), X, X[:1] * X[1:] > 0, epochs=10, batch_size=100,
    ...              key=jax.random.key(2))
    >>> bool(fit.history["cost"][-1] < fit.history["cost"][0])
    True

    Args:
        learning_rate: None, a number, or an optax schedule.
        damping: added to the curvature, in its units. The default is 0.003 with a learning rate;
            without one it starts at 0.1 and is adapted.
        min_damping: the lowest damping, without a learning rate.
        decay: decay of the moving averages of the factors.
        every: steps between two computations of the inverses.
        momentum: momentum of the steps, with a learning rate; 0 for none.
        max_kl: with a learning rate, the largest change of the predictions in one step: half the
            step's squared length in the Fisher metric, about the KL divergence. Longer steps are
            shortened, before momentum. Use less with more momentum. None never shortens; then steps
            may be far too long while the averages are young.
        key: a JAX random key for the drawn targets.

    Returns:
        An optax transformation for `fit` and `train_step`. In your own loop, its `update` takes
        `factors=` or `cache=` like that of `scale_by_kfac`; without a learning rate also `value=`,
        `cache=` and `Y=`, like that of `by_quadratic_model`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `key` is not a random key.

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
    """Raise unless `value` is at least 0 and below 1, where it is known.

    Raises:
        ValueError: it is not.
        TypeError: it is not a real number.
    """
    real_array(name, value)
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value}")


def _shortened(
    natural: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    max_kl: float,
) -> optax.GradientTransformationExtraArgs:
    """Multiply the natural gradient v by min(1, sqrt(max_kl / (1/2 rate^2 v . grad))).

    v is F^-1 grad, so v . grad is its squared length in the Fisher metric.
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
            "kfac needs factors=dp.kfac_factors(cache, dZ) or cache=cache in its update"
        )
    return kfac_factors(cache, error_signals(cache, sampled_targets(key, cache)), weights)


def _identities(layer: Layer) -> Factors:
    *K, n, n_below = layer.W.shape
    one = [jnp.eye(size, dtype=wide(layer.W.dtype)) for size in (n_below + 1, n)]
    return Factors(*(jnp.broadcast_to(eye, (*K, *eye.shape)) for eye in one))


def _mix(old: Array, new: Array, steps: Array, decay: float) -> Array:
    share = jnp.minimum(1 - 1 / steps.astype(old.dtype), decay)
    # With a narrow compute_dtype and float64 parameters, the new factors are narrower.
    return share * old + (1 - share) * new.astype(old.dtype)


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
