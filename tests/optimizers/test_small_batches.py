"""K-FAC without a learning rate on minibatches of a few examples, of which its model knows little."""

import jax
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import thorough

pytestmark = pytest.mark.usefixtures("optax_types")


def data():
    X = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    labels = (X[0] > 0) + 1 * (X[1] > 0)
    return X, np.eye(3, dtype=np.float32)[labels].T


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("batch_size", [1, thorough(2), 4, thorough(8), thorough(16)])
@pytest.mark.parametrize("hidden", [[8], [16, 16]])
def test_it_learns(hidden, batch_size):
    params = dp.init_params(jax.random.key(0), [4, *hidden, 3], hidden="tanh")
    for seed in (1, 2):
        costs = dp.fit(params, dp.kfac(), *data(), epochs=20, batch_size=batch_size, key=jax.random.key(seed)).history["cost"]  # fmt: skip
        assert costs.max() < 20  # it was 20 to 1e12, or not a number
        assert costs[-1] < np.log(3)


def steps(optimizer, params, batches):
    """The updates, and damping after each."""

    @jax.jit
    def step(params, state, X, Y):
        _, cache = dp.forward(params, X)
        J, grads = dp.cost(cache, Y), dp.manual_backward(cache, Y)
        updates, state = optimizer.update(grads, state, params, value=J, cache=cache, Y=Y)
        return optax.apply_updates(params, updates), state, updates

    state, seen = optimizer.init(params), []
    for X, Y in batches:
        params, state, updates = step(params, state, X, Y)
        seen.append((updates, float(state.damping)))
    return seen


@pytest.mark.parametrize(("m", "judged"), [(31, True), (32, False)])
def test_a_step_that_doubles_J_of_the_next_minibatch_is_undone(m, judged):
    """The next says the opposite of the first, with the same X: its J grows by four."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((3, m)).astype(np.float32)
    params = (dp.Layer(np.zeros((1, 3), np.float32), np.zeros((1, 1), np.float32), dp.output("identity")),)  # fmt: skip
    Y = X[:1]
    (first, before), (second, after) = steps(dp.by_quadratic_model(optax.identity(), damping=1e-3), params, [(X, Y), (X, -Y)])  # fmt: skip
    undone = all(np.array_equal(a, -b) for a, b in zip(*map(jax.tree.leaves, (second, first)), strict=True))  # fmt: skip
    assert undone == judged
    assert after == pytest.approx(before * (4 if judged else 1))
