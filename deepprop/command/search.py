"""deepprop train --search N: N settings, trained as one program, and the best of their networks."""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import deepprop as dp
from deepprop.command.data import Data
from deepprop.command.units import in_unit_of
from deepprop.command.words import format_score
from deepprop.layers import Params
from deepprop.optimizers.by_name import SCHEDULES, optimizer_with_rate
from deepprop.training.report import epoch_lines

RATES = 0.1, 30.0  # the range of random learning rates, as factors of --learning-rate
DECAYS = 1e-5, 0.1  # the range of random weight decays
WITH_DECAY = {"adam": optax.adamw, "adamw": optax.adamw}  # adam with weight decay is adamw
SHOWN = 10  # settings in the table


def search(
    args: argparse.Namespace, data: Data, params: Params, weights: Any, validation: dp.Validation
) -> dp.Fit:
    """Train N networks that differ in learning rate and weight decay; return the best as a `Fit`.

    All start from the same parameters and see the same minibatches. Each network is judged by its
    lowest validation cost over all epochs. The first setting is the default.

    Args:
        args: the options.
        data: to train on.
        params: the layers to start with.
        weights: of the training examples, or None.
        validation: the set on which the networks are compared, and the metric to show.

    Raises:
        FloatingPointError: no network was finite in any epoch.
    """
    sweep = _settings(args)
    K = len(sweep["learning_rate"])
    steps = args.epochs * -(-data.X.shape[1] // args.batch_size)
    best: dict[str, Any] = {"cost": np.full(K, np.inf), "epoch": np.zeros(K, int), "params": None}
    (metric,) = validation.metrics

    def after_epoch(epoch: int, row: Mapping[str, Any], now: Params) -> None:
        cost = np.asarray(row["val_cost"], float)
        cost = np.where(np.isfinite(cost), cost, np.inf)
        better = cost < best["cost"]
        before = now if best["params"] is None else best["params"]
        best["params"] = _chosen(better, now, before)
        best["cost"] = np.where(better, cost, best["cost"])
        best["epoch"] = np.where(better, epoch, best["epoch"])
        show(epoch, f"{epoch:5} {_least(row['cost']):10.4f} {_least(cost):16.4f}")

    try:
        with epoch_lines(args.epochs) as show:
            fitted = dp.fit_ensemble(
                params, partial(_optimizer, args.optimizer, args.schedule, steps), data.X, data.Y,
                epochs=args.epochs, batch_size=args.batch_size, key=jax.random.key(args.seed),
                sweep=sweep, weights=weights, validation=validation, callbacks=[after_epoch],
            )  # fmt: skip
    except dp.TrainingError as error:  # all have diverged; some were finite before
        if not np.isfinite(best["cost"]).any():
            raise FloatingPointError(
                f"the costs of all {K} networks are not finite in epoch 1: try a smaller"
                " --learning-rate"
            ) from None
        fitted = error.fit
    k = int(np.argmin(best["cost"]))
    _print_table(sweep, best, in_unit_of(data, fitted.history, metric), metric)
    history = {name: values[:, k] for name, values in fitted.history.items()}
    of_best: Params = jax.tree.map(lambda leaf: leaf[k], best["params"])
    return dp.Fit(of_best, None, history, fitted.stopped)


def _least(costs: Any) -> float:
    """Return the least finite cost; nan if there is none."""
    finite = [cost for cost in np.ravel(costs).tolist() if np.isfinite(cost)]
    return min(finite, default=float("nan"))


def _settings(args: argparse.Namespace) -> dict[str, Array]:
    """Return the settings, (N,) each: random on a logarithmic scale, after the default."""
    rng = np.random.default_rng(args.seed)
    N = args.search

    def drawn(low: float, high: float, first: float) -> Array:
        values = np.exp(rng.uniform(np.log(low), np.log(high), N))
        values[0] = first
        return jnp.asarray(values, jnp.float32)

    low, high = (factor * args.learning_rate for factor in RATES)
    sweep = {"learning_rate": drawn(low, high, args.learning_rate)}
    if args.optimizer in WITH_DECAY:
        sweep["weight_decay"] = drawn(*DECAYS, 1e-4)
    return sweep


def _optimizer(
    name: str, schedule: str, steps: int, learning_rate: Any, weight_decay: Any = None
) -> optax.GradientTransformation:
    if weight_decay is None:
        return optimizer_with_rate(name, learning_rate, schedule, steps)
    factor = SCHEDULES[schedule](steps)
    return WITH_DECAY[name](
        lambda count: learning_rate * factor(count), weight_decay=weight_decay, mask=dp.weight_mask
    )


@jax.jit
def _chosen(better: Array, now: Params, before: Params) -> Params:
    """Return the parameters of each network now where they are better, otherwise those before."""

    def of_leaf(now: Array, before: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (now.ndim - 1)), now, before)

    chosen: Params = jax.tree.map(of_leaf, now, before)
    return chosen


def _print_table(
    sweep: Mapping[str, Array],
    best: Mapping[str, Any],
    history: Mapping[str, np.ndarray],
    metric: str,
) -> None:
    """Print the settings, the best first."""
    order = np.argsort(best["cost"])
    decay = "weight_decay" in sweep
    print(f"\nsearch     {len(order)} settings, by their lowest validation cost\n")
    print(
        f"{'learning rate':>16} {'weight decay' * decay:>14} {'epoch':>6} {'cost':>10} {metric:>10}"
    )
    for k in order[:SHOWN].tolist():
        epoch = best["epoch"][k]
        cost = best["cost"][k]
        score = format_score(metric, history[f"val_{metric}"][epoch - 1, k]) if epoch else "-"
        of_decay = f"{float(sweep['weight_decay'][k]):.2g}" if decay else ""
        rate = float(sweep["learning_rate"][k])
        print(f"{rate:16.2g} {of_decay:>14} {epoch:6} {cost:10.4f} {score:>10}")
    if len(order) > SHOWN:
        print(f"{'and ' + str(len(order) - SHOWN) + ' more':>16}")
