"""Each equation of the page, by name: first for one example, in plain NumPy loops, then for m."""

import jax
import numpy as np
import pytest

import deepprop as dp
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("x64")
SIZES, M = [4, 5, 3, 2], 6


@pytest.fixture
def page(x64):
    """Everything the page names, with layers counted from 1: params[l], Z[l], A[l], dZ[l], dW[l]."""
    params, X, Y, _ = problem(1, SIZES, M, hidden=["tanh", "silu"], output="sigmoid")
    A_L, cache = dp.forward(params, X)
    signals = dp.error_signals(cache, Y)
    grads = dp.gradients(cache, signals)
    one = lambda values: dict(enumerate(map(np.asarray, values), 1))  # noqa: E731
    return {
        "L": 3, "m": M, "Y": Y, "A_L": np.asarray(A_L), "cache": cache, "params": params,
        "W": one(p.W for p in params), "b": one(p.b for p in params),
        "g": {l: p.activation for l, p in enumerate(params, 1)},
        "Z": one(cache.Z), "A": dict(enumerate(map(np.asarray, cache.A))), "dZ": one(signals),
        "dW": one(p.W for p in grads), "db": one(p.b for p in grads),
    }  # fmt: skip


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-14)


def slope(g, Z):
    """g'(Z) by autodiff, element by element."""
    return np.asarray(jax.jit(jax.vmap(jax.grad(g)))(Z.ravel()).reshape(Z.shape))


# One example: column i of what the library computes for m at once, from scalars.


def test_one_example_z_is_W_a_plus_b(page):
    """z[l] = W[l] a[l-1] + b[l]."""
    for l in (1, 2, 3):
        W, b, a = page["W"][l], page["b"][l], page["A"][l - 1][:, 2]
        z = [sum(W[i, j] * a[j] for j in range(len(a))) + b[i, 0] for i in range(len(b))]
        close(page["Z"][l][:, 2], z)


def test_one_example_a_is_g_of_z(page):
    """a[l] = g[l](z[l])."""
    for l, g in (
        (1, np.tanh),
        (2, lambda z: z / (1 + np.exp(-z))),
        (3, lambda z: 1 / (1 + np.exp(-z))),
    ):
        close(page["A"][l][:, 2], [g(z) for z in page["Z"][l][:, 2]])


def test_one_example_dz_is_da_times_g_prime(page):
    """dz[l] = da[l] * g[l]'(z[l])."""
    for l in (1, 2):
        dz_next, W_next = page["dZ"][l + 1][:, 2], page["W"][l + 1]
        z = page["Z"][l][:, 2]
        da = [sum(W_next[k, i] * dz_next[k] for k in range(len(dz_next))) for i in range(len(z))]
        close(page["dZ"][l][:, 2], da * slope(page["g"][l].g, z))


def _gradients_of_one_example(page, i):
    _, cache = dp.forward(page["params"], page["A"][0][:, i : i + 1])
    return dp.manual_backward(cache, page["Y"][:, i : i + 1])


def test_one_example_dW_is_dz_a_transposed(page):
    """dW[l] = dz[l] a[l-1]^T."""
    for l, grad in enumerate(_gradients_of_one_example(page, 2), 1):
        dz, a = page["dZ"][l][:, 2], page["A"][l - 1][:, 2]
        close(grad.W, [[dz_i * a_j for a_j in a] for dz_i in dz])


def test_one_example_db_is_dz(page):
    """db[l] = dz[l]."""
    for l, grad in enumerate(_gradients_of_one_example(page, 2), 1):
        close(grad.b[:, 0], page["dZ"][l][:, 2])


def test_one_example_da_is_W_transposed_dz(page):
    """da[l-1] = W[l]^T dz[l], the derivative of the example's loss with respect to a[l-1]."""
    params, Y = page["params"], page["Y"][:, 2:3]
    for l in (1, 2, 3):
        rest = params[l - 1 :]
        loss = lambda a, rest=rest: dp.cost(dp.forward(rest, a)[1], Y)  # noqa: E731
        da = jax.jit(jax.grad(loss))(page["A"][l - 1][:, 2:3])
        close(da[:, 0], page["W"][l].T @ page["dZ"][l][:, 2])


def test_one_example_dz_from_the_layer_above(page):
    """dz[l] = W[l+1]^T dz[l+1] * g[l]'(z[l])."""
    for l in (1, 2):
        back = page["W"][l + 1].T @ page["dZ"][l + 1][:, 2]
        close(page["dZ"][l][:, 2], back * slope(page["g"][l].g, page["Z"][l][:, 2]))


# m examples, vectorised.


def test_Z_is_W_A_plus_b(page):
    """Z[l] = W[l] A[l-1] + b[l]."""
    for l in (1, 2, 3):
        close(page["Z"][l], page["W"][l] @ page["A"][l - 1] + page["b"][l])


def test_A_is_g_of_Z(page):
    """A[l] = g[l](Z[l])."""
    close(page["A"][1], np.tanh(page["Z"][1]))
    close(page["A"][2], page["Z"][2] / (1 + np.exp(-page["Z"][2])))
    close(page["A"][3], 1 / (1 + np.exp(-page["Z"][3])))
    close(page["A_L"], page["A"][3])


def test_dZ_is_dA_times_g_prime(page):
    """dZ[l] = dA[l] * g[l]'(Z[l])."""
    for l in (1, 2):
        dA = page["W"][l + 1].T @ page["dZ"][l + 1]
        close(page["dZ"][l], dA * slope(page["g"][l].g, page["Z"][l]))


def test_dW_is_dZ_A_transposed_over_m(page):
    """dW[l] = 1/m dZ[l] A[l-1]^T."""
    for l in (1, 2, 3):
        close(page["dW"][l], page["dZ"][l] @ page["A"][l - 1].T / page["m"])


def test_db_is_the_mean_of_dZ(page):
    """db[l] = 1/m sum_i dZ[l](i)."""
    for l in (1, 2, 3):
        close(page["db"][l], page["dZ"][l].sum(axis=1, keepdims=True) / page["m"])


def test_dA_is_W_transposed_dZ(page):
    """dA[l-1] = W[l]^T dZ[l]: m times the derivative of J by A[l-1]."""
    params, Y = page["params"], page["Y"]
    for l in (1, 2, 3):
        rest = params[l - 1 :]
        J = lambda A, rest=rest: dp.cost(dp.forward(rest, A)[1], Y)  # noqa: E731
        close(page["m"] * jax.jit(jax.grad(J))(page["A"][l - 1]), page["W"][l].T @ page["dZ"][l])


def test_dZ_from_the_layer_above(page):
    """dZ[l] = W[l+1]^T dZ[l+1] * g[l]'(Z[l])."""
    for l in (1, 2):
        back = page["W"][l + 1].T @ page["dZ"][l + 1]
        close(page["dZ"][l], back * slope(page["g"][l].g, page["Z"][l]))


def test_dZ_of_the_output_is_A_minus_Y(page):
    """dZ[L] = A[L] - Y, for a canonical link."""
    close(page["dZ"][3], page["A"][3] - page["Y"])


def test_J_is_the_mean_of_the_losses(page):
    """J = 1/m sum_i L(i)."""
    A, Y = page["A"][3], page["Y"]
    losses = -np.sum(Y * np.log(A) + (1 - Y) * np.log(1 - A), axis=0)
    close(dp.cost(page["cache"], Y), losses.sum() / page["m"])


def test_weighted_J_and_its_gradient(page):
    """J = sum_i w_i L(i) / sum_i w_i, and dW, db with it: a weight of 2 is an example twice."""
    w = np.array([2.0, 1.0, 0.0, 3.0, 1.0, 1.0])
    twice = np.repeat(np.arange(M), w.astype(int))
    _, repeated = dp.forward(page["params"], page["A"][0][:, twice])
    close(dp.cost(page["cache"], page["Y"], w), dp.cost(repeated, page["Y"][:, twice]))
    weighted = dp.manual_backward(page["cache"], page["Y"], w)
    jax.tree.map(close, weighted, dp.manual_backward(repeated, page["Y"][:, twice]))


def test_a_column_of_dZ_is_the_derivative_of_that_examples_loss(page):
    """dZ[l](i) = dL(i)/dz[l](i): without 1/m, and with nothing of another example in it."""
    for i in range(M):
        _, alone = dp.forward(page["params"], page["A"][0][:, i : i + 1])
        for l, dz in enumerate(dp.error_signals(alone, page["Y"][:, i : i + 1]), 1):
            close(page["dZ"][l][:, i : i + 1], dz)


def test_backward_is_gradients_of_error_signals(page):
    """manual_backward(cache, Y) = gradients(cache, error_signals(cache, Y))."""
    for l, grad in enumerate(dp.manual_backward(page["cache"], page["Y"]), 1):
        np.testing.assert_array_equal(grad.W, page["dW"][l])
        np.testing.assert_array_equal(grad.b, page["db"][l])


def test_an_example_worked_by_hand():
    """Two inputs, two relu units, one linear output, one example: every number on paper.

    z1 = (1*1 + 2*2 - 1, 3*1 - 1*2 - 2) = (4, -1)    a1 = (4, 0)
    z2 = 2*4 - 3*0 + 1 = 9 = a2                       J = 1/2 (9 - 5)^2 = 8
    dz2 = 9 - 5 = 4                                   dW2 = (4*4, 4*0) = (16, 0)    db2 = 4
    da1 = (2*4, -3*4) = (8, -12)                      dz1 = (8*1, -12*0) = (8, 0)
    dW1 = ((8*1, 8*2), (0, 0)) = ((8, 16), (0, 0))    db1 = (8, 0)
    """
    relu, linear = dp.activation("relu"), dp.output("identity")
    W1, b1 = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[-1.0], [-3.0 + 1.0]])
    W2, b2 = np.array([[2.0, -3.0]]), np.array([[1.0]])
    params = (
        dp.Layer(*map(jax.numpy.asarray, (W1, b1)), relu),
        dp.Layer(*map(jax.numpy.asarray, (W2, b2)), linear),
    )
    A, cache = dp.forward(params, np.array([[1.0], [2.0]]))
    Y = np.array([[5.0]])
    assert [z.ravel().tolist() for z in cache.Z] == [[4.0, -1.0], [9.0]]
    assert [a.ravel().tolist() for a in cache.A] == [[1.0, 2.0], [4.0, 0.0], [9.0]]
    assert A.tolist() == [[9.0]]
    assert float(dp.cost(cache, Y)) == 8.0
    assert [d.ravel().tolist() for d in dp.error_signals(cache, Y)] == [[8.0, 0.0], [4.0]]
    first, second = dp.manual_backward(cache, Y)
    assert first.W.tolist() == [[8.0, 16.0], [0.0, 0.0]]
    assert first.b.tolist() == [[8.0], [0.0]]
    assert second.W.tolist() == [[16.0, 0.0]]
    assert second.b.tolist() == [[4.0]]
