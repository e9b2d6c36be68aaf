"""The loop around the epochs, with scikit-learn's rules for when to stop and what to report.

Everything that a warm start or `partial_fit` continues with is an attribute of the estimator, under
scikit-learn's name where it has one.
"""

import warnings
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from deepprop.layers import Params
from deepprop.sklearn.epoch import mean_of, no_sums, take_steps, total_loss
from deepprop.sklearn.rows import Batch, Examples, at_once, batch_of, feed, rounded
from deepprop.sklearn.settings import averaged, factors
from deepprop.sklearn.solvers import first_state, numbers_of, solver_of

GENERATOR = "rbg"  # for dropout: on a CPU it takes half as long as Threefry
SLOWEST = 1e-6  # "adaptive" stops at that rate


def train(estimator: Any, s: Any, examples: Examples, params: Params, *, once: bool) -> Params:
    """Train epoch by epoch, and return the parameters.

    Args:
        estimator: whose progress is read and written.
        s: its settings, checked.
        examples: all of them; with a validation set they are divided here.
        params: the layers to start with.
        once: whether to take one epoch and go on with an earlier solver's state: `partial_fit`.
    """
    held_out = None
    if s.early_stopping or s.patience is not None:
        if once:
            raise ValueError("partial_fit does not support early_stopping=True or patience")
        examples, held_out = _divided(estimator, s, examples)
    m, dtype = len(examples.Y), examples.Y.dtype
    M, width = estimator._sizes if once else (0, 0)
    batch = batch_of(s.batch_size, m, width)
    if once:  # a shorter batch then runs the program of this one
        estimator._sizes = max(M, rounded(m)), batch.width
    epoch = partial(
        _epoch, estimator, s, feed(examples, dtype, batch, M), batch, _dropout_key(estimator, s)
    )
    scored = None if held_out is None else _Scored(estimator, s, held_out, dtype)
    estimator._begin_progress(s)
    if not once or estimator._state is None or estimator._solver != _name(s):
        estimator._state, estimator._rate = first_state(solver_of(s), params), s.learning_rate_init
        estimator._solver = _name(s)

    estimator.n_iter_, best, stopped, order = 0, params, False, np.arange(m)
    try:
        while not stopped and estimator.n_iter_ < (1 if once else s.max_iter):
            if s.shuffle:
                order = _shuffled(order, estimator._random_state)
            params = epoch(params, order)
            score = None if scored is None else scored(params)
            if _is_best(estimator, s, score):
                best = params
            stopped = _called_back(estimator, s, params, score) or _is_over(estimator, s)
        if not once and not stopped:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({s.max_iter}) reached and the"
                " optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=4,
            )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=4)
    estimator._state = jax.device_get(estimator._state)
    return params if held_out is None else best


def _name(s: Any) -> str:
    """Return what tells solvers apart in a pickle, where an optax transformation can't be."""
    return s.solver if isinstance(s.solver, str) else "optax"


def _dropout_key(estimator: Any, s: Any) -> Any:
    """Return a key for dropout, or one per network; without dropout, None, and draw nothing."""
    if not s.dropout:
        return None
    key = jax.random.key(estimator._random_state.randint(2**31 - 1), impl=GENERATOR)
    return key if s.n_members == 1 else jax.random.split(key, s.n_members)


def _divided(estimator: Any, s: Any, examples: Examples) -> tuple[Examples, Examples]:
    """Return the examples to train on and those held out, of classes in the same shares."""
    Y = examples.Y
    rest, held_out = train_test_split(
        np.arange(len(Y)), random_state=estimator._random_state, test_size=s.validation_fraction,
        stratify=estimator._strata(Y, s.validation_fraction),
    )  # fmt: skip
    if len(held_out) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your"
            f" dataset: validation_fraction={s.validation_fraction} of {len(Y)} examples"
        )
    return examples.at(rest), examples.at(held_out)


def _shuffled(order: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Shuffle the order with the same random numbers as `sklearn.utils.shuffle`."""
    positions = np.arange(len(order))
    rng.shuffle(positions)
    return order[positions]


def _epoch(
    estimator: Any, s: Any, chunks: Any, batch: Batch, key: Any, params: Params, order: np.ndarray
) -> Params:
    """Train for one epoch in that order, add to the estimator's progress, and return the layers."""
    m = len(order)
    steps = -(-m // batch.size)
    factor = factors(s.schedule, estimator.n_iter_ * steps, steps, s.max_iter * steps)
    sums, state = no_sums(params), estimator._state
    for i, chunk in enumerate(chunks(order)):
        rates = estimator._rate * factor if isinstance(factor, float) else _part(
            estimator._rate * np.array(factor), i, batch, len(chunk.X)
        )  # fmt: skip
        key_i = None if key is None else _folded(key, estimator.t_ % 2**31, i)
        params, state, sums = take_steps(
            params, state, sums, chunk, np.int32(batch.size), rates, numbers_of(s), key_i,
            solver=solver_of(s), width=batch.width, several=s.n_members > 1,
        )  # fmt: skip
        estimator._state = state  # the former was donated, and Ctrl-C may come before the next
    estimator.loss_ = _loss(estimator, s, jax.device_get(sums))
    estimator.loss_curve_.append(estimator.loss_)
    estimator.n_iter_ += 1
    estimator.t_ += m
    if s.verbose:
        print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
    return params


def _part(rates: np.ndarray, i: int, batch: Batch, M: int) -> np.ndarray:
    """Return the rates of a chunk's steps, in an array of one length for all chunks."""
    steps = -(-M // batch.size)
    of_chunk = rates[i * steps :][:steps]
    return np.pad(of_chunk, (0, steps - len(of_chunk)))


def _folded(key: Any, seen: int, chunk: int) -> Any:
    """Return the keys of an epoch's chunk, after that many examples."""

    def fold(key: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(key, seen), chunk)

    return jax.vmap(fold)(key) if key.ndim else fold(key)


def _loss(estimator: Any, s: Any, sums: np.ndarray) -> np.float64:
    """Return the epoch's mean cost with its penalty; of several networks, their mean."""
    cost, penalty, count = sums if sums.ndim == 1 else sums.mean(0)
    return np.float64((cost / averaged(estimator, s) + penalty) / count)


class _Scored:
    """The score of held-out examples: scikit-learn's, or with patience minus their cost."""

    def __init__(self, estimator: Any, s: Any, examples: Examples, dtype: Any) -> None:
        self._estimator, self._examples, self._by_cost = estimator, examples, s.patience is not None
        if examples.weights is not None and not examples.weights.any():
            raise ValueError("sample_weight must not all be zero in the validation set")
        if self._by_cost:
            self._chunks = at_once(examples, dtype)
        else:
            self._target = estimator._decoded(examples.Y)

    def __call__(self, params: Params) -> float:
        if self._by_cost:
            pairs = [jax.device_get(total_loss(params, chunk)) for chunk in self._chunks()]
            total, w = (sum(parts) for parts in zip(*pairs, strict=True))
            return -float(np.mean(total) / w)
        A = mean_of(self._estimator._outputs_of(params, self._examples.X))
        if not np.isfinite(A).all():
            return float("nan")
        found, w = self._estimator._decoded(A), self._examples.weights
        return float(self._estimator._metric(self._target, found, sample_weight=w))


def _is_best(estimator: Any, s: Any, score: float | None) -> bool:
    """Count the epochs without an improvement; return whether this is the best score so far."""
    e = estimator
    if score is None:
        improved = not e.loss_ > e.best_loss_ - s.tol  # nan: as in scikit-learn
        e.best_loss_ = e.loss_ if e.loss_ < e.best_loss_ else e.best_loss_
        is_best = False
    else:
        e.validation_scores_.append(score)
        if s.verbose:
            print(f"Validation score: {score:f}")
        is_best = score > e.best_validation_score_
        improved = is_best if s.patience is not None else not (
            score < e.best_validation_score_ + s.tol
        )  # fmt: skip
        e.best_validation_score_ = score if is_best else e.best_validation_score_
    e._no_improvement_count = 0 if improved else e._no_improvement_count + 1
    return is_best


def _is_over(estimator: Any, s: Any) -> bool:
    """Return whether to stop: too long without an improvement, and the rate can't get lower."""
    e = estimator
    if s.solver == "sgd" and s.learning_rate == "invscaling":
        e._rate = s.learning_rate_init / (e.t_ + 1) ** s.power_t
    if s.patience is not None:
        return bool(e._no_improvement_count >= s.patience)
    if e._no_improvement_count <= s.n_iter_no_change:
        return False
    scored = e.validation_scores_ is not None
    what = "Validation score" if scored else "Training loss"
    text = f"{what} did not improve more than tol={s.tol:f} for {s.n_iter_no_change} consecutive"
    if s.solver != "sgd" or s.learning_rate != "adaptive" or e._rate <= SLOWEST:
        if s.verbose:
            print(f"{text} epochs. Stopping.")
        return True
    e._rate, e._no_improvement_count = e._rate / 5, 0
    if s.verbose:
        print(f"{text} epochs. Setting learning rate to {e._rate:f}")
    return False


def _called_back(estimator: Any, s: Any, params: Params, score: float | None) -> bool:
    """Call the callbacks; return whether one of them returned True, which ends training."""
    row = {"cost": estimator.loss_}
    if score is not None:
        row |= {"val_score": score} if s.patience is None else {"val_cost": -score}
    called = [callback(estimator.n_iter_, row, params) for callback in s.callbacks]
    return any(result is True for result in called)
