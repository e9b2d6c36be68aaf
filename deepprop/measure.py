"""What is measured on a validation set after each epoch: its cost, and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.typing import ArrayLike

from deepprop._arithmetic import wide
from deepprop._checks import example_weights
from deepprop.examples import examples
from deepprop.layers import Params
from deepprop.network import cost, forward
from deepprop.programs import Programs

Metric = Callable[[Array, Array], Array]
Validation: TypeAlias = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike | None]


@dataclass(frozen=True, eq=False)
class Measure:
    """Measures "val_cost" and the metrics of params on a validation set.

    Attributes:
        X: (n_0, m).
        Y: (n_L, m).
        weights: (m,), of the cost; or None.
        metrics: names, and functions of (A[L], Y).
        several: whether params are of several networks, with a leading axis.
    """

    X: Array
    Y: Array
    weights: Array | None
    metrics: tuple[tuple[str, Metric], ...]
    several: bool = False

    def __call__(self, params: Params) -> dict[str, Array]:
        """The columns of the history by their names."""
        measured: dict[str, Array] = _measured(
            params, self.X, self.Y, self.weights, metrics=self.metrics, several=self.several
        )
        return measured

    def parts(self) -> dict[str, Any]:
        """What makes it the same in another run."""
        return {
            "validation X": self.X,
            "validation Y": self.Y,
            "validation weights": self.weights,
            **{f"metric {name}": metric for name, metric in self.metrics},
        }


def measure_of(
    params: Params, validation: Validation | None, metrics: Mapping[str, Metric] | None
) -> Measure | None:
    """The `Measure` of a validation set, or None without one.

    Raises:
        ValueError: the set does not fit the network, there are metrics without a set, or a metric
            has the name of the cost.
        TypeError: `validation` is not (X, Y) or (X, Y, weights), or `metrics` is not a mapping of
            names to functions.
    """
    metrics = _checked(metrics)
    if validation is None:
        if metrics:
            raise ValueError("metrics need a validation set, got validation=None")
        return None
    if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
        kind = type(validation).__name__
        many = f" of length {len(validation)}" if isinstance(validation, tuple | list) else ""
        error = ValueError if many else TypeError
        raise error(f"validation must be (X, Y) or (X, Y, weights), got a {kind}{many}")
    X, Y = examples(params, validation[0], validation[1], "validation ")
    weights = validation[2] if len(validation) == 3 else None
    if weights is not None:
        dtype = wide(params[0].W.dtype)
        weights = example_weights(weights, X.shape[1], dtype, "validation weights")
    return Measure(X, Y, weights, tuple(metrics.items()))


def names_of(measure: Measure | None) -> list[str]:
    """The columns of the history that are of the validation set."""
    if measure is None:
        return []
    return ["val_cost", *(f"val_{name}" for name, _ in measure.metrics)]


def _checked(metrics: Mapping[str, Metric] | None) -> Mapping[str, Metric]:
    if metrics is None:
        return {}
    due = "metrics must be a mapping of names to functions of (A, Y), such as {'accuracy': f}"
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{due}, got a {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{due}, got the name {name!r}")
        if not callable(metric):
            raise TypeError(f"{due}, got {metric!r} under {name!r}")
        if name == "cost":
            raise ValueError('metrics must not be called "cost", which is measured anyway')
    return metrics


def _measure(
    params: Params,
    X: Array,
    Y: Array,
    weights: Array | None,
    *,
    metrics: tuple[tuple[str, Metric], ...],
    several: bool,
) -> dict[str, Array]:
    def of_one(params: Params) -> dict[str, Array]:
        A, cache = forward(params, X)
        J = cost(cache, Y, weights)
        return {"val_cost": J, **{f"val_{name}": metric(A, Y) for name, metric in metrics}}

    return jax.vmap(of_one)(params) if several else of_one(params)


_measured = Programs(_measure, static=("metrics", "several"))
