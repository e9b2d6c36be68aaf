"""Curvature in the Kronecker eigenbasis, influence and TracIn, against explicit matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.signals.training_influence import inverse_products
from tests.problems import CANONICAL, HIDDEN, problem, thorough
from tests.signals.oracles import jacobians, one_by_one, rows, signals_of

pytestmark = pytest.mark.usefixtures("x64")
DAMPING = 0.01


def with_bias(layer):
    """Derivatives by W and b beside each other: (..., n_l, n_{l-1} + 1)."""
    return np.concatenate([layer.W, layer.b], axis=-1)


def explicit_curvature(params, X, Y, w):
    """Each layer's exact Gauss-Newton block from autodiff; bases from NumPy; the diagonal in them.

    The derivative by b is dz itself, which gives the factor of dZ.
    """
    J, H = jacobians(params, X, Y)
    H, share, A = np.asarray(H), w / w.sum(), [np.asarray(a) for a in dp.forward(params, X)[1].A]
    found = []
    for l in range(len(params)):
        of_layer, dz = with_bias(J[l]), np.asarray(J[l].b)[..., 0]
        a = np.concatenate([A[l], np.ones((1, X.shape[1]))])
        V = np.linalg.eigh((a * share) @ a.T)[1]
        U = np.linalg.eigh(np.einsum("i,ikp,ikh,ihq->pq", share, dz, H, dz))[1]
        rotated = np.einsum("pu,ikpq,qv->ikuv", U, of_layer, V)
        found.append((U, V, np.einsum("i,ikuv,ikh,ihuv->uv", share, rotated, H, rotated)))
    return found


def explicit_influence(params, X, Y, X_test, Y_test, w, damping):
    total, curvature = 0, explicit_curvature(params, X, Y, w)
    each, other = one_by_one(params, X, Y), one_by_one(params, X_test, Y_test)
    if damping is None:
        damping = 0.3 * np.concatenate([values.ravel() for *_, values in curvature]).mean()
    for l, (U, V, values) in enumerate(curvature):
        g, g_2 = (U.T @ with_bias(e[l]) @ V for e in (each, other))
        total = total + np.einsum("iuv,uv,juv->ij", g, 1 / (values + damping), g_2)
    return (w / w.sum())[:, None] * total


def network(output, weighted=True, seed=41, hidden=("tanh", "gelu")):
    params, X, Y, w = problem(seed, [3, 4, 5, 2], 9, list(hidden), output, weighted)
    return params, X, Y, w, *problem(seed + 1, [3, 4, 5, 2], 4, list(hidden), output)[1:3]


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("output", CANONICAL)
def test_influence_is_that_of_the_explicit_matrices(output):
    params, X, Y, w, X_test, Y_test = network(output)
    for damping in (None, DAMPING):
        expected = explicit_influence(params, X, Y, X_test, Y_test, w, damping)
        for size in (4, 100):  # 9 examples: the last batch overlaps, and a batch larger than all
            found = dp.influence(
                params, X, Y, X_test, Y_test, damping=damping, weights=w, batch_size=size
            )
            np.testing.assert_allclose(found, expected, atol=1e-9 * abs(expected).max())


@pytest.mark.parametrize("hidden", [thorough(h) for h in HIDDEN[::3]])
def test_influence_with_every_activation(hidden):
    params, X, Y, _, X_test, Y_test = network("softmax", False, hidden=(hidden, hidden))
    expected = explicit_influence(params, X, Y, X_test, Y_test, np.ones(9), DAMPING)
    found = dp.influence(params, X, Y, X_test, Y_test, damping=DAMPING)
    np.testing.assert_allclose(found, expected, atol=1e-9 * abs(expected).max())


def test_one_linear_layer_has_the_closed_form():
    """Least squares: G is the mean of a a^T for each unit, whatever the basis of dZ."""
    params, X, Y, w = problem(5, [4, 3], 30, output="identity", weighted=True)
    X_test, Y_test = X[:, :7] + 0.3, Y[:, :7]
    a, a_2 = (np.concatenate([P, np.ones((1, P.shape[1]))]) for P in (X, X_test))
    share = w / w.sum()
    inverse = np.linalg.inv((a * share) @ a.T + DAMPING * np.eye(5))
    dZ, dZ_2 = (np.asarray(dp.predict(params, P)) - T for P, T in ((X, Y), (X_test, Y_test)))
    expected = share[:, None] * (a.T @ inverse @ a_2) * (dZ.T @ dZ_2)
    found = dp.influence(params, X, Y, X_test, Y_test, damping=DAMPING, weights=w)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_it_predicts_what_leaving_out_and_solving_again_gives():
    """Least squares with a little damping can be solved again exactly; m is large, so order 1/m."""
    rng = np.random.default_rng(3)
    X, noise = rng.standard_normal((2, 200)), rng.standard_normal((1, 200))
    Y = X[:1] - 2 * X[1:] + 0.3 * noise
    a = np.concatenate([X, np.ones((1, 200))])

    def solve(keep):
        return np.linalg.solve(a[:, keep] @ a[:, keep].T, a[:, keep] @ Y[:, keep].T).T

    def layer(whole):
        W, b = jnp.asarray(whole[:, :2]), jnp.asarray(whole[:, 2:])
        return (dp.Layer(W, b, dp.output("identity")),)

    everything = np.arange(200)
    params = layer(solve(everything))
    before = np.asarray(dp.cost(dp.forward(params, X[:, :1])[1], Y[:, :1]))
    left_out = [layer(solve(everything != i)) for i in range(20)]
    rises = [dp.cost(dp.forward(p, X[:, :1])[1], Y[:, :1]) - before for p in left_out]
    found = dp.influence(params, X, Y, X[:, :1], Y[:, :1], damping=1e-9)[:20, 0]
    assert np.corrcoef(found[1:], rises[1:])[0, 1] > 0.99  # 0 is the test example: leverage twice
    np.testing.assert_allclose(found[1:], rises[1:], atol=0.2 * np.abs(rises[1:]).max())


@pytest.mark.parametrize("kind", ["recomputed", thorough("stack")])
def test_stacks(kind):
    params, X, Y, w = problem(7, [3, 4, 4, 4, 4, 2], 8, "tanh", "softmax", True)
    stacked = dp.stack(params, keep="sqrt" if kind == "recomputed" else 1)
    args = X, Y, X[:, :3], Y[:, :3]
    np.testing.assert_allclose(
        dp.influence(stacked, *args, weights=w), dp.influence(params, *args, weights=w), rtol=1e-8
    )
    rates = [0.1, 0.2]
    np.testing.assert_allclose(
        dp.tracin([stacked, stacked], rates, *args), dp.tracin([params, params], rates, *args), 1e-8
    )


@pytest.mark.thorough
def test_what_dropout_kept_counts():
    """The pure function reads U: with the masks of a key, against gradients with that key."""
    params = dp.init_params(
        jax.random.key(0), [3, 6, 5, 2], hidden="tanh", dropout=[0.2, 0.5, 0.5], dtype=jnp.float64,
        normalize="layer",
    )  # fmt: skip
    X = np.random.default_rng(0).standard_normal((3, 6))
    Y, key = np.eye(2)[:, [0, 1, 1, 0, 1, 0]], jax.random.key(3)
    _, cache = jax.jit(dp.forward)(params, X, key=key)
    dZ, curvature = jax.jit(dp.error_signals)(cache, Y), dp.ekfac(params, X)

    def loss(p, e):
        return dp.cost(dp.forward(p, X, key=key)[1], Y, e)

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, np.eye(6))
    expected = 0
    for l, (V, U, values) in enumerate(curvature):
        g = np.asarray(U).T @ with_bias(each[l]) @ np.asarray(V)
        expected = expected + np.einsum("iuv,uv,juv->ij", g, 1 / (values + DAMPING), g)
    found = jax.jit(inverse_products)(cache, dZ, cache, dZ, curvature, DAMPING)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_values_sum_to_the_trace_of_the_gauss_newton_matrix():
    """A rotation keeps the trace, which the diagonal gives too: another path to the same number."""
    params, X, _, w = problem(17, [3, 4, 4, 4, 2], 8, "tanh", "softmax", True)
    stacked = dp.stack(params)
    _, cache = jax.jit(dp.forward)(stacked, X)
    diagonal = jax.jit(dp.gauss_newton_diagonal)(cache, w)
    curvature = dp.ekfac(stacked, X, weights=w, batch_size=3)
    for c, of_layer in zip(curvature, diagonal, strict=True):
        np.testing.assert_allclose(c.values.sum(), of_layer.W.sum() + of_layer.b.sum(), rtol=1e-10)


def test_tracin_is_the_sum_of_products_of_gradients():
    output, rates = "tanh+huber(0.4)", [0.1, 0.03]
    runs = [problem(s, [3, 4, 2], 9, "tanh", output)[0] for s in (1, 2)]
    _, X, Y, _ = problem(1, [3, 4, 2], 9, "tanh", output)
    X_test, Y_test = X[:, :4] + 0.5, Y[:, :4]
    expected = sum(
        rate * rows(one_by_one(p, X, Y)) @ rows(one_by_one(p, X_test, Y_test)).T
        for p, rate in zip(runs, rates, strict=True)
    )
    found = dp.tracin(runs, rates, X, Y, X_test, Y_test, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-10 * abs(expected).max())


def test_a_layer_whose_units_are_all_dead_adds_nothing():
    params, X, Y, _ = problem(1, [3, 4, 2], 5, "relu", "softmax")
    dead = (dp.Layer(0 * params[0].W, params[0].b * 0 - 1, params[0].activation), params[1])
    assert np.isfinite(dp.influence(dead, X, Y, X, Y)).all()
    sure = (dead[0], dp.Layer(params[1].W, jnp.array([[1e5], [-1e5]]), params[1].activation))
    assert not any(c.values.any() for c in dp.ekfac(sure, X))  # softmax is flat there
    assert np.isfinite(dp.influence(sure, X, Y, X, Y)).all()


@pytest.mark.usefixtures("x64")
def test_no_gradient_of_a_training_example_is_made():
    """The largest array in the program is a column's, times a batch: not (batch, n_l, n_{l-1})."""
    params, X, Y, _ = problem(1, [60, 50, 2], 64, "tanh", "softmax")
    signals, curvature = signals_of(params, X, Y), dp.ekfac(params, X)
    text = str(jax.make_jaxpr(inverse_products)(*signals, *signals, curvature, 0.1))
    assert "[64,50,60]" not in text and "[64,50,61]" not in text and "[64,61,50]" not in text  # noqa: PT018
    assert "[50,64]" in text


def test_bad_input():
    params, X, Y, _ = problem(0, [3, 4, 2], 5, "tanh", "softmax")
    with pytest.raises(ValueError, match=r"X_test must have shape \(3, m\)"):
        dp.influence(params, X, Y, X[:2], Y)
    with pytest.raises(ValueError, match=r"the examples seem to be rows: pass X_test\.T"):
        dp.influence(params, X, Y, X.T, Y)
    of_two = problem(0, [3, 4, 2], 5, "tanh", "sigmoid")
    with pytest.raises(ValueError, match=r"Y_test must lie in \[0, 1\]"):
        dp.influence(*of_two[:3], X, Y + 1)
    with pytest.raises(ValueError, match="damping must be finite and above 0, got 0"):
        dp.influence(params, X, Y, X, Y, damping=0)
    with pytest.raises(ValueError, match="damping must be one number, got an array"):
        dp.influence(params, X, Y, X, Y, damping=np.ones(2))
    with pytest.raises(TypeError, match=r"curvature must be the result of dp\.ekfac"):
        dp.influence(params, X, Y, X, Y, curvature=dp.ekfac(params, X)[0])
    with pytest.raises(ValueError, match="curvature must have values of shapes"):
        dp.influence(params, X, Y, X, Y, curvature=dp.ekfac(params, X)[:1])
    with pytest.raises(ValueError, match="X_test must hold finite numbers"):
        dp.influence(params, X, Y, np.where(X > 0, np.inf, X), Y)
    with pytest.raises(ValueError, match="batch_size must be above 0"):
        dp.influence(params, X, Y, X, Y, batch_size=0)
    with pytest.raises(
        ValueError, match="checkpoints and learning_rates must have the same length"
    ):
        dp.tracin([params], [0.1, 0.2], X, Y, X, Y)
    with pytest.raises(ValueError, match=r"checkpoints\[1\] must hold W of shapes"):
        dp.tracin([params, problem(0, [3, 5, 2], 5)[0]], [1, 1], X, Y, X, Y)
    params, X, Y, _ = problem(0, [3, 4, 2], 5, "tanh", "tanh+huber")
    with pytest.raises(
        ValueError, match="for the Gauss-Newton matrix the network must have output"
    ):
        dp.influence(params, X, Y, X, Y)
