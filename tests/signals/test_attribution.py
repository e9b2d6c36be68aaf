"""Attribution: derivatives by autodiff, completeness, and DeepLIFT written out for two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import HIDDEN, problem, thorough

pytestmark = pytest.mark.usefixtures("x64")
KINDS = {
    "plain": {},
    "layer": {"normalize": "layer"},
    "rms, residual": {"normalize": "rms", "residual": True},
    "dropout": {"dropout": 0.4},
}


def network(kind="plain", hidden="gelu", stack=False):
    params = dp.init_params(
        jax.random.key(4), [4, 6, 6, 6, 6, 3], hidden=hidden, dtype=jnp.float64, **KINDS[kind]
    )
    params = tuple(dp.Layer(**{**vars(layer), "b": layer.b + 0.1}) for layer in params)
    return dp.stack(params, keep=2) if stack else params


def score(params, X, unit):
    """Z[L] of each example's unit."""
    return dp.forward(params, X)[1].Z[-1][unit, jnp.arange(X.shape[1])]


X, BASELINE = (np.random.default_rng(2).standard_normal(shape) for shape in ((4, 7), (4, 1)))
UNITS = np.array([0, 1, 2, 0, 1, 2, 2])


@pytest.mark.ordinary(1)
@pytest.mark.parametrize(
    ("kind", "stack"),
    [
        ("plain", False),
        ("layer", True),
        *(thorough(k, s) for k, s in zip(KINDS, (True, False) * 2, strict=True)),
    ],
)
def test_derivatives_and_completeness(kind, stack):
    params = network(kind, stack=stack)
    plain = dp.unstack(params)  # autodiff cannot go back through every stack
    expected = jax.jit(jax.grad(lambda X: score(plain, X, UNITS).sum()))(jnp.asarray(X))
    np.testing.assert_allclose(
        dp.input_gradients(params, X, UNITS), expected, rtol=1e-9, atol=1e-12
    )
    of = jax.jit(score)
    rise = of(params, X, UNITS) - of(params, np.tile(BASELINE, 7), UNITS)
    exact = dp.deep_lift(params, X, UNITS, baseline=BASELINE)
    np.testing.assert_allclose(exact.sum(axis=0), rise, rtol=1e-10)
    # The middle rule's error falls with the square of the steps: 10 times the steps, 100 times less
    few, many = (
        abs(
            dp.integrated_gradients(params, X, UNITS, baseline=BASELINE, steps=s).sum(axis=0) - rise
        )
        for s in (200, 2000)
    )
    assert many.max() < max(few.max() / 50, 1e-12)
    assert many.max() < 1e-3 * abs(rise).max()


def test_integrated_gradients_are_the_integral():
    params = network()
    t = (np.arange(2000) + 0.5) / 2000
    gradient = jax.jit(jax.grad(lambda X: score(params, X, np.zeros(2000, int)).sum()))
    path = BASELINE + t * (X[:, :1] - BASELINE)
    expected = (X[:, :1] - BASELINE)[:, 0] * gradient(jnp.asarray(path)).mean(axis=1)
    found = dp.integrated_gradients(params, X, 0, baseline=BASELINE, steps=2000)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("hidden", ["tanh", *(thorough(h) for h in HIDDEN)])
def test_deep_lift_is_the_walk_down_with_the_other_slope(hidden):
    """In NumPy, by the rescale rule: multipliers W^T (m * (A - A0) / (Z - Z0))."""
    params, X, _, _ = problem(3, [4, 5, 6, 2], 7, hidden, "softmax")
    one = dp.forward(params, X)[1]
    start = np.tile(BASELINE, 7)
    other = dp.forward(params, start)[1]
    M = np.eye(2)[:, np.ones(7, int)]
    for l in (2, 1, 0):
        M = np.asarray(params[l].W).T @ M
        if l:
            M = M * np.asarray(one.A[l] - other.A[l]) / np.asarray(one.Z[l - 1] - other.Z[l - 1])
    found = dp.deep_lift(params, X, 1, baseline=BASELINE)
    np.testing.assert_allclose(found, M * (X - start), rtol=1e-9, atol=1e-12)


def test_where_an_example_is_its_own_baseline_its_shares_are_0():
    for kind in KINDS:
        found = dp.deep_lift(network(kind), X, 0, baseline=X)
        np.testing.assert_array_equal(found, np.zeros_like(X))


def test_the_unit_is_the_largest_of_each_example_unless_given():
    params = network()
    last = params[-1]
    params = (
        *params[:-1],
        dp.Layer(
            last.W,
            last.b - last.W @ dp.forward(params, X)[1].A[-2].mean(1)[:, None],
            last.activation,
        ),
    )
    largest = np.asarray(dp.predict(params, X)).argmax(axis=0)
    assert len(set(largest.tolist())) > 1
    for method in (dp.input_gradients, dp.integrated_gradients, dp.deep_lift):
        np.testing.assert_array_equal(method(params, X), method(params, X, largest))
        np.testing.assert_array_equal(method(params, X, 1), method(params, X, np.full(7, 1)))


def test_narrow_types_are_summed_in_a_wide_one():
    """1,000 equal slopes: in bfloat16, their sum would stop growing at 256."""
    layer = dp.Layer(jnp.ones((1, 3), jnp.bfloat16), jnp.zeros((1, 1), jnp.bfloat16), "identity")
    last = dp.Layer(
        jnp.ones((1, 1), jnp.bfloat16), jnp.zeros((1, 1), jnp.bfloat16), dp.output("identity")
    )
    shares = dp.integrated_gradients((layer, last), np.ones((3, 2), np.float32), 0, steps=1000)
    np.testing.assert_allclose(np.asarray(shares, np.float32), 1, rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_deep_lift_close_to_the_baseline_is_the_derivative(dtype):
    """The quotient of two rounded differences would be off by its own size."""
    params = jax.tree.map(lambda p: p.astype(dtype), network())
    x = jnp.asarray(X, dtype)
    near = x * (1 + jnp.asarray(jnp.finfo(dtype).eps, dtype))
    slope = np.asarray(dp.input_gradients(params, near, 0), np.float32)
    found = np.asarray(dp.deep_lift(params, near, 0, baseline=x), np.float32)
    way = np.asarray(near, np.float32) - np.asarray(x, np.float32)
    np.testing.assert_allclose(found, slope * way, atol=0.1 * abs(slope * way).max())


def test_bad_input():
    params = network()
    for method in (dp.input_gradients, dp.integrated_gradients, dp.deep_lift):
        with pytest.raises(ValueError, match="unit must be from 0 to 2, got 3"):
            method(params, X, 3)
        with pytest.raises(ValueError, match=r"unit must be one integer, or \(7,\) of them"):
            method(params, X, [0, 1])
        with pytest.raises(TypeError, match="unit must be integers from 0 to 2, got dtype float64"):
            method(params, X, 1.0)
        with pytest.raises(ValueError, match=r"the examples seem to be rows: pass X\.T"):
            method(params, X.T)
    for method in (dp.integrated_gradients, dp.deep_lift):
        with pytest.raises(ValueError, match=r"baseline must be a number, \(4, 1\) or \(4, 7\)"):
            method(params, X, baseline=np.zeros(4))
    with pytest.raises(ValueError, match="steps must be above 0"):
        dp.integrated_gradients(params, X, steps=0)
