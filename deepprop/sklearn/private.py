"""Private training for the estimators: `dp.fit` with its `Privacy`."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import sparse

from deepprop.layers import Params
from deepprop.optimizers.masks import weight_mask
from deepprop.sklearn.rows import Examples, batch_of
from deepprop.sklearn.solvers import numbers_of, solver_of, transformation
from deepprop.training.fitting import fit


def train_privately(estimator: Any, s: Any, examples: Examples, params: Params) -> Params:
    """Train for `max_iter` epochs by DP-SGD, and return the parameters.

    There is no early stopping, because the cost of the examples is not private. The penalty adds
    alpha / batch_size W to the private gradient in each step; it does not depend on the examples.

    Args:
        estimator: gets `loss_curve_`, `epsilon_` and what else training reports.
        s: its settings, checked.
        examples: all of them, without weights.
        params: the layers to start with.
    """
    if examples.weights is not None:
        raise ValueError("sample_weight must be None with privacy: each example counts once")
    if sparse.issparse(examples.X):
        raise TypeError("X must be dense with privacy, got a sparse array: pass .toarray()")
    size = batch_of(s.batch_size, len(examples.Y)).size
    optimizer = optax.chain(
        optax.add_decayed_weights(s.alpha / size, mask=weight_mask),
        transformation(solver_of(s), s.learning_rate_init, numbers_of(s)),
    )
    fitted = fit(
        jax.tree.map(jnp.asarray, params), optimizer, examples.X.T, examples.Y.T,
        epochs=s.max_iter, batch_size=size, key=_key(estimator), privacy=s.privacy,
        callbacks=s.callbacks,
    )  # fmt: skip
    estimator.loss_curve_ = fitted.history["cost"].tolist()
    estimator.loss_ = estimator.best_loss_ = estimator.loss_curve_[-1]
    estimator.n_iter_ = len(estimator.loss_curve_)
    estimator.t_ = len(examples.Y) * estimator.n_iter_  # on average
    estimator.epsilon_ = float(fitted.history["epsilon"][-1])
    return fitted.params


def _key(estimator: Any) -> Any:
    """Return an unpredictable key; with `random_state`, a reproducible one, which is not secret."""
    if estimator.random_state is None:
        bits = jnp.array(np.frombuffer(os.urandom(8), np.uint32))
        return jax.random.wrap_key_data(bits, impl="threefry2x32")
    return jax.random.key(estimator._random_state.randint(2**31 - 1), impl="threefry2x32")
