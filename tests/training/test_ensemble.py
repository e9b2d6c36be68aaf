import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training.ensemble import _train_epoch
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
K, M = 4, 22
_, X, Y, W = problem(0, [4, 8, 3], M, "relu", weighted=True, dtype=np.float32)
KEYS = jax.random.split(jax.random.key(3), K)
PARAMS = jax.jit(jax.vmap(lambda key: dp.init_params(key, [4, 8, 3], hidden="tanh")))(KEYS)
RATES = jnp.asarray([0.001, 0.01, 0.03, 0.1], jnp.float32)


def member(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def run(params=PARAMS, optimizer=optax.sgd, X=X, Y=Y, **options):
    options = {"epochs": 3, "batch_size": 8, "key": jax.random.key(1), **options}
    return dp.fit_ensemble(params, optimizer, X, Y, **options)


def assert_close(a, b):
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize(
    ("key", "weights"),
    [(jax.random.key(1), W), (KEYS, None)],
    ids=["one order, weighted", "K orders"],
)
def test_each_network_equals_the_one_that_fit_trains(key, weights):
    def adamw(learning_rate, weight_decay):
        return optax.adamw(learning_rate, weight_decay=weight_decay)

    sweep = {"learning_rate": RATES, "weight_decay": jnp.asarray([0, 0.1, 0, 0.2], jnp.float32)}
    together = run(optimizer=adamw, sweep=sweep, key=key, weights=weights, validation=(X, Y))
    for k in (0, 3):
        alone = dp.fit(
            member(PARAMS, k), adamw(**{name: float(v[k]) for name, v in sweep.items()}), X, Y,
            epochs=3, batch_size=8, key=key if key.ndim == 0 else key[k], weights=weights,
            validation=(X, Y),
        )  # fmt: skip
        assert_close(member(together.params, k), alone.params)
        for name, column in alone.history.items():
            np.testing.assert_allclose(together.history[name][:, k], column, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    together = run(params, sweep={"learning_rate": [0.001, 0.01, 0.03, 0.1], "momentum": [0.5] * K})
    alone = dp.fit(
        member(params, 2), optax.sgd(0.03, momentum=0.5), X, Y, epochs=3, batch_size=8,
        key=jax.random.key(1),
    )  # fmt: skip
    np.testing.assert_allclose(
        together.history["cost"][:, 2], alone.history["cost"], rtol=10 * jnp.finfo(dtype).eps
    )


@pytest.mark.thorough
def test_a_sweep_that_starts_from_one_network():
    together = run(member(PARAMS, 0), optimizer=optax.adam, sweep={"learning_rate": RATES})
    assert together.params[0].W.shape == (K, 8, 4)
    assert together.history["cost"].shape == (3, K)
    alone = dp.fit(
        member(PARAMS, 0), optax.adam(0.03), X, Y, epochs=3, batch_size=8, key=jax.random.key(1)
    )
    assert_close(member(together.params, 2), alone.params)


def test_a_network_that_diverges_does_not_stop_the_others():
    fit = run(
        sweep={"learning_rate": jnp.asarray([0.01, np.inf], jnp.float32)}, params=member(PARAMS, 0)
    )
    assert fit.stopped == "epochs"
    assert np.isfinite(fit.history["cost"]).all(axis=0).tolist() == [True, False]
    with pytest.raises(dp.TrainingError, match="not finite in epoch 1"):
        run(sweep={"learning_rate": jnp.full(K, np.inf, jnp.float32)})


def test_a_state_that_holds_the_params_does_not_delete_them():
    remembers = optax.GradientTransformation(lambda p: p, lambda u, s, p=None: (u, p))
    run(optimizer=remembers)
    assert not PARAMS[0].W.is_deleted()


def test_epochs_share_one_program():
    before, optimizer = _train_epoch._cache_size(), optax.adam(0.01)
    run(optimizer=optimizer, epochs=5)
    assert _train_epoch._cache_size() == before + 1


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    options = {"optimizer": optax.adam, "sweep": {"learning_rate": RATES}}
    whole = run(**options, epochs=5)
    run(**options, epochs=2, checkpoint=tmp_path)
    resumed = run(**options, epochs=5, checkpoint=tmp_path)
    for a, b in zip(
        *(jax.tree.leaves((fit.params, fit.state)) for fit in (whole, resumed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.history["cost"], resumed.history["cost"])
    with pytest.raises(ValueError, match="has another sweep"):
        run(optimizer=optax.adam, sweep={"learning_rate": RATES[::-1]}, checkpoint=tmp_path)


BAD = {
    "nothing says K": ({"params": member(PARAMS, 0), "optimizer": optax.sgd(0.1)}, ValueError, "must give the number of networks.*got none"),
    "two Ks": ({"sweep": {"learning_rate": RATES[:3]}}, ValueError, r"must agree on it, got \{'sweep learning_rate': 3.*'W\[1\]': 4"),
    "keys of another K": ({"key": KEYS[:2], "optimizer": optax.sgd(0.1)}, ValueError, "must agree on it, got {'key': 2"),
    "a sweep of one number": ({"sweep": {"learning_rate": 0.1}}, ValueError, r"sweep learning_rate must have shape \(K,\)"),
    "a sweep without names": ({"sweep": [0.1, 0.2]}, TypeError, "sweep must be a mapping of names to .K,. numbers, got list"),
    "no network": ({"params": jax.tree.map(lambda leaf: leaf[:0], PARAMS)}, ValueError, "W"),
    "networks side by side": ({"params": (member(PARAMS, 0), member(PARAMS, 1))}, TypeError, "tuple of dp.Layer with arrays, got tuple in it"),
    "a made optimizer with a sweep": ({"optimizer": optax.sgd(0.1), "sweep": {"learning_rate": RATES}}, TypeError, "optimizer must be a function of the entries of sweep"),
    "a function without a sweep": ({"optimizer": optax.adam}, TypeError, "optimizer must be an optax.GradientTransformation"),
    "a seed": ({"key": 3}, TypeError, "key must be one JAX random key"),
    "labels": ({"Y": Y.argmax(axis=0), "optimizer": optax.sgd(0.1)}, ValueError, "Y must have shape"),
    "params of another kind": ({"params": [1]}, TypeError, "params must be a tuple of dp.Layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        run(**options)


def test_weights_of_its_own_for_each_network():
    """Each network ends as `fit_ensemble` of it alone with these weights; 0 leaves examples out."""
    params = jax.vmap(lambda key: dp.init_params(key, [3, 4, 2]))(
        jax.random.split(jax.random.key(0), 2)
    )
    X, Y = (
        np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32),
        np.eye(2, dtype=np.float32)[:, np.arange(10) % 2],
    )
    keys, w = jax.random.split(jax.random.key(1), 2), np.ones((2, 10), np.float32)
    w[0, :4], w[1, 7] = 0, 3
    SGD, options = optax.sgd(0.1), {"epochs": 3, "batch_size": 4}  # 2 rows are added to 10 examples
    both = dp.fit_ensemble(params, SGD, X, Y, key=keys, weights=w, **options)
    for k in range(2):
        alone = dp.fit(member(params, k), SGD, X, Y, key=keys[k], weights=w[k], **options)
        for found, expected in zip(
            jax.tree.leaves(member(both.params, k)), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-6)
    X[:, :4] = 1e3  # the first network does not see these
    again = dp.fit_ensemble(params, SGD, X, Y, key=keys, weights=w, **options)
    np.testing.assert_allclose(again.params[0].W[0], both.params[0].W[0], atol=1e-6)
    assert abs(again.params[0].W[1] - both.params[0].W[1]).max() > 1e-3
    with pytest.raises(ValueError, match=r"weights must have shape \(10,\) or \(2, 10\)"):
        dp.fit_ensemble(params, SGD, X, Y, key=keys, weights=w[:, :9], **options)
    w[1, 0] = -1
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite and not negative"):
        dp.fit_ensemble(params, SGD, X, Y, key=keys, weights=w, **options)
