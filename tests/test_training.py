import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training import minibatches
from tests.problems import problem, public_cost

pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.01), optax.sgd(0.1, momentum=0.9), optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01))],
    ids=["adam", "momentum", "clipped adamw"],
)  # fmt: skip
def test_ten_steps_follow_the_trajectory_of_a_jax_grad_loop(optimizer, weighted):
    params, X, Y, w = problem(0, [5, 8, 6, 3], 12, "gelu", weighted=weighted)
    expected, state_of_autodiff, costs = params, optimizer.init(params), []
    value_and_grad = jax.jit(jax.value_and_grad(public_cost))
    for _ in range(10):
        J, grads = value_and_grad(expected, X, Y, w)
        costs.append(float(J))
        updates, state_of_autodiff = optimizer.update(grads, state_of_autodiff, expected)
        expected = optax.apply_updates(expected, updates)
    step, state = dp.train_step(optimizer), optimizer.init(params)
    params = jax.tree.map(jnp.copy, params)
    for J_expected in costs:
        params, state, J = step(params, state, X, Y, w)
        assert float(J) == pytest.approx(J_expected, rel=1e-9)
    for p, e in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(p, e, rtol=1e-8, atol=1e-10)


def test_a_step_compiles_once_and_gives_its_buffers_away():
    params, X, Y, _ = problem(0, [5, 8, 3], 12, dtype=np.float32)
    optimizer = optax.adam(0.01)
    step, state = dp.train_step(optimizer), optimizer.init(params)
    first = params
    for _ in range(5):
        params, state, _ = step(params, state, X, Y)
    assert step._cache_size() == 1
    assert first[0].W.is_deleted()
    assert not params[0].W.is_deleted()


def test_another_backward_pass_plugs_in():
    params, X, Y, _ = problem(0, [5, 3], 12, dtype=np.float32)
    still = lambda cache, Y, weights: jax.tree.map(jnp.zeros_like, cache.params)  # noqa: E731
    optimizer = optax.sgd(0.1)
    before = jax.tree.map(np.asarray, params)
    after, _, _ = dp.train_step(optimizer, still)(params, optimizer.init(params), X, Y)
    np.testing.assert_array_equal(before[0].W, after[0].W)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_an_epoch_of_minibatches_counts_every_example_once(batch_size):
    X = np.arange(12.0).reshape(1, 12)
    batches = list(
        minibatches(X[:, :11], 2 * X[:, :11], min(batch_size, 11), np.random.default_rng(0))
    )
    seen = np.concatenate([x[0][w == 1] for x, _, w in batches])
    np.testing.assert_array_equal(np.sort(seen), np.arange(11))
    assert not np.array_equal(seen, np.arange(11))
    assert {x.shape for x, _, _ in batches} == {(1, min(batch_size, 11))}
    assert all(np.array_equal(2 * x, y) for x, y, _ in batches)
