"""The estimators' parameters: checked when training starts, as scikit-learn wants it."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

import optax

from deepprop._arguments import check_entry
from deepprop._checks import whole_number
from deepprop.activations import Activation, activation
from deepprop.optimizers.by_name import SCHEDULES
from deepprop.optimizers.fused_update import InBackward, check_optimizer
from deepprop.training.private import Privacy

STOCHASTIC = ("adam", "sgd")
RATES = ("constant", "invscaling", "adaptive")
OURS = {"logistic": "sigmoid"}  # scikit-learn's name of an activation, and ours
Check = Callable[[float], bool]
NUMBERS: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("alpha", "power_t", "tol"), (lambda v: v >= 0, "at least 0")),
    "momentum": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    **dict.fromkeys(
        ("beta_1", "beta_2", "validation_fraction", "dropout"),
        (lambda v: 0 <= v < 1, "from 0 to below 1"),
    ),
    **dict.fromkeys(
        ("learning_rate_init", "epsilon"), (lambda v: 0 < v < math.inf, "finite and above 0")
    ),
}
WHOLE = {  # whole numbers above 0, and what each may be instead
    **dict.fromkeys(("max_iter", "max_fun", "n_members", "patience")),
    "batch_size": "auto",
    "n_iter_no_change": math.inf,
}


def checked(settings: SimpleNamespace) -> SimpleNamespace:
    """Return the parameters, with the hidden layers as a list and the activation as ours.

    Raises:
        ValueError, TypeError: one is not what it should be; the message names it.
    """
    s = SimpleNamespace(**vars(settings))
    s.hidden = _hidden(s.hidden_layer_sizes)
    s.activation = _activation(s.activation)
    for name, (fits, due) in NUMBERS.items():
        _check_number(name, getattr(s, name), fits, due)
    for name, other in WHOLE.items():
        if getattr(s, name) != other:
            whole_number(name, getattr(s, name))
    for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "residual"):
        _check_one_of(name, getattr(s, name), (True, False))
    _check_one_of("learning_rate", s.learning_rate, RATES)
    if not callable(s.schedule):
        _check_one_of("schedule", s.schedule, tuple(SCHEDULES), "or a function of the step")
    check_entry("the layers", s.normalize, s.dropout)
    _check_solver(s)
    _check_together(s)
    return s


def is_stochastic(solver: Any) -> bool:
    """Return whether a solver takes steps on minibatches: all do, except for "lbfgs"."""
    return not isinstance(solver, str) or solver in STOCHASTIC


def _check_solver(s: SimpleNamespace) -> None:
    if isinstance(s.solver, str):
        _check_one_of("solver", s.solver, (*STOCHASTIC, "lbfgs"), "or an optax transformation")
        return
    check_optimizer(s.solver)
    if isinstance(s.solver, InBackward):
        raise ValueError("solver must not be an in_backward: alpha needs the gradient")


def _check_together(s: SimpleNamespace) -> None:
    """Raise if two parameters exclude each other.

    Raises:
        ValueError: they do.
        TypeError: `privacy` is not a `Privacy`.
    """
    if s.solver == "lbfgs":
        _refuse(s, "solver='lbfgs'", dropout=0.0, schedule="constant", patience=None)
        _refuse(s, "solver='lbfgs'", privacy=None, callbacks=())
    if not isinstance(s.solver, str):  # it has its own rates
        _refuse(s, "an optax transformation", learning_rate="constant", schedule="constant")
    if s.schedule != "constant":
        _refuse(s, "a schedule", learning_rate="constant")
    if s.privacy is None:
        return
    if not isinstance(s.privacy, Privacy):
        raise TypeError(f"privacy must be a dp.Privacy, got {s.privacy!r}")
    # What any of these choose or report is computed from the data, without noise.
    _refuse(s, "privacy", early_stopping=False, patience=None, warm_start=False, n_members=1)
    _refuse(s, "privacy", class_weight=None, schedule="constant", learning_rate="constant")


def _refuse(s: SimpleNamespace, beside: str, **defaults: Any) -> None:
    """Raise unless those parameters have their defaults.

    Raises:
        ValueError: one has not.
    """
    for name, default in defaults.items():
        value = getattr(s, name, default)
        if value is not default and value != default:
            raise ValueError(f"{name} must be {default!r} with {beside}, got {value!r}")


def _hidden(sizes: Any) -> list[int]:
    """Return the units of the hidden layers."""
    sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
    for n in sizes:
        if not isinstance(n, Integral) or n <= 0:
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(n) for n in sizes]


def _activation(choice: Any) -> Activation:
    try:
        return activation(OURS.get(choice, choice) if isinstance(choice, str) else choice)
    except ValueError as error:
        raise ValueError(str(error).replace("one of", "one of logistic,")) from None


def _check_number(name: str, value: Any, fits: Check, due: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not fits(float(value)):
        raise ValueError(f"{name} must be {due}, got {value!r}")


def _check_one_of(name: str, value: Any, known: tuple[Any, ...], further: str = "") -> None:
    if not any(value is one or (isinstance(value, type(one)) and value == one) for one in known):
        names = ", ".join(map(repr, known))
        raise ValueError(f"{name} must be {names}{further and ', ' + further}, got {value!r}")


def averaged(estimator: Any, s: SimpleNamespace) -> int:
    """Return over how many outputs a reported cost is averaged.

    scikit-learn reports the mean over outputs of squared errors, and follows the sum's gradient.
    """
    return int(estimator.n_outputs_) if getattr(s, "loss", None) == "squared_error" else 1


def factors(schedule: str | optax.Schedule, start: int, steps: int, length: int) -> Any:
    """Return by what the rate is multiplied in each step of an epoch: 1, or an array.

    Args:
        schedule: a name in `SCHEDULES`, or a function of the step's number.
        start: the number of the epoch's first step.
        steps: of the epoch.
        length: the steps of the whole training.
    """
    if schedule == "constant":
        return 1.0
    factor = SCHEDULES[schedule](length) if isinstance(schedule, str) else schedule
    return [float(factor(start + i)) for i in range(steps)]
