"""init_params, forward, predict and cost; and the network under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import by_hand, exactly, problem, public_cost, worst_error


@pytest.mark.parametrize(
    ("init", "variance"),
    [("he", 2 / 400), ("glorot", 2 / (400 + 600)), ("lecun", 1 / 400)],
)
@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_initialisation_has_its_variance(init, shape, variance):
    (layer,) = dp.init_params(jax.random.key(0), [400, 600], init=f"{init}_{shape}")
    W = np.asarray(layer.W)
    # The variance of a sample of n scatters by sqrt(2/n) for a normal: 0.3 % here; 5 of those.
    assert W.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / W.size))
    assert abs(W.mean()) < 5 * np.sqrt(variance / W.size)
    if shape == "uniform":
        assert abs(W).max() <= np.sqrt(3 * variance)
    assert not layer.b.any()


@pytest.mark.parametrize(
    ("hidden", "variance"),
    [
        ("relu", 2 / 300),
        ("gelu", 2 / 300),
        ("tanh", 2 / 700),
        ("sigmoid", 2 / 700),
        ("selu", 1 / 300),
    ],
)
def test_the_initialisation_fits_the_activation(hidden, variance):
    first, last = dp.init_params(jax.random.key(1), [300, 400, 200], hidden=hidden)
    assert np.asarray(first.W).var() == pytest.approx(variance, rel=5 * np.sqrt(2 / 120_000))
    assert np.asarray(last.W).var() == pytest.approx(2 / 600, rel=5 * np.sqrt(2 / 80_000))


def test_layers_differ_and_keys_repeat():
    a, b = (dp.init_params(jax.random.key(3), [8, 8, 8, 8]) for _ in range(2))
    assert not np.array_equal(a[0].W, a[1].W)
    assert all(np.array_equal(p.W, q.W) for p, q in zip(a, b, strict=True))
    assert jax.random.PRNGKey(3).shape == (2,)
    dp.init_params(jax.random.PRNGKey(3), [2, 2])  # the older kind of key will do


def test_hidden_activations_one_for_all_or_one_a_layer():
    names = lambda params: [p.activation.name for p in params]  # noqa: E731
    key = jax.random.key(0)
    assert names(dp.init_params(key, [2, 2, 2, 1], hidden="elu", output="exp")) == [
        "elu",
        "elu",
        "exp",
    ]
    assert names(dp.init_params(key, [2, 2, 2, 1], hidden=["elu", "tanh"])) == [
        "elu",
        "tanh",
        "softmax",
    ]
    assert names(dp.init_params(key, [2, 1])) == ["softmax"]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_type_of_the_parameters_is_the_type_of_the_pass(dtype):
    params = dp.init_params(jax.random.key(0), [3, 4, 2], dtype=dtype)
    A, cache = jax.jit(dp.forward)(params, np.ones((3, 5)))
    assert {a.dtype for a in (*cache.A[:-1], *cache.Z[:-1])} == {jnp.dtype(dtype)}
    assert A.dtype == cache.Z[-1].dtype == jnp.float32
    grads = jax.jit(dp.manual_backward)(cache, np.ones((2, 5), int))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
    assert {d.dtype for d in jax.jit(dp.error_signals)(cache, np.ones((2, 5)))} == {
        jnp.dtype(dtype)
    }


def test_predict_is_forward_without_a_cache():
    params, X, _, _ = problem(0, [4, 6, 3], 5, dtype=np.float32)
    np.testing.assert_array_equal(dp.predict(params, X), dp.forward(params, X)[0])


def test_integers_booleans_and_lists_will_do_for_data():
    params = dp.init_params(jax.random.key(0), [2, 3, 2])
    _, cache = dp.forward(params, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(cache.A[0], [[1.0, 2.0], [3.0, 4.0]])
    assert np.isfinite(dp.cost(cache, np.eye(2, dtype=bool), [1, 2]))


def test_grads_have_the_structure_of_params():
    params, X, Y, w = problem(0, [4, 6, 3], 5, weighted=True, dtype=np.float32)
    grads = by_hand(params, X, Y, w)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert [g.W.shape for g in grads] == [p.W.shape for p in params]


@pytest.mark.usefixtures("x64")
def test_under_jit():
    args = problem(2, [4, 6, 5, 3], 7, weighted=True)
    assert worst_error(jax.jit(by_hand)(*args), by_hand(*args)) <= 1e-13


@pytest.mark.usefixtures("x64")
def test_the_cache_crosses_a_jit_boundary():
    params, X, Y, w = problem(2, [4, 6, 5, 3], 7, weighted=True)
    _, cache = jax.jit(dp.forward)(params, X)
    assert cache.params[0].activation is params[0].activation
    signals = jax.jit(dp.error_signals)(cache, Y)
    grads = jax.jit(dp.gradients)(cache, signals, w)
    assert worst_error(grads, exactly(params, X, Y, w)) <= 1e-10


@pytest.mark.usefixtures("x64")
def test_an_ensemble_under_vmap():
    members = [problem(seed, [4, 6, 3], 7) for seed in range(5)]
    params, X, Y = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *column)
        for column in list(zip(*members, strict=True))[:3]
    )
    together = jax.jit(jax.vmap(by_hand))(params, X, Y)
    costs = jax.jit(jax.vmap(public_cost))(params, X, Y)
    alone, J = jax.jit(by_hand), jax.jit(public_cost)
    for k, (p, x, y, _) in enumerate(members):
        mine = jax.tree.map(lambda leaf, k=k: leaf[k], together)
        assert worst_error(mine, alone(p, x, y)) <= 1e-13
        assert float(costs[k]) == pytest.approx(float(J(p, x, y)), rel=1e-13)


@pytest.mark.usefixtures("x64")
def test_a_weight_of_zero_takes_an_example_out():
    params, X, Y, _ = problem(4, [3, 4, 2], 6)
    w = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert float(public_cost(params, X, Y, w)) == pytest.approx(
        float(public_cost(params, X[:, :4], Y[:, :4])), rel=1e-14
    )
    assert worst_error(by_hand(params, X, Y, w), by_hand(params, X[:, :4], Y[:, :4])) <= 1e-13
