"""The hand-derived gradients against jax.grad of the public cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import deepprop as dp
from tests.problems import (
    HIDDEN,
    OUTPUTS,
    autodiff,
    both,
    by_hand,
    exactly,
    problem,
    public_cost,
    worst_error,
)
from tests.random_networks import networks

SHAPES = {
    "L=1, one unit": ([3, 1], 5),
    "L=1": ([4, 3], 7),
    "m=1": ([5, 4, 3], 1),
    "a layer of one unit": ([5, 1, 4, 2], 6),
    "one input": ([1, 6, 2], 9),
    "wide": ([40, 50, 10], 8),
    "deep": ([6] + [7] * 12 + [3], 5),
    "many examples": ([4, 5, 2], 300),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_every_activation_with_every_output(hidden, output):
    for weighted in (False, True):
        args = problem(3, [5, 7, 6, 3], 8, hidden, output, weighted)
        assert worst_error(by_hand(*args), exactly(*args)) <= 1e-10


@pytest.mark.ordinary(5)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("output", "weighted"), [("softmax", False), ("softmax", True), ("tanh+huber(0.4)", True)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, output, weighted):
    sizes, m = SHAPES[shape]
    args = problem(5, sizes, m, "gelu", output, weighted)
    assert worst_error(*both(*args)) <= 1e-10


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_hundreds_of_layers():
    args = problem(7, [5] + [6] * 199 + [3], 4, "selu")
    grads, expected = jax.jit(by_hand)(*args), exactly(*args)
    assert len(grads) == 200
    assert worst_error(grads, expected) <= 1e-10


@pytest.mark.usefixtures("x64")
def test_another_activation_in_each_layer():
    args = problem(11, [4] + [5] * len(HIDDEN) + [3], 6, HIDDEN)
    assert worst_error(by_hand(*args), exactly(*args)) <= 1e-10


@given(networks())
def test_random_networks(drawn):
    with jax.enable_x64(True):
        args = problem(*drawn)
        # Autodiff runs operation by operation: of layers of one unit, XLA without its
        # optimisations, as the tests run it, compiles a gradient that is nan.
        assert worst_error(by_hand(*args), autodiff(*args)) <= 1e-10


def test_targets_need_not_add_up_to_one(x64):
    """The softmax cost and its dZ = A - Y stay derivative and antiderivative for any Y."""
    params, X, Y, _ = problem(13, [4, 5, 3], 6)
    args = params, X, 3 * Y + 1
    assert worst_error(by_hand(*args), exactly(*args)) <= 1e-10


class ErrorBounds:
    """First-order running error analysis of the two passes (Higham 2002, section 3.3).

    u is the rounding of what is stored, s = (n + 2) u_sum that of a sum of n terms in the wide
    type. The exact values are float64's. For tanh: |g'| <= 1 and |g''| <= 0.77, and evaluating g
    or g' costs a few roundings, 4 u here.
    """

    def __init__(self, exact, u, u_sum):
        self.params, self.cache, self.Y, self.u, self.u_sum = *exact, u, u_sum

    def s(self, n):
        return (n + 2) * self.u_sum

    def gradients(self):
        u, layers, A, Z = self.u, self.params, list(map(np.asarray, self.cache.A)), self.cache.Z
        e_A, e_Z = [u * abs(A[0])], []
        for l, p in enumerate(layers):
            last = l == len(layers) - 1
            W, b = abs(np.asarray(p.W)), abs(np.asarray(p.b))
            size = W @ abs(A[l]) + b
            e = W @ e_A[-1] + u * size + self.s(W.shape[1]) * size  # u: W and b are rounded
            e_Z.append(e + (0 if last else 2 * u * abs(np.asarray(Z[l]))))
            e_A.append(e_Z[-1] + 4 * (self.u_sum if last else u) * abs(A[l + 1]))
        e_dZ = e_A[-1] + u * abs(self.Y)
        signals = list(map(np.asarray, dp.error_signals(self.cache, self.Y)))
        bounds = []
        for l in reversed(range(len(layers))):
            dZ = abs(signals[l])
            e_dZ = e_dZ + u * dZ
            m = dZ.shape[1]
            size = dZ @ abs(A[l]).T / m
            e_W = (e_dZ @ abs(A[l]).T + dZ @ e_A[l].T) / m + (self.s(m) + 2 * u) * size
            e_b = e_dZ.mean(axis=1, keepdims=True) + (self.s(m) + 2 * u) * dZ.mean(
                axis=1, keepdims=True
            )
            bounds.append((e_W, e_b))
            if l:
                W = abs(np.asarray(layers[l].W))
                dA = W.T @ dZ
                e_dA = W.T @ e_dZ + (self.s(W.shape[0]) + 2 * u) * dA
                slope = 1 - np.asarray(A[l]) ** 2
                e_dZ = slope * e_dA + dA * (0.77 * e_Z[l - 1] + 4 * u)
        return bounds[::-1]


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_narrow_types_stay_within_the_bounds_of_rounding(dtype, output):
    with jax.enable_x64(True):
        params, X, Y, _ = problem(17, [3, 4, 2], 5, "tanh", output)
        _, cache = dp.forward(params, X)
        exact = dp.manual_backward(cache, Y)
        u, u_sum = float(jnp.finfo(dtype).eps) / 2, float(jnp.finfo(jnp.float32).eps) / 2
        bounds = ErrorBounds((params, cache, Y), u, u_sum).gradients()
    narrow = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    grads = by_hand(narrow, jnp.asarray(X, dtype), jnp.asarray(Y, dtype))
    for grad, true, (e_W, e_b) in zip(grads, exact, bounds, strict=True):
        assert grad.W.dtype == grad.b.dtype == dtype
        for got, value, bound in ((grad.W, true.W, e_W), (grad.b, true.b, e_b)):
            error = abs(np.asarray(got, np.float64) - np.asarray(value))
            assert (error <= bound).all()
            assert bound.max() < abs(np.asarray(value)).max()  # so the bound says something


def test_sums_over_examples_do_not_stall_in_narrow_types():
    """4,096 equal terms: a bfloat16 sum would stop at 256, a float16 one would be infinite."""
    for dtype in (jnp.bfloat16, jnp.float16):
        layer = dp.Layer(jnp.zeros((1, 1), dtype), jnp.zeros((1, 1), dtype), dp.output("identity"))
        _, cache = dp.forward((layer,), jnp.full((1, 4096), 64, dtype))
        (grad,) = dp.manual_backward(cache, jnp.full((1, 4096), -2, dtype))
        assert float(grad.W[0, 0]) == 128.0
        assert float(grad.b[0, 0]) == 2.0


def test_output_error_does_not_cancel_in_bfloat16():
    """Z = 8 and Y = 1: A - Y = -3.35e-4, though A itself rounds to 1 in bfloat16."""
    layer = dp.Layer(
        jnp.full((1, 1), 8, jnp.bfloat16), jnp.zeros((1, 1), jnp.bfloat16), dp.output("sigmoid")
    )
    A, cache = dp.forward((layer,), jnp.ones((1, 1), jnp.bfloat16))
    (dZ,) = dp.error_signals(cache, jnp.ones((1, 1)))
    assert A.dtype == jnp.float32
    assert dZ.dtype == jnp.bfloat16
    assert float(dZ[0, 0]) == pytest.approx(-1 / (1 + np.exp(8)), rel=2**-8)


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e5, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_only_ratios_of_weights_matter(dtype, scale):
    """They neither underflow in a narrow type nor overflow in a sum."""
    params, X, Y, _ = problem(19, [3, 4, 2], 8, "tanh", "identity", dtype=dtype)
    w = np.array([1, 2, 0, 1, 3, 1, 1, 2], np.float32)
    grads, expected = by_hand(params, X, Y, w * scale), by_hand(params, X, Y, w)
    # w / max(w) rounds once in float32.
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(g, np.float32), np.asarray(e, np.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.usefixtures("x64")
def test_grad_and_vmap_through_forward():
    """As README says: the derivative with respect to X, and a network per key."""
    params, X, Y, _ = problem(0, [3, 5, 4, 2], 6)
    by_X = jax.jit(jax.grad(lambda X: public_cost(params, X, Y)))(X)
    dZ = dp.error_signals(dp.forward(params, X)[1], Y)
    np.testing.assert_allclose(by_X, params[0].W.T @ dZ[0] / 6, rtol=1e-12, atol=1e-15)
    scales = jnp.array([1.0, 0.5])
    many = jax.tree.map(lambda P: jnp.stack([s * P for s in scales]), params)
    A = jax.jit(jax.vmap(lambda p: dp.forward(p, X)[0]))(many)
    for i, s in enumerate(scales):
        one = dp.forward(jax.tree.map(lambda P, s=s: s * P, params), X)[0]
        np.testing.assert_allclose(A[i], one, rtol=1e-12, atol=1e-15)
