"""Step length and momentum from a quadratic model of the cost.

Near the parameters, J is approximately M(d) = J + g.d + 1/2 d.(G + damping I) d, with the gradient
g and the Gauss-Newton matrix G of the minibatch. The step is d = a D + b (last step): along these
two directions M is a quadratic in (a, b), so its minimum has a closed form. No learning rate and no
momentum have to be chosen.

The damping says how far the model is trusted. Every 5 steps it is adapted by the reduction ratio:
the actual decrease of J, divided by the decrease that M predicted. A ratio near 1 lowers it, a low
ratio raises it (Levenberg-Marquardt). J and M come from the same minibatch, which makes the ratio
too favourable. With few examples it is useless: M has no curvature in directions that these
examples don't touch, so the step is far too long, and J of the same examples falls all the same.
Below 32 examples, each step is therefore judged by J of the next minibatch, before and after.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import wide
from deepprop._checks import check_above_zero
from deepprop.layers import Cache, Params
from deepprop.network import cost
from deepprop.signals.gauss_newton import gauss_newton_form
from deepprop.walk import up

EVERY = 5  # steps between two adaptations of the damping
LESS = 0.95**EVERY  # the factor by which the damping falls, or rises when divided by it
MOST = 1e3  # the largest damping
FEW = 32  # examples: with fewer, each step is judged on the next minibatch
WORSE, MUCH_WORSE = 1.2, 4.0  # factors of the damping if J rose there, or doubled


class QuadraticState(NamedTuple):
    """The state of `by_quadratic_model`.

    Attributes:
        steps: the number of steps so far.
        damping: the damping of the model, as adapted.
        last: the update of the last step.
        inner: the state of the transformation that computes the direction.
    """

    steps: Array
    damping: Array
    last: Params
    inner: Any


def by_quadratic_model(
    inner: optax.GradientTransformation, *, damping: float = 1.0, min_damping: float = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """Take the step a D + b (last step) that minimises a quadratic model of J; D is `inner`'s.

    Every 5 steps the damping is adapted by the reduction ratio, the actual over the predicted
    decrease of J: it falls above 3/4 and rises below 1/4. Use large minibatches, and a larger
    `min_damping` for smaller ones. Below 32 examples, the next minibatch decides at each step
    whether the last one raised J, at the cost of one more forward pass. If it did, the damping
    rises; a step that at least doubled J is undone.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [2, 8, 1], hidden="tanh", output="sigmoid")
    >>> X = jax.random.normal(jax.random.key(1), (2, 200))
    >>> fit = dp.fit(params, by_quadratic_model(optax.identity()), X, X[:1] * X[1:] > 0,
    ...              epochs=10, batch_size=100, key=jax.random.key(2))
    >>> bool(fit.history["cost"][-1] < fit.history["cost"][0])
    True

    Args:
        inner: computes a direction, uphill like a gradient; it receives the damping as `damping=`.
        damping: the initial damping, in units of the curvature.
        min_damping: the lowest damping.

    Returns:
        An optax transformation, to be the last in a chain. Its `update` needs `params`, `value=`,
        `cache=` and `Y=` (and `weights=`), which `fit` and `train_step` pass.

    Raises:
        ValueError: a number is not above 0; or `update` did not receive what it needs, as in a fit
            with privacy, which must not pass it.

    Source:
        Martens and Grosse 2015, sections 6.4, 6.5 and 7, arXiv:1503.05671.
    """
    check_above_zero("damping", damping)
    check_above_zero("min_damping", min_damping)
    inner = optax.with_extra_args_support(inner)
    limits = min(min_damping, damping), max(MOST, damping)

    def init(params: Params) -> QuadraticState:
        check_whole("by_quadratic_model", params)
        last = jax.tree.map(jnp.zeros_like, params)
        lam = jnp.asarray(damping, jnp.float32)
        return QuadraticState(jnp.zeros((), jnp.int32), lam, last, inner.init(params))

    def update(
        grads: Params,
        state: QuadraticState,
        params: Params | None = None,
        *,
        value: ArrayLike | None = None,
        cache: Cache | None = None,
        Y: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[Params, QuadraticState]:
        if params is None or value is None or cache is None or Y is None:
            raise ValueError(
                "by_quadratic_model (and so dp.kfac without a learning rate) needs params, value=J,"
                " cache= and Y= in its update; fit passes them, but not with privacy"
            )
        lam, undo = jnp.clip(state.damping, *limits), None
        if cache.A[0].shape[-1] < FEW:
            factor, undo = _judged_by_next(state.last, params, value, cache, Y, weights)
            lam = jnp.clip(lam * factor, *limits)
        extra = {"value": value, "cache": cache, "Y": Y, "weights": weights, **extra}
        direction, inner_state = inner.update(grads, state.inner, params, damping=lam, **extra)
        both = direction, state.last
        a, b, predicted = _minimum(grads, both, cache, weights, lam)
        step = jax.tree.map(lambda d, last: _sum_of(a, d, b, last), *both)

        def adapted() -> Array:
            J_after = _cost(optax.apply_updates(params, step), cache, Y, weights)
            return jnp.clip(lam * _factor(_reduction_ratio(value, J_after, predicted)), *limits)

        steps = state.steps + 1
        damping = jax.lax.cond(steps % EVERY == 0, adapted, lambda: lam)
        step, last = (step, step) if undo is None else _undone(undo, step, state.last)
        return step, QuadraticState(steps, damping, last, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _cost(params: Params, cache: Cache, Y: Any, weights: Any) -> Array:
    """Compute J of the cache's examples with other parameters."""
    return cost(up(params, cache.A[0], cache.kept), Y, weights)


def _reduction_ratio(value: ArrayLike, J_after: Array, predicted: Array) -> Array:
    """The reduction ratio: actual over predicted decrease of J.

    At a minimum both decreases are rounding errors; the ratio is then 1/2, which keeps the damping.
    """
    rounding = 10 * float(np.finfo(predicted.dtype).eps) * jnp.abs(value)
    return jnp.where(jnp.abs(predicted) > rounding, (J_after - value) / predicted, 0.5)


def _undone(undo: Array, step: Params, before: Params) -> tuple[Params, Params]:
    """Return the step, or the undoing of the last one, and what the next step calls its last."""
    step = jax.tree.map(lambda new, old: jnp.where(undo, -old, new), step, before)
    return step, jax.tree.map(lambda new: jnp.where(undo, 0, new), step)


def _judged_by_next(
    last: Params, params: Params, value: ArrayLike, cache: Cache, Y: Any, weights: Any
) -> tuple[Array, Array]:
    """Judge the last step by J of this minibatch: the factor of the damping, and whether to undo.

    See the module's text: below 32 examples, the minibatch of a step can't judge that step.
    """
    J = _cost(jax.tree.map(jnp.subtract, params, last), cache, Y, weights)
    change = jnp.asarray(value) - J
    undo = jnp.logical_not(change <= jnp.abs(J))  # also true if J is not finite
    factor = jnp.where(undo, MUCH_WORSE, jnp.where(change > 0, WORSE, 1.0))
    return factor.astype(jnp.float32), undo


def check_whole(name: str, params: Params) -> None:
    """Raise if parameters are masked, as by `optax.partition`; the cache has every layer.

    Raises:
        ValueError: some are.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            f"{name} needs every layer, so it can't be inside of optax.masked, multi_transform or"
            " partition; to freeze layers, chain it with optax.masked(optax.set_to_zero(), mask),"
            " with a mask that is True for those layers"
        )


def _sum_of(a: Array, d: Array, b: Array, last: Array) -> Array:
    """Return a d + b last in the dtype of d; a and b may be wider."""
    dtype = d.dtype
    a, d, b, last = (P.astype(wide(dtype)) for P in (a, d, b, last))
    return (a * d + b * last).astype(dtype)


def _factor(ratio: Array) -> Array:
    """Return the factor of the damping for a reduction ratio."""
    factor = jnp.where(ratio > 0.75, LESS, jnp.where(ratio > 0.25, 1.0, 1 / LESS))
    return factor.astype(jnp.float32)


def _minimum(
    grads: Params, both: tuple[Params, Params], cache: Cache, weights: Any, damping: Array
) -> tuple[Array, Array, Array]:
    """Return (a, b) at the minimum of the model, and the decrease of J that it predicts (M - J).

    M(a D + b last) = J + slope . (a, b) + 1/2 (a, b) Q (a, b)^T, so Q (a, b) = -slope. If D and the
    last step are parallel, or this is the first step, Q is singular; b is then 0.
    """
    form = gauss_newton_form(cache, both, weights)
    squares = jnp.array([[_dot(u, v) for v in both] for u in both])
    Q = form + damping.astype(form.dtype) * squares.astype(form.dtype)
    slope = jnp.array([_dot(grads, v) for v in both]).astype(form.dtype)
    # At the first step the last step is 0, and so are its row and column of Q.
    Q = Q + jnp.diag(jnp.where(jnp.diag(Q) > 0, 0, 1).astype(Q.dtype))
    determinant = Q[0, 0] * Q[1, 1] - Q[0, 1] * Q[1, 0]
    independent = determinant > 1e-6 * Q[0, 0] * Q[1, 1]
    a = (Q[0, 1] * slope[1] - Q[1, 1] * slope[0]) / jnp.where(independent, determinant, 1)
    b = (Q[1, 0] * slope[0] - Q[0, 0] * slope[1]) / jnp.where(independent, determinant, 1)
    a = jnp.where(independent, a, -slope[0] / Q[0, 0])
    b = jnp.where(independent, b, 0)
    return a, b, (a * slope[0] + b * slope[1]) / 2


def _dot(U: Params, V: Params) -> Array:
    pairs = zip(jax.tree.leaves(U), jax.tree.leaves(V), strict=True)
    return jnp.sum(jnp.stack([jnp.vdot(u, v) for u, v in pairs]))
