"""The standard deviation of one network's predictions, from the posterior of its parameters.

The posterior needs the training data. An estimator keeps a reference to the arrays passed to `fit`,
but leaves them out of its pickle: a model file that holds the training data would be large, and
would no longer be private.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import sparse

from deepprop.costs import OUTPUTS
from deepprop.layers import Params
from deepprop.signals.posterior import Posterior, laplace
from deepprop.sklearn.rows import Examples, padded_parts

HELD_OUT = 0.15  # share of the examples


def check_known(loss: str, s: SimpleNamespace) -> None:
    """Raise unless a network with these settings has a posterior.

    Raises:
        ValueError: its cost has no distribution of targets, or its training is private.
    """
    if s.privacy is not None:
        raise ValueError("return_std needs the training data, so it is not private: leave it out")
    if loss not in ("squared_error", "poisson"):
        raise ValueError(
            "return_std needs the loss 'squared_error' or 'poisson', or an ensemble (n_members"
            f" above 1), got loss={loss!r}"
        )


def posteriors_of(
    params: Params, examples: Examples, again: Callable[[Examples], Params]
) -> list[Posterior]:
    """Return the Laplace posterior of the last layer, for each output.

    An overfitted network would be far too sure if its prior precision and noise were chosen on its
    own training data. So a second network is trained on 85 % of the examples, and the two are
    chosen to make the other 15 % likeliest. Given A[L-1], the rows of the last layer do not depend
    on one another, so each output has a prior precision and a noise of its own.

    Args:
        params: the trained layers.
        examples: the training data.
        again: trains a network on other examples with the same settings.

    Raises:
        ValueError: there are too few examples with a weight.
    """
    X = examples.X.toarray() if sparse.issparse(examples.X) else examples.X
    whole = Examples(X, examples.Y, examples.weights)
    if whole.weights is not None:
        whole = whole.at(np.flatnonzero(whole.weights))
    order = np.random.default_rng(0).permutation(len(whole.X))
    held_out, rest = (whole.at(part) for part in np.split(order, [round(HELD_OUT * len(order))]))
    if not len(held_out.X):
        raise ValueError(f"return_std needs at least 4 examples, got {len(order)}")
    trained = again(rest)
    found = []
    for k in range(whole.Y.shape[1]):
        validation = _columns(held_out, k)
        measured = _of(trained, rest, k, validation=validation)
        chosen = {"prior_precision": float(measured.prior_precision)}
        if params[-1].activation == OUTPUTS["identity"]:
            chosen["noise"] = float(measured.noise)
        found.append(_of(params, whole, k, **chosen))
    return found


def _columns(examples: Examples, k: int) -> tuple[Any, Any, Any]:
    return examples.X.T, examples.Y.T[k : k + 1], examples.weights


def _of(params: Params, examples: Examples, k: int, **options: Any) -> Posterior:
    """Return the posterior of output k."""
    *below, last = params
    one = (*below, replace(last, W=last.W[k : k + 1], b=last.b[k : k + 1]))
    X, Y, w = _columns(examples, k)
    return laplace(one, X, Y, weights=w, **options)


def standard_deviation(posteriors: list[Posterior], X: Any) -> np.ndarray:
    """Return the standard deviation of a new target for each row of X, (m, n_L)."""
    parts = []
    for m, entered in padded_parts(X, posteriors[0].params[0].W.dtype):
        of_outputs = [np.asarray(posterior.deviation(entered.T)) for posterior in posteriors]
        parts.append(np.concatenate(of_outputs)[:, :m].T)
    return np.concatenate(parts)
