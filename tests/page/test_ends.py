"""Both ends of the backward pass: it starts from a dA[L] or dZ[L] of the caller's, and ends at dA[0]."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import OUTPUTS, problem
from tests.readers import READERS

pytestmark = pytest.mark.usefixtures("x64")
WITHOUT_COST = [
    "tanh+none",
    "softmax+none",
    "sigmoid+none",
    "exp+none",
    "identity+none",
    "gelu+none",
]


def network(output="softmax", residual=False, keep=None, sizes=(4, 6, 6, 6, 3)):
    params, X, _, w = problem(3, list(sizes), 5, "tanh", output, weighted=True)
    if residual:
        square = [layer.W.shape[0] == layer.W.shape[1] for layer in params[:-1]]
        params = (
            *(dp.Layer(p.W, p.b, p.activation, r) for p, r in zip(params, square, strict=False)),
            params[-1],
        )
    return params if keep is None else dp.stack(params, keep), jnp.asarray(X), w


def losses(A):
    """A loss per example that deepprop does not have."""
    return jnp.sum(jnp.sin(3 * A) * jnp.arange(1.0, A.shape[0] + 1)[:, None], axis=0)


def dA_of(loss, A):
    return jax.grad(lambda A: jnp.sum(loss(A)))(A)


def assert_close(found, expected, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max() + 1e-30))


KINDS = {
    "plain": {},
    "residual": {"residual": True},
    "residual from the first layer": {"residual": True, "sizes": (6, 6, 6, 3)},
    "stack": {"keep": 1},
    "residual stack that recomputes": {"keep": 2, "residual": True},
    "stack from the first layer": {"keep": 2, "residual": True, "sizes": (6, 6, 6, 6, 3)},
    "plain stack from the first layer": {"keep": 1, "sizes": (6, 6, 6, 6, 3)},
    "one layer": {"sizes": (4, 3)},
}


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["softmax", "tanh+none"])
def test_gradients_and_dA_0_of_a_loss_of_ones_own(kind, output):
    params, X, w = network(output, **KINDS[kind])

    def mean(params, X):
        return jnp.sum(w * losses(dp.forward(params, X)[0])) / jnp.sum(w)

    @jax.jit
    def both(params, X):
        A, cache = dp.forward(params, X)
        dA = dA_of(losses, A)
        dZ = dp.error_signals(cache, dA=dA)
        grads = dp.manual_backward(cache, dA=dA, weights=w)
        flat = dp.unstack(params)  # autodiff can't go down a loop that recomputes
        expected = jax.grad(mean)(flat, X)
        by_dX = jax.grad(lambda X: jnp.sum(losses(dp.forward(flat, X)[0])))(X)
        found = dp.unstack(grads), dp.unstack(dp.gradients(cache, dZ, w))
        return (*found, dp.input_signal(cache, dZ)), (expected, expected, by_dX)

    assert_close(*both(params, X))


@pytest.mark.ordinary(8)
@pytest.mark.parametrize("output", [*OUTPUTS, *WITHOUT_COST])
def test_dZ_L_from_dA_L_is_autodiffs(output):
    params, X, _ = network(output)
    Z = dp.forward(params, X)[1].Z[-1]
    g = params[-1].activation.g
    dA = jax.random.normal(jax.random.key(0), Z.shape)
    _, cache = dp.forward(params, X)
    expected = jax.vjp(g, Z)[1](dA)[0]
    assert_close(dp.error_signals(cache, dA=dA)[-1], expected)


def test_dZ_of_exp_is_0_where_A_is_capped():
    params = (dp.Layer(jnp.eye(1), jnp.zeros((1, 1)), dp.output("exp")),)
    _, cache = dp.forward(params, jnp.array([[2.0, 1000.0]]))
    np.testing.assert_allclose(
        dp.error_signals(cache, dA=jnp.ones((1, 2)))[0], [[np.exp(2.0), 0.0]]
    )


def test_dZ_brought_is_dZ_L():
    params, X, _ = network()
    _, cache = dp.forward(params, X)
    Y = jnp.full((3, 5), 1 / 3)
    expected = dp.error_signals(cache, Y)
    assert_close(dp.error_signals(cache, dZ=expected[-1]), expected, 1e-15)
    assert_close(dp.manual_backward(cache, dZ=expected[-1]), dp.manual_backward(cache, Y), 1e-15)


def test_a_loss_that_couples_examples_brings_m_times_its_derivative():
    params, X, _ = network("identity")

    def coupled(A):  # a contrastive loss: examples are compared with one another
        return jnp.sum(jax.nn.logsumexp(A.T @ A, axis=0)) - jnp.sum(A[:, 0] * A[:, 1])

    A, cache = dp.forward(params, X)
    grads = dp.manual_backward(cache, dA=X.shape[1] * jax.grad(coupled)(A))
    assert_close(grads, jax.grad(lambda p: coupled(dp.forward(p, X)[0]))(params))


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["A", "Z"])
def test_the_jacobian_is_autodiffs(kind, of):
    params, X, _ = network(**KINDS[kind])

    def one(x):
        A, cache = dp.forward(params, x[:, None])
        return (A if of == "A" else cache.Z[-1])[:, 0]

    expected = jax.vmap(jax.jacfwd(one), in_axes=1)(X)
    found = jax.jit(lambda p, X: dp.jacobian(dp.forward(p, X)[1], of))(params, X)
    assert found.shape == (5, 3, X.shape[0])
    assert_close(found, expected)


def test_an_output_without_a_cost_says_what_to_bring(tmp_path):
    params, X, _ = network(("tanh", None))
    assert params[-1].activation == dp.output("tanh+none")
    A, cache = dp.forward(params, X)
    Y = jnp.zeros_like(A)
    for use in (dp.cost, dp.error_signals, dp.manual_backward):
        with pytest.raises(ValueError, match="has no cost: bring dA"):
            use(cache, Y)
    dp.save(tmp_path / "m.npz", params)
    again = dp.load(tmp_path / "m.npz")
    assert jax.tree.structure(again) == jax.tree.structure(params)


def test_an_output_of_ones_own_takes_dA_where_it_says_how():
    own = partial(dp.Output, "own", jnp.tanh, lambda Z, Y: jnp.sum(Z, 0), lambda Z, A, Y: Z)
    W, b = jnp.eye(2), jnp.zeros((2, 1))
    _, cache = dp.forward((dp.Layer(W, b, own()),), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="no dZ_from_dA, so dA can't start"):
        dp.error_signals(cache, dA=jnp.ones((2, 3)))
    layer = dp.Layer(W, b, own(dZ_from_dA=lambda Z, A, dA: dA * (1 - A**2)))
    _, cache = dp.forward((layer,), jnp.ones((2, 3)))
    dZ = dp.error_signals(cache, dA=jnp.ones((2, 3)))
    np.testing.assert_allclose(dZ[0], 1 - np.tanh(1) ** 2 + np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, TypeError, "starts from one of Y, dA and dZ, got none of them"),
        ({"Y": 1, "dA": 1}, TypeError, "starts from one of Y, dA and dZ, got Y and dA"),
        ({"dA": np.ones((5, 3))}, ValueError, r"dA must have shape \(3, 5\)"),
        ({"dZ": np.ones(5)}, ValueError, r"dZ must have shape \(3, 5\)"),
        ({"dZ": "x"}, TypeError, "dZ must be an array of real numbers"),
    ],
)
def test_bad_starts_are_named(given, error, message):
    params, X, _ = network()
    _, cache = dp.forward(params, X)
    for start in (dp.error_signals, dp.manual_backward):
        with pytest.raises(error, match=message):
            start(cache, **given)


def test_bad_arguments_of_the_other_end_are_named():
    params, X, _ = network()
    _, cache = dp.forward(params, X)
    with pytest.raises(ValueError, match="dZ must hold one array per layer"):
        dp.input_signal(cache, [X])
    with pytest.raises(ValueError, match='of must be "A" or "Z"'):
        dp.jacobian(cache, "X")
    with pytest.raises(TypeError, match="cache must be"):
        dp.jacobian(params)


def test_clipping_starts_from_the_same_ends():
    params, X, w = network()
    A, cache = dp.forward(params, X)
    Y = jnp.full((3, 5), 1 / 3)
    signals = dp.error_signals(cache, Y)
    C = jnp.median(dp.per_example_norms(cache, signals))  # some are clipped
    expected, dZ = dp.clipped_backward(cache, Y, C, weights=w), signals[-1]
    assert_close(dp.clipped_backward(cache, None, C, weights=w, dZ=dZ), expected, 1e-12)
    dA = -Y / A  # of the cross-entropy
    assert_close(dp.clipped_backward(cache, None, C, weights=w, dA=dA), expected, 1e-9)


WEIGHTED = {
    "cost": lambda c, dZ, Y, w, V: dp.cost(c, Y, w),
    "manual_backward": lambda c, dZ, Y, w, V: dp.manual_backward(c, Y, w),
    "manual_backward, dZ": lambda c, dZ, Y, w, V: dp.manual_backward(c, dZ=dZ[-1], weights=w),
    **{name: READERS[name] for name in (
        "gradients", "clipped_backward", "squared_gradients", "gradient_variance", "kfac_factors",
        "gauss_newton_diagonal", "gauss_newton_product",
    )},
}  # fmt: skip


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_have_one_meaning(name):
    """Negative ones and all 0 are refused; where values are not known, they give nan and 0."""
    params, X, _ = network()
    _, cache = dp.forward(params, X)
    Y, V = jnp.full((3, 5), 1 / 3), jax.tree.map(jnp.sin, params)
    dZ = dp.error_signals(cache, Y)
    read = lambda w: WEIGHTED[name](cache, dZ, Y, w, V)  # noqa: E731
    for w, same in (([1.0, -1, 1, 1, 1], np.isnan), ([0.0] * 5, np.logical_not)):
        with pytest.raises(ValueError, match="weights must"):
            read(np.array(w))
        assert all(same(leaf).all() for leaf in jax.tree.leaves(jax.jit(read)(jnp.array(w))))
    ones = jnp.array([2.0] * 5)
    assert_close(jax.jit(read)(ones), read(None), 1e-12)
