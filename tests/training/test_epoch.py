from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training.epoch import all_finite, train_epoch
from deepprop.training.examples import in_memory
from deepprop.training.shuffle import random_order
from tests.problems import problem, public_cost

pytestmark = pytest.mark.usefixtures("optax_types")


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("optimizer", "weighted"),
    [
        (optax.adam(0.01), False),
        (optax.adam(0.01), True),
        (optax.sgd(0.1, momentum=0.9), False),
        (optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01)), True),
    ],
    ids=["adam", "adam weighted", "momentum", "clipped adamw weighted"],
)
def test_ten_steps_follow_a_jax_grad_loop(optimizer, weighted):
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


def test_a_step_compiles_once_and_donates_its_buffers():
    params, X, Y, _ = problem(0, [5, 8, 3], 12, dtype=np.float32)
    optimizer = optax.adam(0.01)
    step, state = dp.train_step(optimizer), optimizer.init(params)
    first = params
    for _ in range(5):
        params, state, _ = step(params, state, X, Y)
    assert step._cache_size() == 1
    assert first[0].W.is_deleted()
    assert not params[0].W.is_deleted()


def test_another_backward_pass_can_be_used():
    params, X, Y, _ = problem(0, [5, 3], 12, dtype=np.float32)
    still = lambda cache, Y, weights: jax.tree.map(jnp.zeros_like, cache.params)  # noqa: E731
    optimizer = optax.sgd(0.1)
    before = jax.tree.map(np.asarray, params)
    after, _, _ = dp.train_step(optimizer, still)(params, optimizer.init(params), X, Y)
    np.testing.assert_array_equal(before[0].W, after[0].W)


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("batch_size", "weighted"), [(3, False), (4, False), (4, True), (12, True)]
)
def test_an_epoch_equals_its_steps_taken_one_at_a_time(batch_size, weighted):
    """The reference takes the same minibatches one at a time with jax.grad, the last one unpadded."""
    m = 12 if batch_size != 4 else 11
    params, X, Y, w = problem(0, [5, 6, 3], m, "gelu", weighted=weighted)
    optimizer, key = optax.adam(0.01), jax.random.key(7)
    order = np.asarray(random_order(jax.random.fold_in(key, 3), m))
    value_and_grad = jax.jit(jax.value_and_grad(public_cost))
    expected, state, total, weight = params, optimizer.init(params), 0.0, 0.0
    for start in range(0, m, batch_size):
        i = order[start : start + batch_size]
        w_i = None if w is None else w[i]
        J, grads = value_and_grad(expected, X[:, i], Y[:, i], w_i)
        updates, state = optimizer.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
        share = len(i) if w is None else w_i.sum()
        total, weight = total + share * float(J), weight + share
    trained, _, seen, finite = train_epoch(
        params,
        optimizer.init(params),
        key,
        3,
        X.T,
        Y.T,
        w,
        optimizer=optimizer,
        batch_size=batch_size,
    )
    assert finite
    assert float(seen["cost"]) == pytest.approx(total / weight, rel=1e-12)
    for p, e in zip(jax.tree.leaves(trained), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(p, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_after_the_examples_change_nothing(weighted):
    """Without them the number of examples is a constant of the program, with them an argument."""
    params, X, Y, w = problem(0, [5, 6, 3], 17, weighted=weighted, dtype=np.float32)
    data, batch_size = in_memory(params, X, Y, w, 5)
    assert (data.X.shape, int(data.m)) == ((20, 5), 17)
    optimizer = optax.adam(0.01)
    data = data._replace(X=data.X.at[17:].set(np.nan), Y=data.Y.at[17:].set(np.nan))
    of = [
        train_epoch(params, optimizer.init(params), jax.random.key(7), 3, *arrays,
                    optimizer=optimizer, batch_size=batch_size)
        for arrays in (data, data.examples())
    ]  # fmt: skip
    for with_rows, without in zip(*map(jax.tree.leaves, of), strict=True):
        np.testing.assert_allclose(with_rows, without, rtol=1e-6)


def test_an_epoch_keeps_params_and_donates_the_state():
    params, X, Y, _ = problem(0, [5, 6, 3], 12, dtype=np.float32)
    optimizer = optax.adam(0.01)
    state = optimizer.init(params)
    train_epoch(params, state, jax.random.key(0), 1, X.T, Y.T, optimizer=optimizer, batch_size=4)
    assert not params[0].W.is_deleted()
    assert state[0].mu[0].W.is_deleted()


def test_no_scalar_is_stacked_per_step():
    """From jax 0.11.1, a small update in a loop rewrites the whole buffer."""
    params, X, Y, _ = problem(0, [5, 6, 3], 12, dtype=np.float32)
    optimizer = optax.adam(0.01)
    jaxpr = jax.make_jaxpr(partial(train_epoch, optimizer=optimizer, batch_size=4))(
        params, optimizer.init(params), jax.random.key(0), 1, X.T, Y.T
    )
    (epoch,) = jaxpr.jaxpr.eqns
    (scan,) = [e for e in epoch.params["jaxpr"].jaxpr.eqns if e.primitive.name == "scan"]
    carried = len(jax.tree.leaves((params, optimizer.init(params)))) + 2  # and J's sum and weight
    assert len(scan.outvars) == carried


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_seen_anywhere(wrong):
    params = dp.init_params(jax.random.key(0), [3, 40, 2])
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.finfo(leaf.dtype).max), params)
    leaves, structure = jax.tree.flatten(huge)
    finite = jax.jit(all_finite)
    assert finite((huge, jnp.ones((), jnp.bfloat16)))
    for i, leaf in enumerate(leaves):
        spoilt = [*leaves[:i], leaf.at[-1, -1].set(wrong), *leaves[i + 1 :]]
        assert not finite((jax.tree.unflatten(structure, spoilt), jnp.ones((), jnp.bfloat16)))
    assert not finite((huge, jnp.asarray(wrong, jnp.bfloat16)))
