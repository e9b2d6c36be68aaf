"""`MLPClassifier` and `MLPRegressor`: scikit-learn's parameters and attributes, and some more."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.typing import DTypeLike
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from deepprop.activations import Activation
from deepprop.costs import COSTS
from deepprop.layers import Params
from deepprop.sklearn.epoch import mean_of
from deepprop.sklearn.perceptron import Perceptron, precision
from deepprop.sklearn.rows import Examples
from deepprop.sklearn.settings import STOCHASTIC, checked, is_stochastic
from deepprop.sklearn.uncertainty import check_known, posteriors_of, standard_deviation
from deepprop.training.loop import Callback
from deepprop.training.private import Privacy

FLOATS = (np.float64, np.float32)
LOSSES = ("squared_error", "poisson")  # scikit-learn's; deepprop's costs are known, too


def _takes_steps(estimator: Any) -> bool:
    """Return True if the estimator has `partial_fit`; raise AttributeError if it has not."""
    if not is_stochastic(estimator.solver):
        raise AttributeError(
            f"partial_fit needs a stochastic solver ({', '.join(STOCHASTIC)} or an optax"
            f" transformation), got {estimator.solver!r}"
        )
    if estimator.privacy is not None:
        raise AttributeError("partial_fit does not support privacy: its epsilon would not add up")
    if estimator.schedule != "constant":
        raise AttributeError("partial_fit does not support a schedule, as no end is known")
    return True


class MLPClassifier(ClassifierMixin, Perceptron):  # type: ignore[misc]
    """Classify with a neural network: scikit-learn's `MLPClassifier`, compiled and extended.

    The parameters up to `max_fun` have the names, defaults and meaning that they have in
    scikit-learn; so do the fitted attributes. With the same `random_state`, both draw the same
    initial weights and the same order of examples, and training agrees up to rounding. The
    parameters after `max_fun` are extensions.

    >>> import numpy as np
    >>> from deepprop.sklearn import MLPClassifier
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
    >>> clf = MLPClassifier((16,), learning_rate_init=0.05, max_iter=300, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95, clf.predict([[1.0, 1.0]]).tolist()
    (True, ['same'])

    Args:
        hidden_layer_sizes: units of each hidden layer.
        activation: of the hidden layers: "identity", "logistic", "tanh", "relu", any name that
            `dp.activation` knows, or a `dp.Activation`.
        solver: "adam", "sgd", "lbfgs", or an optax transformation, such as `dp.kfac()`.
        alpha: the factor of the penalty alpha / (2 m) sum_l ||W[l]||^2, with m the examples of a
            step.
        batch_size: examples per step; "auto" takes 200, or all if there are fewer.
        learning_rate: for "sgd": "constant", "invscaling" (learning_rate_init / (t + 1)^power_t,
            with t the examples seen so far) or "adaptive" (divided by 5 when training no longer
            improves).
        learning_rate_init: the learning rate of "adam" and "sgd".
        power_t: see `learning_rate`.
        max_iter: epochs at most; for "lbfgs" iterations.
        shuffle: whether to draw a new order of the examples in each epoch.
        random_state: a seed or a `RandomState`, for the initial weights, the order of the examples,
            the validation set and dropout.
        tol: the smallest improvement that counts, see `n_iter_no_change`; for "lbfgs", stop when no
            entry of the gradient is larger in size.
        verbose: whether to print the cost of each epoch.
        warm_start: whether `fit` starts from the weights of the earlier fit.
        momentum: of "sgd".
        nesterovs_momentum: whether it is Nesterov's.
        early_stopping: whether to hold out a validation set, stop by its score, and keep the best
            weights.
        validation_fraction: its share of the examples, of each class alike.
        beta_1: of "adam", the decay of the mean.
        beta_2: of "adam", the decay of the mean of squares.
        epsilon: of "adam".
        n_iter_no_change: epochs without an improvement after which to stop.
        max_fun: evaluations of the cost at most, for "lbfgs".
        class_weight: weights of the classes: "balanced", or a mapping of labels to weights. They
            multiply `sample_weight`.
        dropout: the probability with which an entry of what enters layers 2 to L is dropped in
            training.
        normalize: "layer" or "rms", to normalise what enters layers 2 to L.
        residual: whether hidden layers with as many units as the layer below add their input.
        compute_dtype: of the factors of matrix products: "bfloat16", "float16" or "auto".
        schedule: what multiplies the learning rate over `max_iter` epochs: "constant", "linear",
            "cosine", "warmup_cosine", or a function of the step's number.
        patience: stop after so many epochs without a lower validation cost, and keep the weights of
            the best epoch. It holds out a validation set, as `early_stopping` does. None applies
            scikit-learn's stopping rules.
        callbacks: functions of (epoch, row, params), called after each epoch; True stops training.
            `dp.progress_bar` provides one.
        n_members: networks that are trained together, from different weights; their outputs are
            averaged. `coefs_` then have a leading axis.
        privacy: a `dp.Privacy`, to train with DP-SGD for `max_iter` epochs; `epsilon_` is the
            epsilon spent. Leave `random_state` as None: anyone who knows the seed can subtract the
            noise. `loss_` and `loss_curve_` are not private.

    Attributes:
        classes_: the labels.
        coefs_: W[l]^T of each layer, (n_{l-1}, n_l).
        intercepts_: b[l] of each layer, (n_l,).
        params_: the same as a tuple of `dp.Layer`, for all that deepprop does with one; in float32,
            unless JAX's float64 is on.
        loss_: the cost of the last epoch; `loss_curve_` has that of each epoch, `best_loss_` is the
            lowest.
        validation_scores_: the validation score of each epoch, with `early_stopping`; with
            `patience`, the negative validation cost.
        n_iter_: epochs of the last call; `t_` is the total number of examples seen.
        n_features_in_, feature_names_in_, n_layers_, n_outputs_, out_activation_: as the names say.
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Activation = "relu",
        *,
        solver: str | optax.GradientTransformation = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: str | Mapping[Any, float] | None = None,
        dropout: float = 0.0,
        normalize: str | None = None,
        residual: bool = False,
        compute_dtype: DTypeLike | None = None,
        schedule: str | Callable[[int], float] = "constant",
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
        n_members: int = 1,
        privacy: Privacy | None = None,
    ) -> None:
        """Store the parameters; `fit` checks them."""
        given = dict(locals())
        for name in self._names():
            setattr(self, name, given[name])

    @staticmethod
    def _names() -> Any:
        return MLPClassifier._get_param_names()

    @available_if(_takes_steps)  # type: ignore[untyped-decorator]
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> "MLPClassifier":
        """Train for one epoch on these examples, continuing from the last call.

        Args:
            X: (m, n_0), as for `fit`.
            y: (m,), their labels.
            sample_weight: (m,), as for `fit`.
            classes: all labels that will come; needed in the first call.

        Returns:
            The estimator itself.
        """
        if not hasattr(self, "classes_"):
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self._set_classes(y if type_of_target(y).startswith("multilabel") else classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was:"
                f" {self.classes_!r}"
            )
        self._fit(X, y, sample_weight, once=True)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row of X, (m,); for multi-label targets (m, labels) of 0 and 1.

        Args:
            X: (m, n_0).
        """
        check_is_fitted(self)
        found: np.ndarray = self._decoded(mean_of(self._members(X)))
        return found

    def predict_proba(self, X: Any, *, return_std: bool = False) -> Any:
        """Return the probability of each class, in the order of `classes_`, (m, classes).

        Args:
            X: (m, n_0).
            return_std: whether to return also the standard deviation over the members of an
                ensemble, (m, classes).
        """
        check_is_fitted(self)
        A = self._members(X)
        if return_std and A.ndim == 2:
            raise ValueError("return_std needs an ensemble: fit with n_members above 1")
        mean = self._of_classes(mean_of(A))
        return (mean, np.broadcast_to(A.std(0), mean.shape)) if return_std else mean

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of `predict_proba`, (m, classes).

        Args:
            X: (m, n_0).
        """
        with np.errstate(divide="ignore"):
            logarithms: np.ndarray = np.log(self.predict_proba(X))
        return logarithms

    def _of_classes(self, A: np.ndarray) -> np.ndarray:
        """Return a column per class: with two classes, A[L] is the second's probability."""
        return np.hstack([1 - A, A]) if A.shape[1] == 1 else A

    def _validated(self, X: Any, y: Any, once: bool, *, reset: bool) -> tuple[Any, np.ndarray]:
        """Return X and the encoded labels; the labels of an earlier call must be the same."""
        X, y = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], multi_output=True, dtype=FLOATS, reset=reset
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or once):
            self._set_classes(y)
        else:
            found = unique_labels(y)
            if self.warm_start and set(found) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous"
                    f" call to fit. Previously got {self.classes_}, `y` has {found}"
                )
            if not set(found) <= set(self.classes_):
                raise ValueError(
                    f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}."
                    f" 'y' has {found}."
                )
        return X, self._label_binarizer.transform(y).astype(bool)

    def _set_classes(self, y: Any) -> None:
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    def _weights(self, s: Any, given: Any, Y: np.ndarray) -> Any:
        """Return the weights of the examples, times those of their classes."""
        w = super()._weights(s, given, Y)
        if s.class_weight is None:
            return w
        by_class = compute_sample_weight(s.class_weight, self._decoded(Y)).astype(Y.dtype)
        return by_class if w is None else w * by_class

    def _output(self) -> str:
        return "softmax" if self.out_activation_ == "softmax" else "sigmoid"

    def _out_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _decoded(self, A: np.ndarray) -> Any:
        """Return the labels of probabilities, or of encoded labels."""
        return self._label_binarizer.inverse_transform(A.ravel() if A.shape[1] == 1 else A)

    _metric = staticmethod(accuracy_score)

    def _strata(self, Y: np.ndarray, share: float) -> Any:
        """Return the class of each example, by which to divide them; None for several labels.

        With more than two classes, a class that is too rare to be stratified is not an error:
        scikit-learn does not stratify them at all.
        """
        if self.out_activation_ == "logistic":
            return Y.astype(bool) if Y.shape[1] == 1 else None
        classes, held_out = Y.argmax(1), int(np.ceil(share * len(Y)))
        counts = np.unique_counts(classes).counts
        enough = counts.min() >= 2 and len(counts) <= min(held_out, len(Y) - held_out)
        return classes if enough else None

    def __sklearn_tags__(self) -> Any:
        """Say what the estimator takes, as scikit-learn asks for it."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, Perceptron):  # type: ignore[misc]
    """Predict numbers with a neural network: scikit-learn's `MLPRegressor`, compiled and extended.

    See `MLPClassifier` for what matches scikit-learn and what is an extension.

    >>> import numpy as np
    >>> from deepprop.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> y = np.sin(3 * X[:, 0])
    >>> model = MLPRegressor(hidden_layer_sizes=(32,), solver="lbfgs", random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.99
    True

    Args:
        loss: "squared_error", "poisson" (targets that are counts; the output is exp), or another
            cost of deepprop: "absolute_error", "huber(1.0)", "quantile(0.9)".
        hidden_layer_sizes: as for `MLPClassifier`, like all that follow.
    """

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Activation = "relu",
        *,
        solver: str | optax.GradientTransformation = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        normalize: str | None = None,
        residual: bool = False,
        compute_dtype: DTypeLike | None = None,
        schedule: str | Callable[[int], float] = "constant",
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
        n_members: int = 1,
        privacy: Privacy | None = None,
    ) -> None:
        """Store the parameters; `fit` checks them."""
        given = dict(locals())
        for name in self._names():
            setattr(self, name, given[name])

    @staticmethod
    def _names() -> Any:
        return MLPRegressor._get_param_names()

    @available_if(_takes_steps)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPRegressor":
        """Train for one epoch on these examples, continuing from the last call.

        Args:
            X: (m, n_0), as for `fit`.
            y: (m,) or (m, outputs).
            sample_weight: (m,), as for `fit`.

        Returns:
            The estimator itself.
        """
        self._fit(X, y, sample_weight, once=True)
        return self

    def predict(self, X: Any, *, return_std: bool = False) -> Any:
        """Return the prediction for each row of X, (m,) or (m, outputs).

        Args:
            X: (m, n_0).
            return_std: whether to return also a standard deviation. Of an ensemble it is that of
                the prediction over its members. Of one network it is that of a new target, from the
                Laplace approximation of the posterior (`dp.laplace`). The first such call computes
                it from the training data, and trains another network on 85 % of them to measure the
                noise. The estimator refers to what `fit` was given, so don't change it in place.
                The data is not pickled, the posterior is.
        """
        check_is_fitted(self)
        A = self._members(X)
        mean = self._decoded(mean_of(A))
        if not return_std:
            return mean
        deviation = A.std(0) if A.ndim == 3 else self._deviation(X)
        return mean, self._decoded(deviation)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, once: bool) -> "MLPRegressor":
        """Train, and refer to the data, of which `predict` may have to compute the posterior."""
        self._given: Any = None
        self._posteriors: list[Any] = []
        super()._fit(X, y, sample_weight, once=once)
        known = self.privacy is None and self.n_members == 1 and self.loss in LOSSES
        self._given = (X, y, sample_weight) if known and not once else None
        return self

    def _deviation(self, X: Any) -> np.ndarray:
        """Return the standard deviation of a new target, (m, outputs)."""
        s, dtype = checked(self._settings()), self.coefs_[0].dtype
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        check_known(self.loss, s)
        with precision(dtype):
            if not self._posteriors:
                found = posteriors_of(self._layers(s), self._training_data(s), self._again)
                self._posteriors = jax.device_get(found)  # float64 survives a pickle
            return standard_deviation(self._posteriors, X)

    def _training_data(self, s: Any) -> Examples:
        """Return what `fit` was given, checked again.

        Raises:
            ValueError: the estimator does not have it.
        """
        if self._given is None:
            raise ValueError(
                "return_std needs the training data, or an ensemble (n_members above 1): this"
                " estimator was trained by partial_fit, or is a copy; call fit, and predict with"
                " return_std once before copying or pickling"
            )
        X, y, sample_weight = self._given
        X, y = self._validated(X, y, False, reset=False)
        dtype = self.coefs_[0].dtype
        Y = np.asarray(y.reshape(len(y), -1), dtype)
        return Examples(X.astype(dtype), Y, self._weights(s, sample_weight, Y))

    def _again(self, examples: Examples) -> Params:
        """Return the layers of a network trained on other examples with the same settings."""
        quiet = {"warm_start": False, "verbose": False, "callbacks": ()}
        other = clone(self).set_params(**quiet)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `fit` has given it
            other.fit(examples.X, self._decoded(examples.Y), examples.weights)
        params: Params = other._layers(checked(other._settings()))
        return params

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: everything but the training data."""
        return {**super().__getstate__(), "_given": None}

    def _validated(self, X: Any, y: Any, once: bool, *, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], multi_output=True, y_numeric=True,
            dtype=FLOATS, reset=reset,
        )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(f"y must not be negative with loss='poisson', got {y.min()}")
        return X, y

    def _output(self) -> str:
        """Return deepprop's name of the output and its cost.

        Raises:
            ValueError: `loss` is not known.
        """
        if self.out_activation_ == "exp":
            return "exp"
        if self.loss in LOSSES:
            return "identity"
        name = str(self.loss).partition("(")[0]
        if name not in COSTS:
            known = ", ".join(map(repr, [*LOSSES, *(cost for cost in COSTS if cost not in LOSSES)]))
            raise ValueError(f"loss must be one of {known}, got {self.loss!r}")
        return f"identity+{self.loss}"

    def _out_activation(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _decoded(self, A: np.ndarray) -> np.ndarray:
        return A.ravel() if A.shape[1] == 1 else A

    _metric = staticmethod(r2_score)

    def _strata(self, Y: np.ndarray, share: float) -> None:
        """Return None, as there are no classes to stratify by."""
