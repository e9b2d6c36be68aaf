"""L-BFGS on the cost of all examples: SciPy's, as scikit-learn uses it, with our cost and gradient.

SciPy's line search satisfies the strong Wolfe conditions. optax's search that does so
differentiates the cost itself, and its backtracking search does not satisfy them.
"""

import warnings
from typing import Any

import jax
import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning

from deepprop.layers import Params
from deepprop.sklearn.epoch import packed, total_and_gradient, unpacked
from deepprop.sklearn.rows import Examples, at_once
from deepprop.sklearn.settings import averaged


def minimise(estimator: Any, s: Any, examples: Examples, params: Params) -> Params:
    """Minimise the cost, and return the parameters; several networks one after the other.

    Args:
        estimator: gets `n_iter_` and `loss_`.
        s: its settings, checked.
        examples: all of them.
        params: the layers to start with.
    """
    chunks = at_once(examples, examples.Y.dtype)
    if s.n_members == 1:
        params, estimator.n_iter_, estimator.loss_ = _minimised(estimator, s, chunks, params)
        return params
    each = [
        _minimised(estimator, s, chunks, jax.tree.map(lambda leaf, k=k: leaf[k], params))
        for k in range(s.n_members)
    ]
    networks, iterations, losses = zip(*each, strict=True)
    estimator.n_iter_, estimator.loss_ = max(iterations), float(np.mean(losses))
    together: Params = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    return together


def _minimised(estimator: Any, s: Any, chunks: Any, params: Params) -> tuple[Params, int, float]:
    """Return the minimiser for one network, the iterations, and the cost that is reported."""
    flat = np.asarray(packed(params), np.float64)
    dtype, shrinks = params[0].W.dtype, _shrinks(params)
    penalty: Any = 0.0

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Return J + alpha / (2 m) sum_l ||W[l]||^2 and its gradient."""
        nonlocal penalty
        total, gradient, m = 0.0, np.zeros_like(flat), 0.0
        for chunk in chunks():
            of_chunk = total_and_gradient(flat.astype(dtype), params, chunk)
            J, slope = jax.device_get(of_chunk)
            total, gradient = total + float(J), gradient + slope
            m += float(chunk.m if chunk.weights is None else np.sum(chunk.weights))
        W = np.where(shrinks, flat, 0)
        penalty = s.alpha / (2 * m) * (W @ W)
        return total / m + penalty, (gradient + s.alpha * W) / m

    found = optimize.minimize(
        cost, flat, method="L-BFGS-B", jac=True, callback=_printer(cost) if s.verbose else None,
        options={"maxfun": s.max_fun, "maxiter": s.max_iter, "gtol": s.tol},
    )  # fmt: skip
    if found.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {found.nit} iterations (max_iter={s.max_iter}):"
            f" {found.message}. Increase max_iter or max_fun, or scale the data.",
            ConvergenceWarning,
            stacklevel=5,
        )
    J, _ = cost(found.x)
    loss = (J - penalty) / averaged(estimator, s) + penalty
    return jax.device_get(_layers(found.x.astype(dtype), params)), found.nit, float(loss)


_layers = jax.jit(unpacked)


def _shrinks(params: Params) -> np.ndarray:
    """Return whether each number of the packed params belongs to a W, which alpha shrinks."""
    sizes = [leaf.size for layer in params for leaf in (layer.W, layer.b)]
    return np.repeat(np.arange(len(sizes)) % 2 == 0, sizes)


def _printer(cost: Any) -> Any:
    """Return a callback that prints the cost after each iteration."""
    done = 0

    def report(flat: np.ndarray) -> None:
        nonlocal done
        done += 1
        print(f"Iteration {done}, loss = {cost(flat)[0]:.8f}")

    return report
