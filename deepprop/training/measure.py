"""The validation set: its cost and metrics are measured after each epoch, and may stop the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

import jax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import wide
from deepprop._checks import example_weights, whole_number
from deepprop.layers import Params
from deepprop.network import mean_loss
from deepprop.training.examples import examples, forward_checked
from deepprop.training.programs import Programs

Metric = Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Validation:
    """A validation set, the metrics to measure on it, and the patience for early stopping.

    After each epoch, `fit` measures the cost on the set as "val_cost", and each metric.

    >>> import deepprop as dp, jax.numpy as jnp
    >>> X, Y = jnp.ones((3, 5)), jnp.zeros((1, 5))
    >>> error = lambda A, Y: jnp.mean(abs(A - Y))
    >>> dp.Validation(X, Y, metrics={"error": error}, patience=5).patience
    5

    Attributes:
        X: (n_0, m), one example per column.
        Y: (n_L, m), the targets.
        weights: (m,), one per example. The cost is their weighted mean; metrics don't use them.
        metrics: functions of (A[L], Y) in JAX, by name. The one called "accuracy" is recorded as
            "val_accuracy".
        patience: stop after this many epochs without a lower validation cost, and return the
            parameters of the best epoch; None never stops.

    Raises:
        TypeError: `metrics` is not a mapping of names to functions, or `patience` is not a whole
            number.
        ValueError: a metric is called "cost", or `patience` is below 1.
    """

    X: ArrayLike
    Y: ArrayLike
    weights: ArrayLike | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: MappingProxyType({}))
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check the metrics and the patience; `fit` checks the arrays, which must fit a network."""
        _check_metrics(self.metrics)
        if self.patience is not None:
            object.__setattr__(self, "patience", whole_number("patience", self.patience))


Pair = tuple[ArrayLike, ArrayLike]
Triple = tuple[ArrayLike, ArrayLike, ArrayLike | None]


def validation_of(given: Validation | Pair | Triple | None) -> Validation | None:
    """Return a `Validation`; from (X, Y) or (X, Y, weights), one without metrics or patience.

    Raises:
        TypeError: it is none of these.
        ValueError: a tuple has another length.
    """
    if given is None or isinstance(given, Validation):
        return given
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        kind = type(given).__name__
        many = f" of length {len(given)}" if isinstance(given, tuple | list) else ""
        error = ValueError if many else TypeError
        raise error(
            f"validation must be (X, Y) or (X, Y, weights), or a dp.Validation, got a {kind}{many}"
        )
    return Validation(*given)


@dataclass(frozen=True, eq=False)
class Measure:
    """Measures "val_cost" and the metrics of params on a validation set that was checked.

    Attributes:
        X: (m, n_0), one example per row.
        Y: (m, n_L).
        weights: (m,), for the cost; or None.
        metrics: pairs of a name and a function of (A[L], Y).
        patience: epochs without a lower cost after which to stop; None never stops.
        several: whether params have a leading axis for several networks.
    """

    X: Array
    Y: Array
    weights: Array | None
    metrics: tuple[tuple[str, Metric], ...]
    patience: int | None = None
    several: bool = False

    def __call__(self, params: Params) -> dict[str, Array]:
        """Return the entries of the history, by name."""
        measured: dict[str, Array] = _measured(
            params, self.X, self.Y, self.weights, metrics=self.metrics, several=self.several
        )
        return measured

    def identity(self) -> dict[str, Any]:
        """Return what identifies the validation set and the metrics: see `Training`."""
        return {
            "validation X": self.X.T,
            "validation Y": self.Y.T,
            "validation weights": self.weights,
            **{f"metric {name}": metric for name, metric in self.metrics},
        }


@overload
def measure_of(params: Params, validation: Validation) -> Measure: ...
@overload
def measure_of(params: Params, validation: Validation | Pair | Triple | None) -> Measure | None: ...
def measure_of(params: Params, validation: Validation | Pair | Triple | None) -> Measure | None:
    """Return the `Measure` of a validation set, or None without one.

    Raises:
        ValueError: X, Y or weights do not fit the network.
        TypeError: they are not real numbers, or it is not a validation set.
    """
    validation = validation_of(validation)
    if validation is None:
        return None
    X, Y = examples(params, validation.X, validation.Y, "validation ")
    weights = validation.weights
    if weights is not None:
        dtype = wide(params[0].W.dtype)
        weights = example_weights(weights, X.shape[0], dtype, "validation weights")
    return Measure(X, Y, weights, tuple(validation.metrics.items()), validation.patience)


def names_of(measure: Measure | None) -> list[str]:
    """Return the names under which the history has the cost and the metrics."""
    if measure is None:
        return []
    return ["val_cost", *(f"val_{name}" for name, _ in measure.metrics)]


def _check_metrics(metrics: Any) -> None:
    due = "metrics must be a mapping of names to functions of (A, Y), such as {'accuracy': f}"
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{due}, got a {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{due}, got the name {name!r}")
        if not callable(metric):
            raise TypeError(f"{due}, got {metric!r} under {name!r}")
        if name == "cost":
            raise ValueError('metrics must not be called "cost", which is always measured')


def _measure(
    params: Params,
    X: Array,
    Y: Array,
    weights: Array | None,
    *,
    metrics: tuple[tuple[str, Metric], ...],
    several: bool,
) -> dict[str, Array]:
    """Return "val_cost" and the metrics. X and Y are rows; a metric sees one example per column."""

    def of_one(params: Params) -> dict[str, Array]:
        cache = forward_checked(params, X.T)
        A = cache.A[-1]
        J = mean_loss(cache, Y.T.astype(A.dtype), weights)
        return {"val_cost": J, **{f"val_{name}": metric(A, Y.T) for name, metric in metrics}}

    return jax.vmap(of_one)(params) if several else of_one(params)


_measured = Programs(_measure, static=("metrics", "several"))
