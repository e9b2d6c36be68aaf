"""scikit-learn's own MLP is the oracle: same random_state, same training, up to rounding.

The bound: both round float64 (1e-16) in other orders, and training amplifies the difference by the
steepest curvature at every step. After the few steps here none exceeds 1e-12; a wrong rule is off
by 1e-3 and more.
"""

import warnings

import numpy as np
import pytest
import sklearn.neural_network as theirs
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning

from deepprop import sklearn as ours

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
TWO = make_classification(150, 6, random_state=1)
FOUR = make_classification(230, 6, n_informative=5, n_redundant=0, n_classes=4, random_state=2)
LABELS = make_multilabel_classification(150, 6, n_classes=3, random_state=3)
NUMBER = make_regression(150, 6, noise=5.0, random_state=4)
NUMBERS = make_regression(150, 6, n_targets=3, noise=5.0, random_state=5)
COUNTS = NUMBER[0], np.random.default_rng(0).poisson(np.exp(0.3 * NUMBER[0][:, 0]))
WEIGHTS = np.random.default_rng(6).uniform(0, 3, 230)

CLASSIFIERS = {
    "two classes": (TWO, {}),
    "four classes": (FOUR, {}),
    "several labels": (LABELS, {}),
    "tanh": (FOUR, {"activation": "tanh", "hidden_layer_sizes": (7, 5)}),
    "logistic": (FOUR, {"activation": "logistic"}),
    "identity": (FOUR, {"activation": "identity", "hidden_layer_sizes": 4}),
    "a step takes 64": (FOUR, {"batch_size": 64}),
    "not shuffled": (FOUR, {"shuffle": False, "batch_size": 50}),
    "a large penalty": (FOUR, {"alpha": 30.0}),
    "adam's numbers": (TWO, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-2}),
    "stops early": (TWO, {"tol": 0.05, "n_iter_no_change": 2, "learning_rate_init": 0.1}),
    "held out": (TWO, {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 3}),
    "sgd": (FOUR, {"solver": "sgd", "learning_rate_init": 0.1}),
    "sgd, momentum": (FOUR, {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.7}),
    "sgd, none": (FOUR, {"solver": "sgd", "momentum": 0.0}),
    "invscaling": (FOUR, {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3}),
    "adaptive": (TWO, {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1,
                       "n_iter_no_change": 1, "learning_rate_init": 0.2}),
    "lbfgs": (FOUR, {"solver": "lbfgs"}),
    "lbfgs, two classes": (TWO, {"solver": "lbfgs", "activation": "tanh", "alpha": 2.0}),
}  # fmt: skip
REGRESSORS = {
    "a number": (NUMBER, {}),
    "three numbers": (NUMBERS, {}),
    "counts": (COUNTS, {"loss": "poisson", "learning_rate_init": 0.01}),
    "held out": (NUMBER, {"early_stopping": True, "learning_rate_init": 0.05}),
    "lbfgs": (NUMBER, {"solver": "lbfgs"}),
    "lbfgs, counts": (COUNTS, {"solver": "lbfgs", "loss": "poisson"}),
}
ORDINARY = {"four classes", "several labels", "held out", "sgd", "adaptive", "lbfgs", "counts"}
CASES = [
    pytest.param(kind, *case, id=f"{kind[3:]}: {name}",
                 marks=() if name in ORDINARY else pytest.mark.thorough)
    for kind, cases in (("MLPClassifier", CLASSIFIERS), ("MLPRegressor", REGRESSORS))
    for name, case in cases.items()
]  # fmt: skip


def both(kind, **settings):
    """Return scikit-learn's estimator and ours."""
    settings = {"hidden_layer_sizes": (8,), "max_iter": 12, "random_state": 0, **settings}
    return getattr(theirs, kind)(**settings), getattr(ours, kind)(**settings)


def quietly(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return f(*args, **kwargs)


def check_same(their, our, X):
    """Compare all that both report: parameters, costs, counts and predictions."""
    for name in ("coefs_", "intercepts_"):
        for expected, found in zip(getattr(their, name), getattr(our, name), strict=True):
            np.testing.assert_allclose(found, expected, **CLOSE)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(our, name) == getattr(their, name), name
    for name in ("loss_", "loss_curve_", "best_loss_", "validation_scores_",
                 "best_validation_score_"):  # fmt: skip
        expected = getattr(their, name, None)
        if expected is None:
            assert getattr(our, name, None) is None, name
        else:
            np.testing.assert_allclose(getattr(our, name), expected, err_msg=name, **CLOSE)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(their, method):
            with np.errstate(divide="ignore"):  # the logarithm of a probability of 0
                expected, found = getattr(their, method)(X), getattr(our, method)(X)
            assert found.dtype == expected.dtype
            if method == "predict_log_proba":  # XLA has no subnormal numbers, whose log is below
                expected, found = np.maximum(expected, -700), np.maximum(found, -700)
            np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.ordinary(3)
@pytest.mark.parametrize(("kind", "data", "settings"), CASES)
def test_fit(kind, data, settings):
    X, y = data
    their, our = both(kind, **settings)
    quietly(their.fit, X, y)
    quietly(our.fit, X, y)
    check_same(their, our, X)


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"solver": "lbfgs"}, marks=pytest.mark.thorough)]
)
def test_weights(settings):
    X, y = FOUR
    their, our = both("MLPClassifier", batch_size=100, **settings)
    quietly(their.fit, X, y, sample_weight=WEIGHTS)
    quietly(our.fit, X, y, sample_weight=WEIGHTS)
    check_same(their, our, X)


@pytest.mark.parametrize("solver", ["adam", pytest.param("sgd", marks=pytest.mark.thorough)])
def test_partial_fit_after_fit(solver):
    X, y = FOUR
    their, our = both("MLPClassifier", solver=solver, max_iter=3)
    for model in (their, our):
        quietly(model.fit, X, y)
        for part in (slice(0, 90), slice(90, 150), slice(150, 230)):
            model.partial_fit(X[part], y[part])
    check_same(their, our, X)


def test_partial_fit_alone():
    X, y = FOUR
    their, our = both("MLPClassifier")
    for model in (their, our):
        model.partial_fit(X[:50], y[:50], classes=[0, 1, 2, 3])
        model.partial_fit(X[50:], y[50:])
    check_same(their, our, X)


def test_a_warm_start():
    X, y = NUMBER
    their, our = both("MLPRegressor", warm_start=True, max_iter=4)
    for model in (their, our):
        for _ in range(3):
            quietly(model.fit, X, y)
    check_same(their, our, X)


def test_a_random_state_that_is_shared():
    X, y = TWO
    rng = [np.random.RandomState(5), np.random.RandomState(5)]
    models = both("MLPClassifier", max_iter=3)
    for model, state in zip(models, rng, strict=True):
        model.set_params(random_state=state)
        for _ in range(2):
            quietly(model.fit, X, y)
    check_same(*models, X)


@pytest.mark.parametrize("settings", [{}, {"solver": "lbfgs"}])
def test_confident_mistakes_are_reported_as_they_are_there(settings):
    """Columns of any size: at first, probabilities are 0 and 1, and many of them wrong."""
    X = FOUR[0] * [1, 10, 100, 1000, 1, 1]
    for y in (FOUR[1], FOUR[1] > 1):
        their, our = both("MLPClassifier", max_iter=4, **settings)
        quietly(their.fit, X, y)
        quietly(our.fit, X, y)
        check_same(their, our, X)


def test_single_precision():
    X, y = FOUR
    their, our = both("MLPClassifier", max_iter=3)
    for model in (their, our):
        quietly(model.fit, X.astype(np.float32), y)
    for expected, found in zip(their.coefs_, our.coefs_, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)  # Adam's first steps amplify 1e-7
    assert our.predict_proba(X.astype(np.float32)).dtype == np.float32


def test_what_it_prints(capsys):
    X, y = TWO
    settings = {"early_stopping": True, "verbose": True, "tol": 1.0, "n_iter_no_change": 2}
    their, our = both("MLPClassifier", **settings)
    quietly(their.fit, X, y)
    expected = capsys.readouterr().out
    quietly(our.fit, X, y)
    assert capsys.readouterr().out == expected
    assert expected.count("Iteration") == 4
