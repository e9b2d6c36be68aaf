"""Recording during training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
DATA = load_data(None, held_out=0.2, seed=0, standardize=False, output=None)
X, Y = DATA.X[:, :256], DATA.Y[:, :256]


def new(hidden, sizes=(64, 64, 64, 64, 10), **how):
    return dp.init_params(jax.random.key(0), sizes, hidden=hidden, **how)


def test_a_record_has_every_kth_step():
    """Entry j of an epoch belongs to step j k, with the params before it. The reference is a loop."""
    params, X, Y, _ = problem(3, [3, 4, 2], 40, dtype=np.float32)

    def spy(cache, dZ, updates):
        return {"J": dp.cost(cache, cache.A[-1]), "W": cache.params[0].W, "step": updates[0].W}

    optimizer = optax.sgd(0.1)
    common = {"batch_size": 4, "key": jax.random.key(1)}
    fit = dp.fit(params, optimizer, X, Y, epochs=2, record=dp.Record(spy, 4), **common)
    assert fit.history["W"].shape == (2, 3, 4, 3)  # steps 0, 4 and 8 of 10
    np.testing.assert_array_equal(fit.history["W"][0, 0], params[0].W)
    every = dp.fit(params, optimizer, X, Y, epochs=2, record=dp.Record(spy, 1), **common)
    for name in ("W", "step", "J"):
        np.testing.assert_allclose(fit.history[name], every.history[name][:, ::4], rtol=1e-6)
    W = every.history["W"].reshape(20, 4, 3)
    np.testing.assert_allclose(
        np.diff(W, axis=0), every.history["step"].reshape(20, 4, 3)[:-1], atol=1e-6
    )
    plain = dp.fit(params, optimizer, X, Y, epochs=2, **common)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fit.params), strict=True):
        np.testing.assert_array_equal(a, b)  # looking changes nothing


@pytest.mark.thorough
def test_records_survive_a_checkpoint(tmp_path):
    params, X, Y, _ = problem(3, [3, 4, 2], 40, dtype=np.float32)
    common = {"batch_size": 8, "key": jax.random.key(1), "record": dp.Record(dp.diagnose, 2)}
    optimizer = optax.sgd(0.1)
    whole = dp.fit(params, optimizer, X, Y, epochs=3, **common)
    dp.fit(params, optimizer, X, Y, epochs=2, checkpoint=tmp_path, **common)
    rest = dp.fit(params, optimizer, X, Y, epochs=3, checkpoint=tmp_path, **common)
    for name, values in whole.history.items():
        np.testing.assert_array_equal(values, rest.history[name])
    with pytest.raises(ValueError, match="has another record"):
        dp.fit(
            params,
            optimizer,
            X,
            Y,
            epochs=4,
            checkpoint=tmp_path,
            **(common | {"record": dp.Record(dp.diagnose, 3)}),
        )


def test_bad_records_are_named():
    params, X, Y, _ = problem(3, [3, 4, 2], 8, dtype=np.float32)
    common = {"epochs": 1, "batch_size": 4, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="every of a record must be above 0"):
        dp.fit(params, optax.sgd(0.1), X, Y, record=dp.Record(dp.diagnose, 0), **common)
    for name in ("cost", "val_cost", "epsilon"):

        def record(*_, name=name):
            return {name: jnp.zeros(())}

        with pytest.raises(ValueError, match=f'must not have an entry called "{name}"'):
            dp.fit(params, optax.sgd(0.1), X, Y, record=record, **common)
    with pytest.raises(TypeError, match=r"record must be a function such as dp\.diagnose"):
        dp.fit(params, optax.sgd(0.1), X, Y, record="diagnose", **common)
    bare = dp.fit(params, optax.sgd(0.1), X, Y, record=lambda *_: jnp.ones(3), **common)
    assert bare.history["record"].shape == (1, 2, 3)
    _, cache = dp.forward(params, X)
    with pytest.raises(ValueError, match="updates must hold W of shapes"):
        dp.diagnose(cache, dp.error_signals(cache, Y), new("relu"))
    fit = dp.fit(params, optax.sgd(0.1), X, Y, **common)
    with pytest.raises(ValueError, match=r"history must come from a fit with record=dp\.diagnose"):
        dp.diagnosis_of(fit.history, params)
    with pytest.raises(ValueError, match=r"history must come from a fit with record=dp\.diagnose"):
        dp.plot_layers("layers.png", fit.history)


def test_a_record_without_updates_is_enough(tmp_path):
    fit = dp.fit(
        new("relu"), optax.adam(1e-3), DATA.X, DATA.Y, epochs=1, batch_size=64,
        key=jax.random.key(1), record=lambda cache, dZ, _: dp.diagnose(cache, dZ),
    )  # fmt: skip
    found = dp.diagnosis_of(fit.history, fit.params)
    assert found.update is None
    assert "nothing stands out" in str(found)
    dp.plot_layers(tmp_path / "layers.png", fit.history)
    for entry, params in ((99, fit.params), (0, new("relu", [64, 10]))):
        with pytest.raises(ValueError, match="entry must be one of the history's 23, of 4 layers"):
            dp.diagnosis_of(fit.history, params, entry)
