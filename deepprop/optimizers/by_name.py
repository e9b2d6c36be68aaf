"""Optimizers by name, one object per kind, whose learning rate is in their state.

A compiled epoch belongs to an optimizer object. With the rate in the state, and not in the object,
runs at different rates share one program: the folds and the candidates of a grid search, or two
runs of the command line.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import optax
from jax import Array

from deepprop.layers import Params
from deepprop.optimizers.natural_gradient import kfac

OPTIMIZERS: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {  # of a learning rate
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "lamb": optax.lamb,
    "lion": optax.lion,
    "kfac": kfac,
}
SCHEDULES: Mapping[str, Callable[[int], optax.Schedule]] = {  # of the number of steps; at most 1
    "constant": lambda steps: optax.constant_schedule(1.0),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "warmup_cosine": lambda steps: optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(1, steps // 20), steps
    ),
}


def optimizer_with_rate(
    name: str, rate: Any, schedule: str, steps: int
) -> optax.GradientTransformation:
    """Return a new optimizer, which has its learning rate in itself.

    Args:
        name: in `OPTIMIZERS`.
        rate: the learning rate, by which the schedule is multiplied.
        schedule: in `SCHEDULES`.
        steps: of the schedule; ignored for a constant one.
    """
    factor = SCHEDULES[schedule](steps)
    return OPTIMIZERS[name](rate if schedule == "constant" else lambda count: rate * factor(count))


@cache
def optimizer_by_name(name: str, schedule: str, steps: int) -> optax.GradientTransformation:
    """Return the one optimizer of that kind; `state_with_rate` gives it a learning rate.

    Args:
        name: in `OPTIMIZERS`, but not kfac, which passes on more than a gradient.
        schedule: in `SCHEDULES`.
        steps: of the schedule.
    """

    def of_rate(learning_rate: Any) -> optax.GradientTransformation:
        return optimizer_with_rate(name, learning_rate, schedule, steps)

    return optax.inject_hyperparams(of_rate)(learning_rate=0.0)


def state_with_rate(
    optimizer: optax.GradientTransformation, params: Params, rate: float
) -> optax.OptState:
    """Return the first state of an `optimizer_by_name`, with this learning rate."""
    return _first_state(optimizer)(params, rate)


@cache
def _first_state(optimizer: optax.GradientTransformation) -> Callable[[Params, float], Any]:
    """Return the function of params and a rate that makes the state, in one program."""

    @jax.jit
    def of_rate(params: Params, rate: Array) -> Any:
        state: Any = optimizer.init(params)
        rate = rate.astype(state.hyperparams["learning_rate"].dtype)
        return state._replace(hyperparams={**state.hyperparams, "learning_rate": rate})

    return of_rate
