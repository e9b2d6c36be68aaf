"""The standard deviation of one network's predictions, from the posterior of its parameters.

The posterior needs the training data. An estimator refers to what `fit` was given, but does not
store it in a pickle: a model file that holds the training data would be large, and no longer
private.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from deepprop.costs import OUTPUTS
from deepprop.layers import Params
from deepprop.signals.posterior import Posterior, laplace
from deepprop.sklearn.rows import CHUNK, Examples

HELD_OUT = 0.15  # share of the examples


def posterior_of(
    params: Params,
    examples: Examples | None,
    s: SimpleNamespace,
    again: Callable[[Examples], Params],
) -> Posterior:
    """Return the Laplace posterior of the last layer.

    Its prior precision and noise can't be taken from the data that the network was trained on: if
    it has overfitted, it would be far too sure. So a second network is trained on 85 % of the
    examples, and they are those under which the others are likeliest.

    Args:
        params: the trained layers.
        examples: the training data; None if the estimator does not have it.
        s: the settings.
        again: trains a network on other examples with the same settings.

    Raises:
        ValueError: the data is not there, the network's cost has no distribution of targets, or its
            training was private.
    """
    name = params[-1].activation.name
    if s.privacy is not None:
        raise ValueError("return_std needs the training data, so it is not private: leave it out")
    if name not in OUTPUTS:
        raise ValueError(
            "return_std needs the loss 'squared_error' or 'poisson', or an ensemble (n_members"
            f" above 1), got loss={name.partition('+')[2]!r}"
        )
    if examples is None:
        raise ValueError(
            "return_std needs the training data, or an ensemble (n_members above 1): this estimator"
            " was pickled, or trained by partial_fit; call fit, and predict with return_std once"
            " before pickling"
        )
    X = examples.X.toarray() if sparse.issparse(examples.X) else examples.X
    whole = Examples(X, examples.Y, examples.weights)
    order = np.random.default_rng(0).permutation(len(X))
    held_out, rest = (whole.at(part) for part in np.split(order, [round(HELD_OUT * len(X))]))
    if not len(held_out.X):
        raise ValueError(f"return_std needs at least 4 examples, got {len(X)}")
    pair = held_out.X.T, held_out.Y.T
    measured = _of(again(rest), rest, validation=pair)
    chosen = {} if s.loss == "poisson" else {"noise": float(measured.noise)}
    return _of(params, whole, prior_precision=float(measured.prior_precision), **chosen)


def _of(params: Params, examples: Examples, **options: Any) -> Posterior:
    return laplace(params, examples.X.T, examples.Y.T, weights=examples.weights, **options)


def standard_deviation(posterior: Posterior, X: Any) -> np.ndarray:
    """Return the standard deviation of a new target for each row of X, (m, n_L).

    Its variance is that of A[L] over the posterior plus that of the target around A[L]: the noise,
    or A[L] itself for counts, whose Z[L] is normal, so that A[L] = exp(Z[L]) is log-normal.
    """
    step = max(1024, CHUNK // X.shape[1])
    parts = []
    for start in range(0, X.shape[0], step):
        rows = X[start : start + step]
        rows = rows.toarray() if sparse.issparse(rows) else rows
        mean, variance = posterior.predict(np.asarray(rows, posterior.params[0].W.dtype).T)
        if posterior.params[-1].activation == OUTPUTS["exp"]:
            of_target = mean + jnp.square(mean) * jnp.expm1(variance)
        else:
            of_target = variance + posterior.noise
        parts.append(np.asarray(jnp.sqrt(of_target)).T)
    return np.concatenate(parts)
