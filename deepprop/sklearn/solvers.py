"""The solvers of scikit-learn's MLP, as optax transformations that take the same steps.

They are made inside of the compiled epoch, from numbers that are its arguments: settings that
differ in a rate or a momentum share one program.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from deepprop.backprop import Backward, mean_gradient
from deepprop.layers import Cache, Params
from deepprop.optimizers.optax_calls import started
from deepprop.training.programs import Programs
from deepprop.training.run import fresh

Numbers = Mapping[str, Any]  # the solvers' settings that are numbers
Solver = Any  # a name in SOLVERS, or an optax transformation


def adam(rate: Any, numbers: Numbers) -> optax.GradientTransformation:
    """Return Adam with the epsilon of the efficient form, at the end of section 2 of its paper.

    Its step is rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon). optax adds epsilon
    to the corrected root, sqrt(v / (1 - beta_2^t)), so it gets epsilon / sqrt(1 - beta_2^t).

    Source: Kingma and Ba 2015, Adam: A Method for Stochastic Optimization.
    """
    beta_1, beta_2 = numbers["beta_1"], numbers["beta_2"]

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        t = (state.count + 1).astype(jnp.result_type(beta_2))
        epsilon = numbers["epsilon"] / jnp.sqrt(1 - beta_2**t)
        return optax.scale_by_adam(beta_1, beta_2, epsilon).update(grads, state, params)

    by_adam = optax.GradientTransformation(optax.scale_by_adam().init, update)
    return optax.chain(by_adam, optax.scale(-rate))


def sgd(rate: Any, numbers: Numbers, *, nesterov: bool) -> optax.GradientTransformation:
    """Return gradient descent with momentum; the velocity holds the rates of its own steps."""
    return optax.chain(optax.scale(-rate), optax.trace(numbers["momentum"], nesterov))


SOLVERS: Mapping[str, Callable[[Any, Numbers], optax.GradientTransformation]] = {
    "adam": adam,
    "sgd": partial(sgd, nesterov=False),
    "nesterov": partial(sgd, nesterov=True),
}


def solver_of(s: Any) -> Solver:
    """Return the solver that an estimator's settings name."""
    return "nesterov" if s.solver == "sgd" and s.nesterovs_momentum else s.solver


def numbers_of(s: Any) -> Numbers:
    """Return the settings of the solvers, and alpha, which are arguments of the program."""
    names = ("alpha", "beta_1", "beta_2", "epsilon", "momentum")
    return {name: float(getattr(s, name)) for name in names}


def transformation(solver: Solver, rate: Any, numbers: Numbers) -> optax.GradientTransformation:
    """Return the optax transformation of a name in `SOLVERS`, or the user's own, unchanged."""
    return SOLVERS[solver](rate, numbers) if isinstance(solver, str) else solver


def first_state(solver: Solver, params: Params) -> Any:
    """Return the solver's state before its first step; params may have a leading axis of K."""
    several = params[-1].W.ndim == 3
    if not isinstance(solver, str):
        return _states(params, solver=solver, several=several)
    init = transformation(solver, 0.0, dict.fromkeys(("beta_1", "beta_2", "momentum"), 0.0)).init
    shapes = jax.eval_shape(jax.vmap(init) if several else init, params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)  # all start at 0


def _state(params: Params, *, solver: optax.GradientTransformation, several: bool) -> Any:
    def init(params: Params) -> Any:
        return fresh(started(solver, params))

    return jax.vmap(init)(params) if several else init(params)


_states = Programs(_state, static=("solver", "several"))


def squares(params: Params) -> Array:
    """Return sum_l ||W[l]||^2."""
    return sum((jnp.sum(jnp.square(layer.W)) for layer in params), jnp.zeros((), params[0].W.dtype))


def penalised(alpha: Any) -> Backward:
    """Return the backward pass of J + alpha / (2 m) sum_l ||W[l]||^2; m is the sum of the weights.

    dW[l] = 1/m (dZ[l] A[l-1]^T + alpha W[l])
    """

    def backward(cache: Cache, Y: Array, w: Array | None) -> Params:
        share = over(alpha, jnp.sum(jnp.asarray(w)))
        pairs = zip(mean_gradient(cache, Y, w), cache.params, strict=True)
        return tuple(replace(of_J, W=of_J.W + share * layer.W) for of_J, layer in pairs)

    return backward


def over(alpha: Any, m: Array) -> Array:
    """Return alpha / m, and 0 if no example counts."""
    return jnp.where(m > 0, alpha / jnp.where(m > 0, m, 1), 0)
