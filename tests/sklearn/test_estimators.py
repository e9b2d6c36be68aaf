"""What the estimators add to scikit-learn's, and what they need of its programs and errors."""

import logging
import pickle
import sys
import threading
import warnings

import jax
import numpy as np
import optax
import pytest
import sklearn.neural_network as theirs
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine, make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deepprop as dp
from deepprop.sklearn import MLPClassifier, MLPRegressor, loop, rows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = make_classification(140, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)
X_NUMBER, Y_NUMBER = make_regression(140, 6, noise=5.0, random_state=4)
SMALL = {"hidden_layer_sizes": (8,), "max_iter": 8, "random_state": 0, "learning_rate_init": 0.02}


def classifier(**settings):
    return MLPClassifier(**{**SMALL, **settings})


def regressor(**settings):
    return MLPRegressor(**{**SMALL, **settings})


def coefs(model):
    return np.concatenate([W.ravel() for W in [*model.coefs_, *model.intercepts_]])


# --- programs -----------------------------------------------------------------------------------


@pytest.fixture
def compiled(caplog):
    """A function that returns how many programs of steps were compiled since it was last called."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):

        def count():
            found = sum("Compiling jit(_steps)" in record.getMessage() for record in caplog.records)
            caplog.clear()
            return found

        yield count


def test_the_folds_of_a_cross_validation_run_one_program(compiled):
    model = make_pipeline(StandardScaler(), classifier(hidden_layer_sizes=(9,)))
    cross_val_score(model, *load_wine(return_X_y=True), cv=5)  # 142 and 143 examples
    assert compiled() == 1


@pytest.mark.thorough
def test_settings_that_are_numbers_share_a_program(compiled):
    grid = {"alpha": [0.0, 1.0], "learning_rate_init": [0.01, 0.1], "beta_1": [0.5, 0.9]}
    search = GridSearchCV(classifier(hidden_layer_sizes=(10,), max_iter=2), grid, cv=2).fit(X, Y)
    assert len(search.cv_results_["params"]) == 8
    assert compiled() == 2  # for 70 examples, and for all 140


def test_shorter_batches_of_partial_fit_run_one_program(compiled):
    model = classifier(hidden_layer_sizes=(11,)).partial_fit(X, Y, classes=[0, 1, 2])
    assert compiled() == 1
    for m in (1, 16, 63, 139, 140):
        model.partial_fit(X[:m], Y[:m])
    assert compiled() == 0


def test_clones_with_one_optax_transformation_share_a_program(compiled):
    model = classifier(hidden_layer_sizes=(12,), solver=optax.adam(0.01))
    first, second = (clone(model).fit(X, Y) for _ in range(2))
    assert compiled() == 1
    np.testing.assert_array_equal(coefs(first), coefs(second))


# --- what can be done with a fitted one ----------------------------------------------------------


def test_params_are_the_networks_layers():
    model = classifier(activation="tanh").fit(X, Y)
    with jax.enable_x64(True):
        A = dp.predict(model.params_, X.T)
        onehot = np.eye(3)[Y].T
        _, cache = dp.forward(model.params_, X.T)
        dZ = dp.error_signals(cache, onehot)
        norms = dp.per_example_norms(cache, dZ)
    np.testing.assert_allclose(A.T, model.predict_proba(X), rtol=1e-12)
    np.testing.assert_allclose(dp.predict(model.params_, X.T), A, rtol=1e-4)  # in float32
    assert norms.shape == (140,)
    assert [layer.W.shape for layer in model.params_] == [(8, 6), (3, 8)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "solver", ["adam", "lbfgs", optax.sgd(0.1)], ids=["adam", "lbfgs", "optax"]
)
def test_a_pickle_predicts_and_goes_on(solver):
    model = classifier(solver=solver).fit(X, Y)
    if not isinstance(solver, str):
        model.set_params(solver="sgd")  # functions made inside of functions can't be pickled
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    if solver == "adam":
        for each in (model, copy):
            each.partial_fit(X, Y)
        np.testing.assert_array_equal(coefs(copy), coefs(model))


@pytest.mark.thorough
def test_threads():
    expected = coefs(classifier().fit(X, Y))
    found = [None] * 4

    def work(i):
        found[i] = coefs(classifier().fit(X, Y))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.thorough
def test_processes_of_joblib():
    model = classifier()
    expected = cross_val_score(model, X, Y, cv=2)
    np.testing.assert_array_equal(cross_val_score(model, X, Y, cv=2, n_jobs=2), expected)


def test_a_data_frame_and_labels_as_text():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    labels = np.array(["low", "middle", "high"], object)[Y]
    model = classifier().fit(frame, labels)
    assert list(model.classes_) == ["high", "low", "middle"]
    assert list(model.feature_names_in_) == list("abcdef")
    assert set(model.predict(frame)) <= set(labels)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))


def test_global_settings_are_left_alone():
    classifier().fit(X, Y)
    assert not jax.config.jax_enable_x64
    assert jax.config.jax_numpy_dtype_promotion == "strict"


# --- sparse rows ----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_sparse_rows_are_made_dense_chunk_by_chunk(solver, monkeypatch):
    settings = {"solver": solver, "batch_size": 20} if solver == "adam" else {"solver": solver}
    expected = classifier(**settings).fit(X, Y)
    largest = []
    enter = rows.rows_of
    monkeypatch.setattr(rows, "CHUNK", 40 * 6)
    monkeypatch.setattr(
        rows, "rows_of", lambda P, *a, **k: largest.append(P.shape[1]) or enter(P, *a, **k)
    )
    found = classifier(**settings).fit(sparse.csc_array(X), Y)
    np.testing.assert_allclose(coefs(found), coefs(expected), rtol=1e-9, atol=1e-11)
    if solver == "adam":
        assert max(largest) == 40
    np.testing.assert_array_equal(found.predict(sparse.csr_array(X)), expected.predict(X))


def test_a_large_set_is_predicted_in_parts(monkeypatch):
    model = classifier().fit(X, Y)
    many = np.tile(X, (10, 1))
    expected = model.predict_proba(many)
    monkeypatch.setattr("deepprop.sklearn.rows.CHUNK", 6)  # 1024 rows at a time
    np.testing.assert_allclose(model.predict_proba(many), expected, rtol=1e-12)


# --- our own parameters ---------------------------------------------------------------------------


def test_balanced_classes_are_weights():
    rare = np.flatnonzero((Y > 0) | (np.arange(140) % 5 == 0))
    counts = np.bincount(Y[rare])
    by_hand = len(rare) / (3 * counts[Y[rare]])
    expected = classifier().fit(X[rare], Y[rare], sample_weight=by_hand)
    found = classifier(class_weight="balanced").fit(X[rare], Y[rare])
    np.testing.assert_allclose(coefs(found), coefs(expected), rtol=1e-12)
    both = classifier(class_weight={0: 2.0, 1: 1.0, 2: 1.0}).fit(
        X, Y, sample_weight=np.full(140, 3.0)
    )
    by_hand = classifier().fit(X, Y, sample_weight=np.where(Y == 0, 6.0, 3.0))
    np.testing.assert_allclose(coefs(both), coefs(by_hand), rtol=1e-12)


def test_members_are_networks_of_their_own():
    model = classifier(n_members=3, shuffle=False, batch_size=50).fit(X, Y)
    assert [W.shape for W in model.coefs_] == [(3, 6, 8), (3, 8, 3)]
    rng = np.random.RandomState(0)  # the members draw one after the other
    alone = [classifier(shuffle=False, batch_size=50, random_state=rng).fit(X, Y) for _ in range(3)]
    for k, single in enumerate(alone):
        for W, expected in zip(model.coefs_, single.coefs_, strict=True):
            np.testing.assert_allclose(W[k], expected, rtol=1e-9, atol=1e-11)
    A = np.stack([single.predict_proba(X) for single in alone])
    mean, std = model.predict_proba(X, return_std=True)
    np.testing.assert_allclose(mean, A.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, A.std(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(model.loss_, np.mean([single.loss_ for single in alone]))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "settings", [{}, {"solver": "lbfgs"}, {"early_stopping": True}, {"patience": 2}]
)
def test_an_ensemble_of_regressors(settings):
    model = regressor(n_members=3, **settings).fit(X_NUMBER, Y_NUMBER)
    mean, std = model.predict(X_NUMBER, return_std=True)
    assert mean.shape == std.shape == (140,)
    assert (std > 0).all()
    np.testing.assert_array_equal(model.predict(X_NUMBER), mean)


def test_two_classes_have_a_spread_each():
    mean, std = classifier(n_members=2).fit(X, Y > 0).predict_proba(X[:5], return_std=True)
    assert mean.shape == std.shape == (5, 2)
    np.testing.assert_array_equal(std[:, 0], std[:, 1])


def test_one_network_has_no_spread():
    with pytest.raises(ValueError, match="n_members above 1"):
        classifier().fit(X, Y).predict_proba(X, return_std=True)


def test_an_optax_transformation_takes_its_own_steps():
    model = classifier(solver=optax.sgd(0.1, momentum=0.9, nesterov=True), shuffle=False, alpha=0.0)
    expected = classifier(solver="sgd", learning_rate_init=0.1, shuffle=False, alpha=0.0)
    np.testing.assert_allclose(coefs(model.fit(X, Y)), coefs(expected.fit(X, Y)), rtol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("n_members", [1, 2])
def test_kfac_trains_an_estimator(n_members):
    model = classifier(solver=dp.kfac(), n_members=n_members).fit(X, Y)
    assert model.loss_ < classifier().fit(X, Y).loss_


@pytest.mark.thorough
def test_dropout_normalisation_and_residual_layers_are_the_networks():
    model = classifier(
        hidden_layer_sizes=(8, 8, 8),
        dropout=0.3,
        normalize="layer",
        residual=True,
        activation="gelu",
    ).fit(X, Y)
    layers = model.params_
    assert [layer.dropout for layer in layers] == [0.0, 0.3, 0.3, 0.3]
    assert [layer.normalize for layer in layers] == [None, "layer", "layer", "layer"]
    assert [layer.residual for layer in layers] == [False, True, True, False]
    assert layers[0].activation.name == "gelu"
    again = clone(model).fit(X, Y)
    np.testing.assert_array_equal(coefs(model), coefs(again))
    other = clone(model).set_params(dropout=0.0).fit(X, Y)
    assert not np.allclose(coefs(model), coefs(other))


def test_bfloat16_products():
    model = classifier(compute_dtype="bfloat16").fit(X, Y)
    assert model.coefs_[0].dtype == np.float64
    assert str(model.params_[0].compute_dtype) == "bfloat16"
    exact = classifier().fit(X, Y)
    difference = np.abs(coefs(model) - coefs(exact)).max()
    assert 1e-6 < difference < 0.1  # rounded to 8 bits, and trained alike
    several = classifier(compute_dtype="bfloat16", n_members=2).fit(X, Y)
    assert {str(layer.compute_dtype) for layer in several.params_} == {"bfloat16"}


@pytest.mark.thorough
def test_a_schedule_multiplies_the_rate_of_each_step():
    steps = []
    constant = classifier(batch_size=70, schedule=lambda step: steps.append(step) or 1.0).fit(X, Y)
    assert steps == list(range(16))
    np.testing.assert_array_equal(coefs(constant), coefs(classifier(batch_size=70).fit(X, Y)))
    still = classifier(batch_size=70, schedule=lambda step: float(step < 2)).fit(X, Y)
    np.testing.assert_array_equal(
        coefs(still), coefs(classifier(batch_size=70, max_iter=1).fit(X, Y))
    )
    cosine = classifier(schedule="cosine").fit(X, Y)
    by_optax = optax.cosine_decay_schedule(1.0, 8)
    same = classifier(schedule=lambda step: float(by_optax(step))).fit(X, Y)
    np.testing.assert_array_equal(coefs(cosine), coefs(same))


def test_patience_keeps_the_weights_of_the_lowest_cost():
    seen = []
    model = classifier(
        patience=3, max_iter=300, learning_rate_init=0.2, validation_fraction=0.3,
        callbacks=[lambda epoch, row, params: seen.append((row["val_cost"], params))],
    ).fit(X, Y)  # fmt: skip
    costs = [cost for cost, _ in seen]
    best = int(np.argmin(costs))
    assert len(costs) == best + 4 == model.n_iter_ < 300
    np.testing.assert_allclose(model.validation_scores_, [-cost for cost in costs])
    for W, layer in zip(model.coefs_, seen[best][1], strict=True):
        np.testing.assert_array_equal(W, np.asarray(layer.W).T)


def test_the_cost_of_patience_is_that_of_examples_held_out_by_class():
    """A class of 12 among 140: each validation set of 20 % has 2 or 3 of them."""
    y = np.where(np.arange(140) < 12, 2, np.arange(140) % 2)
    for seed in range(3):
        model = classifier(random_state=seed, validation_fraction=0.2, patience=5, max_iter=1)
        model.fit(X, y)
        model._random_state = np.random.RandomState(seed)
        strata = model._strata(np.eye(3)[y], 0.2)
        np.testing.assert_array_equal(strata, y)
    assert model._strata(np.eye(3)[np.r_[2, np.arange(139) % 2]], 0.2) is None  # one of a class


def test_a_callback_ends_training():
    rows_seen = []

    def callback(number, row, params):
        rows_seen.append((number, row["cost"]))
        return number == 3

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = classifier(callbacks=[callback]).fit(X, Y)
    assert model.n_iter_ == 3
    assert rows_seen == [(i + 1, J) for i, J in enumerate(model.loss_curve_)]


def test_ctrl_c_keeps_what_is_trained():
    def callback(number, row, params):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted by user"):
        model = classifier(callbacks=[callback]).fit(X, Y)
    np.testing.assert_array_equal(coefs(model), coefs(classifier(max_iter=2).fit(X, Y)))


@pytest.mark.thorough
def test_privacy_spends_what_it_may():
    privacy = dp.Privacy(max_norm=1.0, delta=1e-5, epsilon=4.0)
    model = classifier(privacy=privacy, batch_size=35).fit(X, Y)
    assert 3.5 < model.epsilon_ <= 4.0
    assert len(model.loss_curve_) == model.n_iter_ == 8
    with pytest.raises(ValueError, match="sample_weight must be None"):
        classifier(privacy=privacy).fit(X, Y, sample_weight=np.ones(140))
    assert not hasattr(classifier(privacy=privacy), "partial_fit")
    one, other = (classifier(privacy=privacy, random_state=None).fit(X, Y) for _ in range(2))
    assert not np.allclose(coefs(one), coefs(other))


@pytest.mark.thorough
def test_an_estimator_that_was_private_no_longer_says_so():
    privacy = dp.Privacy(max_norm=1.0, delta=1e-5, noise_multiplier=1.0)
    model = classifier(privacy=privacy, max_iter=1, batch_size=35).fit(X, Y)
    assert model.epsilon_ > 0
    assert not hasattr(model.set_params(privacy=None).fit(X, Y), "epsilon_")


class Own(MLPClassifier):
    """A subclass with a parameter of its own, and fewer of ours."""

    def __init__(self, hidden_layer_sizes=(5,), extra=1):
        super().__init__(hidden_layer_sizes, max_iter=2)
        self.extra = extra


def test_a_subclass_may_have_other_parameters():
    model = clone(Own(extra=3)).fit(X, Y)
    assert (model.extra, model.n_iter_, model.get_params()) == (
        3,
        2,
        {"extra": 3, "hidden_layer_sizes": (5,)},
    )


def test_ctrl_c_between_the_chunks_of_an_epoch(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 40 * 6)
    taken = []
    take = loop.take_steps

    def interrupted(*args, **kwargs):
        taken.append(1)
        if len(taken) == 10:
            raise KeyboardInterrupt
        return take(*args, **kwargs)

    monkeypatch.setattr(loop, "take_steps", interrupted)
    with pytest.warns(UserWarning, match="interrupted by user"):
        model = classifier(batch_size=20).fit(sparse.csr_array(X), Y)
    assert model.n_iter_ == 2
    model.partial_fit(X, Y)


def test_partial_fit_takes_the_networks_dtype_and_a_new_solver():
    model = classifier().fit(X, Y)
    model.partial_fit(X.astype(np.float32), Y)
    assert model.coefs_[0].dtype == np.float64
    model.set_params(solver="sgd").partial_fit(X, Y)
    model.set_params(solver=optax.adam(0.01)).partial_fit(X, Y)
    assert not hasattr(classifier(schedule="cosine"), "partial_fit")


@pytest.mark.thorough
def test_a_warm_start_may_begin_or_end_to_hold_out():
    model = classifier(warm_start=True, max_iter=2).fit(X, Y)
    model.set_params(early_stopping=True).fit(X, Y)
    assert len(model.validation_scores_) == 2
    model.set_params(early_stopping=False).fit(X, Y)
    assert len(model.loss_curve_) == 6
    model.set_params(solver="lbfgs").fit(X, Y)


def test_dropout_differs_from_call_to_call():
    """Three calls with equal rows and a seed: only the dropped entries can differ."""
    model = classifier(dropout=0.5, solver=optax.sgd(0.0), hidden_layer_sizes=(64,))
    model.partial_fit(X, Y, classes=[0, 1, 2])
    losses = [model.partial_fit(X, Y).loss_ for _ in range(3)]
    assert len(set(losses)) == 3


def test_dropout_differs_from_step_to_step():
    """The second step sees the rows of the first: with equal masks, both would cost the same."""
    settings = {
        "dropout": 0.5,
        "solver": optax.sgd(0.0),
        "alpha": 0.0,
        "shuffle": False,
        "max_iter": 1,
    }
    settings |= {"hidden_layer_sizes": (64,), "batch_size": 70}
    one = classifier(**settings).fit(X[:70], Y[:70])
    two = classifier(**settings).fit(np.tile(X[:70], (2, 1)), np.tile(Y[:70], 2))
    assert abs(one.loss_ - two.loss_) > 1e-6


def test_residual_layers_start_with_W_over_their_number():
    """A[l] = A[l-1] + g(Z[l]): R such layers are as large together as one, as in init_params."""
    still = {"hidden_layer_sizes": (8, 8, 8), "solver": optax.sgd(0.0), "max_iter": 1}
    plain = classifier(**still).fit(X, Y)
    residual = classifier(**still, residual=True).fit(X, Y)
    for l, factor in enumerate([1, 2, 2, 1]):
        np.testing.assert_allclose(residual.coefs_[l] * factor, plain.coefs_[l], rtol=1e-12)


@pytest.mark.thorough
def test_the_penalty_of_private_training():
    """With gradients clipped to nothing, a step of rate r multiplies W by 1 - r alpha / batch."""
    privacy = dp.Privacy(max_norm=1e-9, delta=1e-5, noise_multiplier=1.0)
    settings = {"batch_size": 35, "alpha": 7.0, "max_iter": 3, "random_state": 0}
    model = classifier(**settings, privacy=privacy, solver=optax.sgd(0.1)).fit(X, Y)
    start = classifier(**settings, solver=optax.sgd(0.0)).fit(X, Y)
    for W, W_start in zip(model.coefs_, start.coefs_, strict=True):
        np.testing.assert_allclose(W, W_start * (1 - 0.1 * 7 / 35) ** 12, rtol=1e-4, atol=1e-6)


def test_the_number_of_members_is_that_of_the_fit():
    model = classifier(n_members=2, compute_dtype="bfloat16").fit(X, Y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(model.set_params(n_members=1).predict_proba(X), expected)


def test_one_weight_for_all_changes_nothing():
    np.testing.assert_allclose(
        coefs(classifier().fit(X, Y, sample_weight=2.0)),
        coefs(classifier(alpha=0.00005).fit(X, Y)),
        rtol=1e-9,
    )


@pytest.mark.parametrize("weights", [{0: 0.0, 1: 0.0, 2: 0.0}, {0: -1.0}, {0: np.nan}])
def test_weights_of_classes_are_checked(weights):
    with pytest.raises(ValueError, match="sample_weight must not"):
        classifier(class_weight=weights).fit(X, Y)


def test_a_validation_set_without_weight_is_refused():
    with pytest.raises(ValueError, match="must not all be zero in the validation set"):
        classifier(patience=2, shuffle=False).fit(X, Y, sample_weight=np.eye(140)[0])


def test_predictions_do_not_depend_on_a_later_loss():
    model = regressor().fit(X_NUMBER, Y_NUMBER)
    expected = model.predict(X_NUMBER)
    np.testing.assert_array_equal(model.set_params(loss="poisson").predict(X_NUMBER), expected)


@pytest.mark.thorough
@pytest.mark.parametrize(("loss", "by"), [("huber(1.5)", "huber"), ("quantile(0.9)", "quantile")])
def test_further_costs_of_a_regressor(loss, by):
    model = regressor(loss=loss, alpha=0.0, shuffle=False, max_iter=1).fit(X_NUMBER, Y_NUMBER)
    assert by in model.params_[-1].activation.name
    start = regressor(loss=loss, solver=optax.sgd(0.0), alpha=0.0, max_iter=1).fit(
        X_NUMBER, Y_NUMBER
    )
    r = Y_NUMBER - start.predict(X_NUMBER)
    at = np.minimum(np.abs(r), 1.5)
    expected = np.maximum(0.9 * r, -0.1 * r) if by == "quantile" else at * (np.abs(r) - at / 2)
    np.testing.assert_allclose(start.loss_, expected.mean(), rtol=1e-9)


def test_several_outputs_minimise_their_sum():
    """scikit-learn's L-BFGS is given the mean over outputs with the gradient of the sum."""
    Y2 = np.stack([Y_NUMBER, 2 * Y_NUMBER], 1)
    model = regressor(solver="lbfgs", alpha=0.0, max_iter=30).fit(X_NUMBER, Y2)
    r = model.predict(X_NUMBER) - Y2
    np.testing.assert_allclose(model.loss_, (r**2).mean() / 2, rtol=1e-9)


# --- bad input ------------------------------------------------------------------------------------

BAD = [
    ({"hidden_layer_sizes": (8, 0)}, ValueError, "hidden_layer_sizes"),
    ({"activation": "sine"}, ValueError, "activation must be one of logistic, identity"),
    ({"solver": "adamw"}, ValueError, "solver must be 'adam', 'sgd', 'lbfgs', or an optax"),
    ({"solver": dp.in_backward(optax.sgd(0.1))}, ValueError, "solver must not be an in_backward"),
    ({"alpha": -1.0}, ValueError, "alpha must be at least 0, got -1.0"),
    ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
    ({"batch_size": 0}, ValueError, "batch_size must be above 0"),
    ({"learning_rate": "cosine"}, ValueError, "learning_rate must be 'constant'"),
    ({"learning_rate_init": 0.0}, ValueError, "learning_rate_init must be finite and above 0"),
    ({"max_iter": 2.5}, TypeError, "max_iter must be a whole number"),
    ({"shuffle": "yes"}, ValueError, "shuffle must be True, False, got 'yes'"),
    ({"momentum": 1.5}, ValueError, "momentum must be from 0 to 1"),
    ({"beta_1": 1.0}, ValueError, "beta_1 must be from 0 to below 1"),
    ({"dropout": 1.0}, ValueError, "dropout must be from 0 to below 1"),
    ({"normalize": "batch"}, ValueError, "batch"),
    ({"residual": True}, ValueError, "residual needs a hidden layer"),
    ({"compute_dtype": "int8"}, (TypeError, ValueError), "dtype"),
    ({"schedule": "square"}, ValueError, "schedule must be 'constant'"),
    ({"schedule": "cosine", "learning_rate": "adaptive"}, ValueError, "learning_rate must be 'const"),
    ({"schedule": "cosine", "solver": optax.sgd(0.1)}, ValueError, "schedule must be 'constant' with"),
    ({"patience": 0}, ValueError, "patience must be above 0"),
    ({"n_members": 0}, ValueError, "n_members must be above 0"),
    ({"privacy": 1.0}, TypeError, "privacy must be a dp.Privacy"),
    ({"solver": "lbfgs", "dropout": 0.5}, ValueError, "dropout must be 0.0 with solver='lbfgs'"),
    ({"class_weight": "even"}, ValueError, "class_weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "error", "message"), BAD, ids=[message for *_, message in BAD]
)
@pytest.mark.ordinary(99)
def test_a_bad_parameter_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        classifier(**settings).fit(X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sample_weight": np.full(140, -1.0)},
            "sample_weight must not be negative, and must be finite, got -1.0",
        ),
        ({"sample_weight": np.zeros(140)}, "sample_weight must not all be zero"),
        ({"sample_weight": np.ones(3)}, r"sample_weight must have shape \(140,\), got \(3,\)"),
    ],
)
def test_bad_weights_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(X, Y, **arguments)


def test_an_unknown_loss_is_named():
    with pytest.raises(
        ValueError, match="loss must be one of 'squared_error', 'poisson', 'absolute"
    ):
        regressor(loss="mae").fit(X_NUMBER, Y_NUMBER)


def test_fitted_arrays_can_be_changed():
    model = classifier().fit(X, Y)
    for array in [*model.coefs_, *model.intercepts_]:
        array[:] = 0
    np.testing.assert_allclose(model.predict_proba(X), 1 / 3)


def test_counts_are_not_negative():
    with pytest.raises(ValueError, match="y must not be negative with loss='poisson'"):
        regressor(loss="poisson").fit(X_NUMBER, Y_NUMBER)


def test_a_warm_start_of_another_size_is_refused():
    model = classifier(warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        model.set_params(hidden_layer_sizes=(9,)).fit(X, Y)


def test_what_is_missing_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("deepprop.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ImportError, match=r'pip install scikit-learn \(the extra "sklearn" has it\)'
    ):
        import deepprop.sklearn  # noqa: F401


@pytest.mark.thorough
def test_digits_as_a_user_would():
    D, labels = load_digits(return_X_y=True)
    scores = []
    for kind in (theirs.MLPClassifier, MLPClassifier):
        model = make_pipeline(StandardScaler(), kind((64,), max_iter=60, random_state=0))
        scores.append(model.fit(D[:1400], labels[:1400]).score(D[1400:], labels[1400:]))
    assert scores[0] == scores[1] > 0.9
