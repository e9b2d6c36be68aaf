"""What both estimators share: fitting, outputs, and the network as layers of deepprop."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data

from deepprop.layers import Layer, Params
from deepprop.mixed_precision import with_compute_dtype
from deepprop.outputs import output
from deepprop.sklearn.epoch import outputs
from deepprop.sklearn.lbfgs import minimise
from deepprop.sklearn.loop import train
from deepprop.sklearn.private import train_privately
from deepprop.sklearn.rows import Examples, padded_parts
from deepprop.sklearn.settings import checked, is_stochastic

PROGRESS = ("loss_curve_", "validation_scores_", "best_validation_score_", "best_loss_")


class Perceptron(BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron; `MLPClassifier` and `MLPRegressor` say what Y is."""

    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    loss_curve_: list[float]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on examples in rows.

        Args:
            X: (m, n_0), one example per row: an array, a DataFrame or a sparse array. float32 stays
                float32; anything else is trained in float64.
            y: (m,) or (m, outputs), the targets.
            sample_weight: (m,), none negative; None weighs all alike.

        Returns:
            The estimator itself.
        """
        return self._fit(X, y, sample_weight, once=False)

    @property
    def params_(self) -> Params:
        """The network as a tuple of `dp.Layer`; with several members, they have a leading axis.

        float64 becomes float32 unless JAX's own float64 is on, as everything in JAX does.
        """
        params: Params = jax.tree.map(jnp.asarray, self._layers(checked(self._settings())))
        return params

    def _settings(self) -> SimpleNamespace:
        """Return the parameters of our class; a subclass may have others."""
        return SimpleNamespace(**{name: getattr(self, name) for name in self._names()})

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, once: bool) -> Any:
        """Train, from the start or from where an earlier call has ended."""
        s = checked(self._settings())
        first = not hasattr(self, "coefs_") or not (self.warm_start or once)
        X, y = self._validated(X, y, once, reset=first)
        X = X if first else X.astype(self.coefs_[0].dtype, copy=False)  # the network's
        Y = np.asarray(y.reshape(len(y), -1), X.dtype)
        weights = _checked_weights(self._weights(s, sample_weight, Y), len(Y))
        self.n_outputs_ = Y.shape[1]
        self._random_state = check_random_state(s.random_state)
        sizes = [X.shape[1], *s.hidden, Y.shape[1]]
        if first:
            self._begin(s, sizes, X.dtype)
        self._check_sizes(s, sizes)
        examples = Examples(X.tocsr() if sparse.issparse(X) else X, Y, weights)
        if s.privacy is None and hasattr(self, "epsilon_"):
            del self.epsilon_  # what an earlier, private fit has spent
        with precision(X.dtype):
            params = self._layers(s)
            if not is_stochastic(s.solver):
                params = minimise(self, s, examples, params)
            elif s.privacy is not None:
                params = train_privately(self, s, examples, params)
            else:
                params = train(self, s, examples, params, once=once)
            self._keep(jax.device_get(params))
        return self

    def _weights(self, s: SimpleNamespace, given: Any, Y: np.ndarray) -> Any:
        """Return the weights of the examples, or None if all are alike."""
        if given is None:
            return None
        if isinstance(given, Real):
            return np.full(len(Y), given, Y.dtype)
        return check_array(given, ensure_2d=False, dtype=Y.dtype, input_name="sample_weight")

    def _begin(self, s: SimpleNamespace, sizes: list[int], dtype: Any) -> None:
        """Draw the weights, as scikit-learn draws them, and forget what an earlier fit reported."""
        self.n_layers_, self.t_, self._state, self._sizes = len(sizes), 0, None, (0, 0)
        self._solver = None
        self.out_activation_ = self._out_activation()
        draws = [_glorot(s, sizes, self._random_state) for _ in range(s.n_members)]
        pairs = draws[0] if s.n_members == 1 else [
            tuple(map(np.stack, zip(*of_layer, strict=True)))
            for of_layer in zip(*draws, strict=True)
        ]  # fmt: skip
        self.coefs_ = [W.astype(dtype) for W, _ in pairs]
        self.intercepts_ = [b.astype(dtype) for _, b in pairs]
        for name in PROGRESS:
            if hasattr(self, name):
                delattr(self, name)
        if is_stochastic(s.solver):
            self._begin_progress(s)

    def _begin_progress(self, s: SimpleNamespace) -> None:
        """Start what training reports, except for what an earlier call has started."""
        scored = s.early_stopping or s.patience is not None
        if hasattr(self, "loss_curve_") and (getattr(self, "best_loss_", None) is None) == scored:
            return
        self.loss_curve_ = getattr(self, "loss_curve_", [])
        self._no_improvement_count = 0
        self.validation_scores_: list[float] | None = [] if scored else None
        self.best_validation_score_ = -np.inf if scored else None
        self.best_loss_ = None if scored else np.inf

    def _check_sizes(self, s: SimpleNamespace, sizes: list[int]) -> None:
        members = () if s.n_members == 1 else (s.n_members,)
        due = [(*members, n_below, n) for n_below, n in pairwise(sizes)]
        if [W.shape for W in self.coefs_] != due:
            raise ValueError(
                f"hidden_layer_sizes, n_members and the columns of X must not change between calls:"
                f" coefs_ has the shapes {[W.shape for W in self.coefs_]}, now {due}"
            )

    def _layers(self, s: SimpleNamespace) -> Params:
        """Return coefs_ and intercepts_ as layers."""
        pairs = list(zip(self.coefs_, self.intercepts_, strict=True))
        layers = []
        for l, (W, b) in enumerate(pairs, start=1):
            g = s.activation if l < len(pairs) else output(self._output())
            turned: Any = W.swapaxes(-1, -2)
            column: Any = b[..., None]
            layer = Layer(turned, column, g)
            if l > 1:
                layer = replace(layer, normalize=s.normalize, dropout=float(s.dropout))
            adds = s.residual and l < len(pairs) and W.shape[-1] == W.shape[-2]
            layers.append(replace(layer, residual=bool(adds)))
        if not s.compute_dtype:
            return tuple(layers)
        one = layers if self.coefs_[0].ndim == 2 else [_first(layer) for layer in layers]
        chosen = with_compute_dtype(tuple(one), s.compute_dtype)[0].compute_dtype
        return tuple(replace(layer, compute_dtype=chosen) for layer in layers)

    def _keep(self, params: Params) -> None:
        """Store trained layers as coefs_ and intercepts_.

        Raises:
            ValueError: one of their numbers is not finite.
        """
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        if not all(np.isfinite(leaf).all() for leaf in arrays):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large"
                " values and need to be preprocessed."
            )
        self.coefs_ = [np.array(W.swapaxes(-1, -2), order="C") for W in arrays[::2]]
        self.intercepts_ = [b[..., 0].copy() for b in arrays[1::2]]

    def _members(self, X: Any) -> np.ndarray:
        """Return A[L] of each row of X, (m, n_L); of K members (K, m, n_L)."""
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=None, reset=False)
        with precision(self.coefs_[0].dtype):
            return self._outputs_of(self._layers(checked(self._settings())), X)

    def _outputs_of(self, params: Params, X: Any) -> np.ndarray:
        """Return A[L] of each row of X, in parts of at most about `CHUNK` numbers."""
        parts = [
            np.asarray(outputs(params, entered))[..., :m, :]
            for m, entered in padded_parts(X, params[0].W.dtype)
        ]
        return np.concatenate(parts, axis=-2)

    def __sklearn_tags__(self) -> Any:
        """Say what the estimator takes, as scikit-learn asks for it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _checked_weights(w: np.ndarray | None, m: int) -> np.ndarray | None:
    """Return the weights (m,), times those of the classes.

    Raises:
        ValueError: their shape is another, one is negative or not finite, or all are 0.
    """
    if w is None:
        return None
    if w.shape != (m,):
        raise ValueError(f"sample_weight must have shape ({m},), got {w.shape}")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"sample_weight must not be negative, and must be finite, got {w.min()}")
    if not w.any():
        raise ValueError("sample_weight must not all be zero: J is the mean over their sum")
    return w


def _first(layer: Layer) -> Layer:
    """Return the first network's layer."""
    return replace(layer, W=layer.W[0], b=layer.b[0])


def _glorot(
    s: SimpleNamespace, sizes: list[int], rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return W (n_{l-1}, n_l) and b (n_l,) of each layer, uniform, in scikit-learn's order."""
    factor = 2.0 if s.activation.name == "sigmoid" else 6.0
    equal = [n == n_below for n_below, n in pairwise(sizes[:-1])]
    R = max(1, sum(equal)) if s.residual else 1
    if s.residual and not any(equal):
        raise ValueError(
            "residual needs a hidden layer with as many units as the one below, got"
            f" hidden_layer_sizes={s.hidden} and {sizes[0]} columns"
        )
    drawn = []
    for l, (n_below, n) in enumerate(pairwise(sizes)):
        bound = np.sqrt(factor / (n_below + n))
        W = rng.uniform(-bound, bound, (n_below, n))
        b = rng.uniform(-bound, bound, n)
        divided = l < len(equal) and equal[l]
        drawn.append((W / R if divided else W, b))
    return drawn


@contextmanager
def precision(dtype: Any) -> Iterator[None]:
    """Give JAX that dtype, as float64 is off by default, and optax the promotion that it needs.

    Adam's corrections are powers of a float with an integer. Where optax has a Python float, ours
    is an argument of the program, and a caller's strict promotion would refuse it.
    """
    wide = jax.enable_x64(True) if np.dtype(dtype) == np.float64 else nullcontext()
    with wide, jax.numpy_dtype_promotion("standard"):
        yield
