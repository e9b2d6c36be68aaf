"""Training with dropout: which masks are drawn, and that every way of training draws the same."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.optimizers.quadratic_model import _cost
from deepprop.training.examples import DROPOUT
from deepprop.training.shuffle import minibatches
from tests.problems import grouped, problem
from tests.training.runs import assert_same

pytestmark = pytest.mark.usefixtures("optax_types")
KEY, SGD = jax.random.key(1), optax.sgd(0.1, momentum=0.9)
PARAMS, X, Y, _ = problem(0, [4, 8, 8, 8, 3], 24, "tanh", dtype=np.float32)
PARAMS = tuple(
    replace(layer, dropout=0.4 * (l > 0), normalize="layer" if l > 0 else None)
    for l, layer in enumerate(PARAMS)
)


def run(params=PARAMS, optimizer=SGD, key=KEY, **options):
    options = {"epochs": 2, "batch_size": 8, "key": key, **options}
    return dp.fit(params, optimizer, X, Y, **grouped(**options))


def assert_close(found, expected, rtol=2e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max()))


def keys_of_epoch(key, epoch, steps):
    """A key for the order, and one per step for dropout: what a run derives from its own key."""
    of_epoch = jax.random.fold_in(key, epoch)
    of_dropout = jax.random.fold_in(of_epoch, DROPOUT)
    return of_epoch, [jax.random.fold_in(of_dropout, i) for i in range(steps)]


def by_hand(params, epochs=2, key=KEY):
    """The same run, step by step, with the public functions."""
    state = SGD.init(params)
    for epoch in range(1, epochs + 1):
        of_epoch, of_steps = keys_of_epoch(key, epoch, 3)
        index, _ = minibatches(of_epoch, 24, 8)
        for i, of_step in zip(index, of_steps, strict=True):
            _, cache = dp.forward(params, X[:, i], key=of_step)
            grads = dp.manual_backward(cache, Y[:, i])
            updates, state = SGD.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    return params


def test_a_run_is_the_steps_that_its_key_says():
    assert_close(run().params, by_hand(PARAMS))


def test_dropout_changes_the_run_and_another_key_too():
    whole = tuple(replace(layer, dropout=0.0) for layer in PARAMS)
    dropped, again = run(), run()
    assert_same(dropped, again)
    for other in (run(whole), run(key=jax.random.key(2))):
        assert abs(other.history["cost"][-1] - dropped.history["cost"][-1]) > 1e-3


def test_a_continued_run_draws_the_masks_of_one_run():
    first = run(epochs=1)
    second = run(first.params, epochs=1, state=first.state, first_epoch=2)
    whole = run()
    for a, b in zip(*map(jax.tree.leaves, (second.params, whole.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_run_draws_the_masks_of_one_run(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    run(epochs=1, checkpoint=tmp_path / "run")
    assert_same(run(checkpoint=tmp_path / "run"), run())


def test_a_checkpoint_of_another_dropout_is_refused(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    run(epochs=1, checkpoint=tmp_path / "run")
    other = tuple(replace(layer, dropout=layer.dropout / 2) for layer in PARAMS)
    with pytest.raises(ValueError, match=r"another network: .*dropout 0.4.*dropout 0.2"):
        run(other, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("keep", [1, 2])
def test_a_stack_draws_the_same_masks(keep):
    stacked = run(dp.stack(PARAMS, keep))
    assert_close(dp.unstack(stacked.params), run().params)


@pytest.mark.thorough
def test_in_backward_draws_the_same_masks():
    for params in (PARAMS, dp.stack(PARAMS, 2)):
        assert_close(run(params, dp.in_backward(SGD)).params, run(params).params)


def test_the_networks_of_an_ensemble_draw_the_masks_of_their_keys():
    keys = jax.random.split(jax.random.key(3), 2)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
    ensemble = dp.fit_ensemble(params, SGD, X, Y, epochs=2, batch_size=8, key=keys)
    for k, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], ensemble.params)
        assert_close(one, run(key=key).params)


def test_a_record_sees_the_masks_of_its_step():
    fit = run(epochs=1, record=lambda cache, dZ, updates: {"Z": cache.Z[-1]})
    of_epoch, of_steps = keys_of_epoch(KEY, 1, 3)
    index, _ = minibatches(of_epoch, 24, 8)
    cache = dp.forward(PARAMS, X[:, index[0]], key=of_steps[0])[1]
    assert_close(fit.history["Z"][0][0], cache.Z[-1])


def test_validation_drops_nothing():
    fit = run(epochs=1, validation=(X, Y))
    J = dp.cost(dp.forward(fit.params, X)[1], Y)
    np.testing.assert_allclose(fit.history["val_cost"][-1], J, rtol=1e-5)


def test_batches_need_a_key_and_draw_from_it():
    batches = [(X[:, :8], Y[:, :8]), (X[:, 8:16], Y[:, 8:16])]
    with pytest.raises(
        ValueError, match="key must be a JAX random key, as the network has dropout"
    ):
        dp.fit_batches(PARAMS, SGD, batches, epochs=1)
    fit = dp.fit_batches(PARAMS, SGD, batches, epochs=1, key=KEY)
    params, state = PARAMS, SGD.init(PARAMS)
    for of_step, (X_i, Y_i) in zip(keys_of_epoch(KEY, 1, 2)[1], batches, strict=True):
        grads = dp.manual_backward(dp.forward(params, X_i, key=of_step)[1], Y_i)
        updates, state = SGD.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(fit.params, params)


def test_a_step_needs_a_key_and_draws_from_it():
    step, state = dp.train_step(SGD), SGD.init(PARAMS)
    with pytest.raises(
        ValueError, match="key must be a JAX random key, as the network has dropout"
    ):
        step(PARAMS, state, X, Y)
    copy = jax.tree.map(jnp.copy, (PARAMS, state))
    params, _, J = step(*copy, X, Y, key=KEY)
    cache = dp.forward(PARAMS, X, key=KEY)[1]
    np.testing.assert_allclose(J, dp.cost(cache, Y), rtol=1e-5)
    updates, _ = SGD.update(dp.manual_backward(cache, Y), state, PARAMS)
    assert_close(params, optax.apply_updates(PARAMS, updates))


def test_the_quadratic_model_measures_J_with_the_masks_of_the_gradient():
    cache = dp.forward(PARAMS, X, key=KEY)[1]
    J = dp.cost(cache, Y)
    np.testing.assert_allclose(_cost(PARAMS, cache, jnp.asarray(Y), None), J, rtol=1e-6)
    fit = run(PARAMS, dp.kfac(), epochs=4)
    assert np.isfinite(fit.history["cost"]).all()
    assert fit.history["cost"][-1] < fit.history["cost"][0]


@pytest.mark.thorough
def test_private_training_drops():
    pytest.importorskip("dp_accounting")
    privacy = dp.Privacy(noise_multiplier=1e-3, delta=1e-3, max_norm=1.0)
    fits = [run(optimizer=optax.sgd(0.1), privacy=privacy) for _ in range(2)]
    assert_same(*fits)
    whole = tuple(replace(layer, dropout=0.0) for layer in PARAMS)
    other = run(whole, optax.sgd(0.1), privacy=privacy)
    assert abs(other.history["cost"][-1] - fits[0].history["cost"][-1]) > 1e-3


@pytest.mark.thorough
def test_a_mesh_draws_the_same_masks():
    mesh = dp.mesh(data=2)
    placed = dp.place(PARAMS, mesh)
    X_2, Y_2 = dp.place_examples(mesh, X, Y)
    assert_close(run_on(placed, X_2, Y_2), run(shards=2).params)
    assert_close(run_on(placed, X_2, Y_2, backward=dp.data_parallel(mesh)), run(shards=2).params)
    stacked = dp.place(dp.stack(PARAMS, 2), mesh)
    parallel = run_on(stacked, X_2, Y_2, backward=dp.data_parallel(mesh))
    assert_close(dp.unstack(parallel), run(shards=2).params)


def run_on(params, X, Y, **options):
    return dp.fit(params, SGD, X, Y, epochs=2, batch_size=8, key=KEY, **options).params
