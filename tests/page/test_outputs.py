"""Outputs with other targets than one per unit: a mean with a variance, and several side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.outputs import target_rows
from tests.problems import autodiff

JOINT = [("softmax", 3), ("gaussian", 4), ("tanh+huber(0.5)", 2)]


def targets_of(rng, m):
    """One-hot rows of 3, 2 numbers for 2 means and 2 variances, and 2 numbers."""
    return np.concatenate(
        [np.eye(3)[:, rng.integers(3, size=m)], rng.normal(size=(2, m)), rng.normal(size=(2, m))]
    )


@pytest.mark.usefixtures("x64")
def test_gaussian_is_the_negative_log_density():
    rng = np.random.default_rng(0)
    Z, Y = rng.normal(size=(4, 6)), rng.normal(size=(2, 6))
    mu, variance = Z[:2], np.exp(Z[2:])
    density = np.exp(-((Y - mu) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    expected = -np.log(density).sum(0) - 2 * np.log(2 * np.pi) / 2
    np.testing.assert_allclose(dp.output("gaussian").loss(Z, Y), expected, rtol=1e-12)


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("output", "n_L", "rows"), [("gaussian", 4, 2), (JOINT, 9, 7), ([("gaussian", 2)], 2, 1)]
)
def test_gradients_are_autodiffs(output, n_L, rows):
    rng = np.random.default_rng(1)
    params = dp.init_params(jax.random.key(0), [4, 5, n_L], output=output, dtype=jnp.float64)
    X = jnp.asarray(rng.normal(size=(4, 8)))
    Y = jnp.asarray(targets_of(rng, 8) if rows == 7 else rng.normal(size=(rows, 8)))
    A, cache = dp.forward(params, X)
    grads, expected = dp.manual_backward(cache, Y), autodiff(params, X, Y)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    dA = jnp.asarray(rng.normal(size=A.shape))
    choice = params[-1].activation
    by_dA = dp.error_signals(cache, dA=dA)[-1]
    np.testing.assert_allclose(by_dA, jax.vjp(choice.g, cache.Z[-1])[1](dA)[0], atol=1e-13)
    assert dp.check_gradients(params, X, Y).ok


def test_gaussian_stays_finite_and_exact_far_out():
    choice = dp.output("gaussian")
    Z = jnp.asarray([[1e4, -1e4, 0.0, 0.0], [1e4, 1e4, -1e4, -30.0]], jnp.float32)
    Y = jnp.zeros((1, 4), jnp.float32)
    assert np.isfinite(choice.loss(Z, Y)).all()
    dZ = choice.dZ(Z, Z, Y)
    expected = jax.grad(lambda Z: jnp.sum(choice.loss(Z, Y)))(Z)
    np.testing.assert_allclose(dZ, expected, rtol=1e-5)


@pytest.mark.usefixtures("optax_types")
def test_a_network_learns_mean_and_variance():
    """y = sin x with a deviation of 0.1 + 0.4 |x|: both are found to 0.1."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 4000)
    y = np.sin(2 * x) + (0.1 + 0.4 * abs(x)) * rng.normal(size=x.size)
    params = dp.init_params(jax.random.key(0), [1, 32, 2], hidden="tanh", output="gaussian")
    fit = dp.fit(
        params, optax.adam(0.01), x[None], y[None], epochs=60, batch_size=100,
        key=jax.random.key(1),
    )  # fmt: skip
    grid = np.linspace(-0.9, 0.9, 7)
    mean, log_variance = np.asarray(dp.predict(fit.params, grid[None]))
    np.testing.assert_allclose(mean, np.sin(2 * grid), atol=0.1)
    np.testing.assert_allclose(np.exp(log_variance / 2), 0.1 + 0.4 * abs(grid), atol=0.1)


@pytest.mark.usefixtures("optax_types")
def test_several_outputs_train_together_and_are_saved(tmp_path):
    rng = np.random.default_rng(2)
    params = dp.init_params(jax.random.key(0), [4, 8, 9], output=JOINT)
    X, Y = rng.normal(size=(4, 64)), targets_of(rng, 64)
    fit = dp.fit(params, optax.adam(0.01), X, Y, epochs=30, batch_size=16, key=jax.random.key(1))
    assert fit.history["cost"][-1] < fit.history["cost"][0]
    dp.save(tmp_path / "m.npz", fit.params)
    again = dp.load(tmp_path / "m.npz")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert again[-1].activation.name == "softmax[3] & gaussian[4] & tanh+huber(0.5)[2]"
    step = dp.train_step(optax.sgd(0.1))
    step(fit.params, optax.sgd(0.1).init(fit.params), jnp.asarray(X, "f4"), jnp.asarray(Y, "f4"))


@pytest.mark.parametrize(
    ("output", "sizes", "error", "message"),
    [
        ("gaussian", [4, 3], ValueError, "output gaussian can't have 3 units"),
        ([("gaussian", 3)], [4, 3], ValueError, "output gaussian can't have 3 units"),
        ([("softmax", 3)], [4, 4], ValueError, r"output softmax\[3\] can't have 4 units"),
        ([("softmax",)], [4, 4], TypeError, "output must be a list of pairs"),
        ("softmax[3] & identity", [4, 4], ValueError, "must name the units of each part"),
        ("identity+quantile(1.5)", [4, 4], ValueError, "cost quantile takes a number below 1"),
        ("softmax+smoothed(1)", [4, 4], ValueError, "cost smoothed takes a number below 1"),
    ],
)
def test_bad_outputs_are_named(output, sizes, error, message):
    with pytest.raises(error, match=message):
        dp.forward(dp.init_params(jax.random.key(0), sizes, output=output), jnp.ones((4, 2)))


def test_targets_of_another_shape_are_named():
    params = dp.init_params(jax.random.key(0), [4, 4], output="gaussian")
    _, cache = dp.forward(params, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"Y must have shape \(2, 3\)"):
        dp.cost(cache, jnp.ones((4, 3)))
    assert target_rows(dp.output("gaussian"), 4) == 2
