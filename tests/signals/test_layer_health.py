"""What `diagnose` measures, against NumPy."""

import jax
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
DATA = load_data(None, held_out=0.2, seed=0, standardize=False, output=None)
X, Y = DATA.X[:, :256], DATA.Y[:, :256]


def test_the_numbers(x64):
    params, X, Y, _ = problem(0, [3, 5, 4, 2], 7, ["tanh", "relu"])
    X[1] = 0
    _, cache = jax.jit(dp.forward)(params, X)
    dZ = jax.jit(dp.error_signals)(cache, Y)
    grads = jax.jit(dp.gradients)(cache, dZ)
    updates = jax.tree.map(lambda g: -0.1 * g, grads)
    found = jax.jit(dp.diagnose)(cache, dZ, updates)
    A, Z = [np.asarray(a) for a in cache.A[1:]], [np.asarray(z) for z in cache.Z]
    for l in range(3):
        W, dW = np.asarray(params[l].W), np.asarray(grads[l].W)
        assert found.A[l] == pytest.approx(np.sqrt(np.mean(A[l] ** 2)))
        lengths = np.linalg.norm(dZ[l], axis=0)
        assert found.dZ[l] == pytest.approx(np.sqrt(np.mean(lengths**2)))
        assert found.W[l] == pytest.approx(np.linalg.norm(W))
        assert found.dW[l] == pytest.approx(np.linalg.norm(dW))
        usual = max(np.linalg.norm(W), np.sqrt(len(W)))
        assert found.update[l] == pytest.approx(0.1 * np.linalg.norm(dW) / usual)
    assert found.flat[0] == pytest.approx(np.mean(1 - np.tanh(Z[0]) ** 2 < 0.05))
    assert found.flat[1] == pytest.approx(np.mean(Z[1] <= 0))
    assert found.dead[1] == pytest.approx(np.mean((Z[1] <= 0).all(axis=1)))
    assert found.dead[2] == found.flat[2] == 0
    sizes = np.sqrt(np.mean(X**2, axis=1))
    expected = [np.sqrt(np.mean(X**2)), np.median(sizes[[0, 2]]), sizes.max()]
    np.testing.assert_allclose(found.X, expected)
    assert jax.jit(dp.diagnose)(cache, dZ).update is None
