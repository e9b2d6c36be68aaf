"""The empirical neural tangent kernel against Jacobians by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import HIDDEN, OUTPUTS, problem, thorough

pytestmark = pytest.mark.usefixtures("x64")


def explicit(params, X, of, key=None):
    """The Jacobian of Z[L] or A[L] of each example by all parameters, (m, n_L, P)."""

    def output(params):
        A, cache = dp.forward(params, X, key=key)
        return (A if of == "A" else cache.Z[-1]).T

    J = jax.jit(jax.jacobian(output))(params)
    return np.concatenate([np.reshape(j, (*j.shape[:2], -1)) for j in jax.tree.leaves(J)], axis=2)


@pytest.mark.ordinary(2)
@pytest.mark.parametrize(
    ("output", "of"), [("identity", "Z"), *((output, "A") for output in OUTPUTS)]
)
def test_kernel_of_two_batches(output, of):
    params, X, _, _ = problem(61, [3, 5, 4, 3], 6, ["gelu", "tanh"], output)
    other = X[:, :2] + 0.5
    expected = np.einsum("ikp,jhp->ikjh", explicit(params, X, of), explicit(params, other, of))
    forward = jax.jit(dp.forward)
    caches = forward(params, X)[1], forward(params, other)[1]
    found = jax.jit(dp.neural_tangent_kernel, static_argnames="of")(*caches, of=of)
    np.testing.assert_allclose(found, expected, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize("hidden", [thorough(h) for h in HIDDEN[::3]])
def test_every_activation(hidden):
    params, X, _, _ = problem(62, [3, 5, 5, 2], 4, hidden, "identity")
    J = explicit(params, X, "Z")
    found = dp.neural_tangent_kernel(dp.forward(params, X)[1])
    np.testing.assert_allclose(found, np.einsum("ikp,jhp->ikjh", J, J), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [2, thorough(1)])
def test_stacks_with_dropout_and_normalisation(keep):
    params = dp.init_params(
        jax.random.key(0), [3, 4, 4, 4, 4, 2], hidden="tanh", dropout=0.3, normalize="rms",
        residual=True, dtype=jnp.float64,
    )  # fmt: skip
    X, key = np.random.default_rng(0).standard_normal((3, 5)), jax.random.key(1)
    J = explicit(params, X, "Z", key)
    kernel = jax.jit(lambda p, X: dp.neural_tangent_kernel(dp.forward(p, X, key=key)[1]))
    found = kernel(dp.stack(params, keep), X)
    np.testing.assert_allclose(found, np.einsum("ikp,jhp->ikjh", J, J), rtol=1e-9, atol=1e-12)


def test_no_jacobian_is_made():
    params, X, _, _ = problem(1, [60, 50, 2], 7, "tanh", "softmax")
    text = str(jax.make_jaxpr(dp.neural_tangent_kernel)(dp.forward(params, X)[1]))
    assert "50,60]" not in text.replace("f64[50,60]", "")  # W[1] itself
    assert "50,61]" not in text


def test_bad_input():
    params, X, _, _ = problem(0, [3, 4, 2], 5)
    cache = dp.forward(params, X)[1]
    with pytest.raises(ValueError, match='of must be "A" or "Z", got 2'):
        dp.neural_tangent_kernel(cache, of=2)
    with pytest.raises(TypeError, match=r"cache_2 must be the dp\.Cache"):
        dp.neural_tangent_kernel(cache, params)
    other = dp.forward(problem(0, [3, 6, 2], 5)[0], X)[1]
    with pytest.raises(ValueError, match="cache_2 must be of a network with W of shapes"):
        dp.neural_tangent_kernel(cache, other)
