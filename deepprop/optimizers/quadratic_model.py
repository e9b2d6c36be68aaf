"""How far to go in a direction, and how far to go on in the last one, from a model of the cost.

Near the parameters J is about M(d) = J + g.d + 1/2 d.(G + damping I) d, with the gradient g and the
Gauss-Newton matrix G of the minibatch. Along two directions M has four numbers, and so its minimum
is in closed form: no learning rate is left to choose, nor momentum.
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
from deepprop.network import cost, forward
from deepprop.signals.gauss_newton import gauss_newton_form

EVERY = 5  # steps from one adaptation of the damping to the next
LESS = 0.95**EVERY  # the damping is multiplied by it, or divided
MOST = 1e3  # to which the damping may grow
FEW = 32  # examples: with fewer, each step is judged by the next minibatch
WORSE, MUCH_WORSE = 1.2, 4.0  # by which the damping grows then, where J rose, or doubled


class QuadraticState(NamedTuple):
    """What is remembered.

    Attributes:
        steps: so far.
        damping: of the model, as adapted.
        last: the update of the last step.
        inner: the state of the transformation that gives the direction.
    """

    steps: Array
    damping: Array
    last: Params
    inner: Any


def by_quadratic_model(
    inner: optax.GradientTransformation, *, damping: float = 1.0, min_damping: float = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """The step a D + b (last step) that minimises the model of J, with the direction D of `inner`.

    The damping is adapted: every 5 steps J after the step is compared with what the model said; the
    damping falls where J fell by more than 3/4 of that, and grows where it fell by less than 1/4.
    J and the model are of one minibatch, which flatters the model: large minibatches suit it best,
    and `min_damping` holds it where they are small. With fewer than 32 examples it fails: there the
    next minibatch tells at each step whether the last one raised J, for one more forward pass; the
    damping grows where it did, and a step that at least doubled J is undone.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [2, 8, 1], hidden="tanh", output="sigmoid")
    >>> X = jax.random.normal(jax.random.key(1), (2, 200))
    >>> fit = dp.fit(params, by_quadratic_model(optax.identity()), X, X[:1] * X[1:] > 0,
    ...              epochs=10, batch_size=100, key=jax.random.key(2))
    >>> bool(fit.history["cost"][-1] < fit.history["cost"][0])
    True

    Args:
        inner: gives a direction, uphill as a gradient is; it is handed the damping as `damping=`.
        damping: to begin with, in units of the curvature.
        min_damping: to which the damping may fall.

    Returns:
        An optax transformation, the last in a chain. Its `update` needs `params`, and `value=`,
        `cache=`, `Y=` (and `weights=`) as `fit` and `train_step` give them.

    Raises:
        ValueError: a number is not above 0; or `update` was not given what it needs, as in a fit
            with privacy, which must not look at it.

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
                "by_quadratic_model (and so dp.kfac without a learning rate) must be given params,"
                " value=J, cache= and Y= with its update; fit gives them, but not with privacy"
            )
        lam, undo = jnp.clip(state.damping, *limits), None
        if cache.A[0].shape[-1] < FEW:
            factor, undo = _by_these(state.last, params, value, cache, Y, weights)
            lam = jnp.clip(lam * factor, *limits)
        extra = {"value": value, "cache": cache, "Y": Y, "weights": weights, **extra}
        direction, inner_state = inner.update(grads, state.inner, params, damping=lam, **extra)
        both = direction, state.last
        a, b, promised = _minimum(grads, both, cache, weights, lam)
        step = jax.tree.map(lambda d, last: _sum_of(a, d, b, last), *both)

        def adapted() -> Array:
            J_after = _cost(optax.apply_updates(params, step), cache, Y, weights)
            return jnp.clip(lam * _factor(_reduction_ratio(value, J_after, promised)), *limits)

        steps = state.steps + 1
        damping = jax.lax.cond(steps % EVERY == 0, adapted, lambda: lam)
        step, last = (step, step) if undo is None else _undone(undo, step, state.last)
        return step, QuadraticState(steps, damping, last, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _cost(params: Params, cache: Cache, Y: Any, weights: Any) -> Array:
    """J of the cache's examples with other parameters."""
    return cost(forward(params, cache.A[0])[1], Y, weights)


def _reduction_ratio(value: ArrayLike, J_after: Array, promised: Array) -> Array:
    """The reduction ratio: actual over predicted decrease of J."""
    rounding = 10 * float(np.finfo(promised.dtype).eps) * jnp.abs(value)
    telling = jnp.abs(promised) > rounding  # at a minimum it is not: 1/2 changes nothing
    return jnp.where(telling, (J_after - value) / promised, 0.5)


def _undone(undo: Array, step: Params, before: Params) -> tuple[Params, Params]:
    """The step, or back to where the last one began; and what the next takes for the last one."""
    step = jax.tree.map(lambda new, old: jnp.where(undo, -old, new), step, before)
    return step, jax.tree.map(lambda new: jnp.where(undo, 0, new), step)


def _by_these(
    last: Params, params: Params, value: ArrayLike, cache: Cache, Y: Any, weights: Any
) -> tuple[Array, Array]:
    """By which the damping grows where the last step raised J of these examples; and the undoing.

    The model of a few examples is too good: it sees no curvature where they have none, so its steps
    are far too long there, and J of the same examples falls all the same. The next ones tell.
    """
    J = _cost(jax.tree.map(jnp.subtract, params, last), cache, Y, weights)
    change = jnp.asarray(value) - J
    undo = jnp.logical_not(change <= jnp.abs(J))  # where it is not finite too
    factor = jnp.where(undo, MUCH_WORSE, jnp.where(change > 0, WORSE, 1.0))
    return factor.astype(jnp.float32), undo


def check_whole(name: str, params: Params) -> None:
    """Raise if arrays are masked, as by `optax.partition`: the cache has every layer.

    Raises:
        ValueError: they are.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            f"{name} must be given every layer, so not within optax.masked, multi_transform or"
            " partition; to leave layers as they are, chain it with optax.set_to_zero, masked so"
            " that the mask is True for those layers"
        )


def _sum_of(a: Array, d: Array, b: Array, last: Array) -> Array:
    """In the type of d: beside narrow products the model is in float32, whatever W is in."""
    dtype = d.dtype
    a, d, b, last = (P.astype(wide(dtype)) for P in (a, d, b, last))
    return (a * d + b * last).astype(dtype)


def _factor(ratio: Array) -> Array:
    """By which the damping is multiplied."""
    factor = jnp.where(ratio > 0.75, LESS, jnp.where(ratio > 0.25, 1.0, 1 / LESS))
    return factor.astype(jnp.float32)


def _minimum(
    grads: Params, both: tuple[Params, Params], cache: Cache, weights: Any, damping: Array
) -> tuple[Array, Array, Array]:
    """The coefficients of the two directions at the model's minimum, and M there less J."""
    form = gauss_newton_form(cache, both, weights)
    squares = jnp.array([[_dot(u, v) for v in both] for u in both])
    Q = form + damping.astype(form.dtype) * squares.astype(form.dtype)
    slope = jnp.array([_dot(grads, v) for v in both]).astype(form.dtype)
    # At the first step there is no last one: its row and column are 0, and so must its share be.
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
