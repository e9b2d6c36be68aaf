"""Runs that are continued by hand from params and state: 3 + 3 epochs are 6, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import grouped, problem

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, _ = problem(0, [4, 8, 3], 24, "relu", dtype=np.float32)
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
ADAM = optax.adam(0.01)
KEY = jax.random.key(1)
SOME = dp.Privacy(max_norm=0.5, delta=1e-4, noise_multiplier=5.0)


def fit(params=PARAMS, **options):
    return dp.fit(params, ADAM, X, Y, batch_size=8, key=KEY, **grouped(**options))


def private(params=PARAMS, **options):
    return fit(params, privacy=SOME, **options)


def fit_ensemble(params=SEVERAL, **options):
    return dp.fit_ensemble(params, ADAM, X, Y, batch_size=8, key=KEY, **grouped(**options))


def swept(params=SEVERAL, **options):
    sweep = {"learning_rate": [0.01, 0.1]}
    return dp.fit_ensemble(params, optax.adam, X, Y, batch_size=8, key=KEY, sweep=sweep, **options)


def shuffled(epoch):
    order = np.random.default_rng(epoch).permutation(24)
    return [(X[:, order[:10]], Y[:, order[:10]]), (X[:, order[10:]], Y[:, order[10:]])]


def fit_batches(params=PARAMS, **options):
    return dp.fit_batches(params, ADAM, shuffled, **options)


TRAIN = [fit, private, fit_ensemble, swept, fit_batches]


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("train", TRAIN)
def test_three_epochs_and_three_more_equal_six(train):
    seen = []
    whole, first = train(epochs=6), train(epochs=3)
    rest = train(
        first.params, state=first.state, epochs=3, first_epoch=4,
        callbacks=[lambda epoch, row, params: seen.append(epoch)],
    )  # fmt: skip
    assert seen == [4, 5, 6]
    for a, b in zip(*(jax.tree.leaves((f.params, f.state)) for f in (whole, rest)), strict=True):
        np.testing.assert_array_equal(a, b)
    costs = np.concatenate([first.history["cost"], rest.history["cost"]])
    np.testing.assert_array_equal(costs, whole.history["cost"])
    repeated = train(first.params, state=first.state, epochs=3)
    if train is not fit_batches:  # the order of the first epochs again
        assert not np.array_equal(repeated.params[0].W, whole.params[0].W)


def test_epsilon_counts_the_epochs_of_this_call():
    first, later = private(epochs=2), private(epochs=2, first_epoch=3)
    np.testing.assert_array_equal(first.history["epsilon"], later.history["epsilon"])
    assert not np.array_equal(first.params[0].W, later.params[0].W)  # other samples and noise


def test_patience_does_not_count_earlier_epochs():
    """With wrong validation labels the run stops 3 epochs after the best, whatever its number."""
    options = {"validation": (X, np.roll(Y, 1, axis=0)), "patience": 3, "epochs": 50}
    late = dp.fit(
        PARAMS, optax.adam(0.1), X, Y, batch_size=8, key=KEY, first_epoch=50, **grouped(**options)
    )
    assert late.stopped == "patience"
    assert len(late.history["cost"]) == late.history["val_cost"].argmin() + 1 + 3


WITH_SGD = {
    "fit": lambda sgd: dp.fit(PARAMS, sgd, X, Y, batch_size=8, key=KEY, epochs=3, first_epoch=7),
    "fit_batches": lambda sgd: dp.fit_batches(PARAMS, sgd, shuffled, epochs=3, first_epoch=7),
    "fit_ensemble": lambda sgd: dp.fit_ensemble(
        SEVERAL, sgd, X, Y, batch_size=8, key=KEY, epochs=3, first_epoch=7
    ),
}


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("kind", WITH_SGD)
def test_an_error_has_the_number_of_the_epoch(kind):
    with pytest.raises(dp.TrainingError, match="not finite in epoch 7"):
        WITH_SGD[kind](optax.sgd(np.inf))


def test_an_error_about_a_batch_has_the_number_of_the_epoch():
    with pytest.raises(ValueError, match="epoch 7, batch 0: X must have shape"):
        dp.fit_batches(PARAMS, ADAM, lambda epoch: [(X.T, Y.T)], epochs=3, first_epoch=7)


def test_a_state_of_fewer_networks_is_refused():
    first = fit_ensemble(epochs=1)
    for state in (jax.tree.map(lambda leaf: leaf[:1], first.state), ADAM.init(PARAMS)):
        with pytest.raises(ValueError, match="state must be the state of this optimizer"):
            fit_ensemble(first.params, state=state, epochs=1, first_epoch=2)
    assert not first.state[0].mu[0].W.is_deleted()


@pytest.mark.parametrize("train", TRAIN)
def test_a_first_epoch_beyond_32_bits_is_refused(train):
    with pytest.raises(
        ValueError, match=r"first_epoch must leave the epochs below 2\^31, got 2147483648"
    ):
        train(epochs=1, first_epoch=2**31)
