"""The standard deviation of one network's predictions: MLPRegressor.predict(return_std=True)."""

import pickle

import numpy as np
import pytest
from sklearn.linear_model import BayesianRidge

import deepprop as dp
from deepprop.sklearn import MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, (300, 2))
Y = np.sin(X[:, 0]) + 0.2 * RNG.standard_normal(300)


def test_a_linear_network_is_as_sure_as_bayesian_ridge_regression():
    """Its posterior is exact; the noise is measured on 15 % of the examples: 5 standard errors."""
    y = X @ [1.0, -2.0] + 0.5 + 0.3 * RNG.standard_normal(300)
    model = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0, tol=1e-8).fit(X, y)
    ridge = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0).fit(X, y)
    Z = RNG.uniform(-6, 6, (50, 2))
    mean, deviation = model.predict(Z, return_std=True)
    expected_mean, expected = ridge.predict(Z, return_std=True)
    np.testing.assert_allclose(mean, expected_mean, atol=0.02)
    np.testing.assert_allclose(deviation, expected, rtol=5 / np.sqrt(2 * 45))
    assert deviation.dtype == np.float64


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.float32])
def test_intervals_of_a_network_that_overfits_cover_new_targets(dtype):
    model = MLPRegressor(
        hidden_layer_sizes=(100,), solver="lbfgs", alpha=0, max_iter=400, random_state=0
    )
    model.fit(X.astype(dtype), Y)
    Z = RNG.uniform(-3, 3, (500, 2)).astype(dtype)
    mean, deviation = model.predict(Z, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(Z))
    true = np.sin(Z[:, 0]) + 0.2 * RNG.standard_normal(500)
    assert (abs(true - mean) < 1.96 * deviation).mean() > 0.8  # 0.95, with a noise from 45 examples
    assert (abs(true - mean) < deviation / 10).mean() < 0.2


@pytest.mark.thorough
def test_several_outputs_counts_weights_and_sparse_rows():
    from scipy import sparse

    pair = np.stack([Y, 10 * Y], axis=1)
    model = MLPRegressor(hidden_layer_sizes=(8,), solver="lbfgs", random_state=0)
    model.fit(sparse.csr_array(X), pair, sample_weight=np.full(300, 2.0))
    mean, deviation = model.predict(sparse.csr_array(X[:5]), return_std=True)
    assert mean.shape == deviation.shape == (5, 2)
    np.testing.assert_allclose(
        deviation[:, 1] / deviation[:, 0], 10, rtol=0.5
    )  # not one noise for both
    counts = np.random.default_rng(1).poisson(np.exp(1 + 0.3 * X[:, 0]))
    model = MLPRegressor(loss="poisson", hidden_layer_sizes=(), solver="lbfgs", alpha=0).fit(
        X, counts
    )
    mean, deviation = model.predict(X, return_std=True)
    np.testing.assert_allclose(
        deviation, np.sqrt(mean), rtol=0.05
    )  # 300 examples tell the mean well
    assert (deviation > np.sqrt(mean)).all()


def test_the_training_data_is_not_pickled():
    model = MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", random_state=0).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    assert X[:20].tobytes() not in pickle.dumps(model)
    with pytest.raises(ValueError, match="return_std needs the training data, or an ensemble"):
        again.predict(X, return_std=True)
    expected = model.predict(X, return_std=True)
    again = pickle.loads(pickle.dumps(model))
    for found, due in zip(again.predict(X, return_std=True), expected, strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-12)


def test_what_has_no_posterior():
    with pytest.raises(ValueError, match="return_std needs the loss 'squared_error' or 'poisson'"):
        MLPRegressor("huber", hidden_layer_sizes=(), solver="lbfgs").fit(X, Y).predict(
            X, return_std=True
        )
    step = MLPRegressor(hidden_layer_sizes=(4,)).partial_fit(X, Y)
    with pytest.raises(ValueError, match="trained by partial_fit"):
        step.predict(X, return_std=True)
    privacy = dp.Privacy(max_norm=1.0, delta=1e-5, noise_multiplier=1.0)
    private = MLPRegressor(hidden_layer_sizes=(4,), max_iter=1, privacy=privacy).fit(X, Y)
    with pytest.raises(ValueError, match="so it is not private"):
        private.predict(X, return_std=True)
