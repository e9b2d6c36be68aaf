import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import OUTPUTS, exactly, targets


def xlogx(y):
    return y * np.log(np.where(y > 0, y, 1))


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


# Each loss by its textbook formula, from A, for one column of Z.
TEXTBOOK = {
    "softmax": lambda z, y: -np.sum(y * np.log(np.exp(z) / np.exp(z).sum())),
    "sigmoid": lambda z, y: (
        -np.sum(y * np.log(1 / (1 + np.exp(-z))) + (1 - y) * np.log(1 / (1 + np.exp(z))))
    ),
    "identity": lambda z, y: np.sum((z - y) ** 2) / 2,
    "exp": lambda z, y: np.sum(xlogx(y) - y * z - (y - np.exp(z))),
    "tanh+absolute_error": lambda z, y: np.sum(abs(np.tanh(z) - y)),
    "tanh+huber(0.4)": lambda z, y: sum(
        r * r / 2 if r <= 0.4 else 0.4 * (r - 0.2) for r in abs(np.tanh(z) - y)
    ),
    "sigmoid+squared_error": lambda z, y: np.sum((1 / (1 + np.exp(-z)) - y) ** 2) / 2,
    "softplus+huber": lambda z, y: sum(
        r * r / 2 if r <= 1 else r - 0.5 for r in abs(np.log1p(np.exp(z)) - y)
    ),
    "identity+quantile(0.8)": lambda z, y: sum(0.8 * r if r > 0 else -0.2 * r for r in y - z),
    "softmax+squared_error": lambda z, y: np.sum((softmax(z) - y) ** 2) / 2,
    "softmax+smoothed(0.2)": lambda z, y: -np.sum((0.8 * y + 0.2 / len(y)) * np.log(softmax(z))),
    "softmax+focal(1.5)": lambda z, y: -((1 - y @ softmax(z)) ** 1.5) * np.log(y @ softmax(z)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_loss_of_each_example(name):
    rng = np.random.default_rng(0)
    Z, Y = 2 * rng.standard_normal((4, 9)), targets(rng, name, 4, 9)
    losses = dp.output(name).loss(jnp.asarray(Z), jnp.asarray(Y))
    expected = [TEXTBOOK[name](z, y) for z, y in zip(Z.T, Y.T, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OUTPUTS)
def test_dZ_is_the_derivative_of_each_examples_loss(name):
    rng = np.random.default_rng(1)
    Z, Y = jnp.asarray(3 * rng.standard_normal((4, 9))), jnp.asarray(targets(rng, name, 4, 9))
    choice = dp.output(name)
    expected = jax.jit(jax.grad(lambda Z: jnp.sum(choice.loss(Z, Y))))(Z)
    np.testing.assert_allclose(choice.dZ(Z, choice.g(Z), Y), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", OUTPUTS)
def test_cost_and_dZ_are_finite_far_out_in_float32(name):
    """At Z = +-1e4, for every pairing of signs and of targets 0 and 1."""
    Z = jnp.asarray([[1e4, -1e4, 1e4, -1e4, 0], [1e4, -1e4, -1e4, 1e4, 1e4]], jnp.float32)
    choice = dp.output(name)
    for y in ([1, 0], [0, 1]):
        Y = jnp.broadcast_to(jnp.asarray(y, jnp.float32)[:, None], Z.shape)
        assert np.isfinite(choice.loss(Z, Y)).all()
        assert np.isfinite(jnp.mean(choice.loss(Z, Y)))
        assert np.isfinite(choice.dZ(Z, choice.g(Z), Y)).all()


def test_extreme_losses_are_exact():
    """A sure and right answer costs 0, a sure and wrong one costs the gap in Z."""
    Z, Y = jnp.asarray([[1e4, -1e4], [0.0, 0.0]]), jnp.asarray([[1.0, 1.0], [0.0, 0.0]])
    assert dp.output("softmax").loss(Z, Y).tolist() == [0.0, 1e4]
    assert dp.output("sigmoid").loss(Z[:1], Y[:1]).tolist() == [0.0, 1e4]


def test_exp_is_exp_and_goes_on_as_a_line_where_it_would_overflow():
    output = dp.output("exp")
    Z = jnp.asarray([[0.0, 10.0, 44.0, 1e4]])
    held = np.sqrt(np.finfo(np.float32).max)
    np.testing.assert_allclose(output.g(Z)[0, :3], np.exp([0.0, 10.0, 44.0]), rtol=1e-5)
    assert float(output.g(Z)[0, 3]) == pytest.approx(held, rel=1e-4)
    slope = jax.grad(lambda Z: jnp.sum(output.loss(Z, jnp.ones_like(Z))))(Z)
    np.testing.assert_allclose(output.dZ(Z, output.g(Z), jnp.ones_like(Z)), slope, rtol=1e-5)


def test_poisson_deviance_is_zero_at_a_perfect_fit():
    Y = jnp.asarray([[0.5, 1.0, 7.0]])
    np.testing.assert_allclose(dp.output("exp").loss(jnp.log(Y), Y), 0, atol=1e-6)


def test_absolute_error_at_its_kink():
    Z = jnp.zeros((1, 1))
    output = dp.output("identity+absolute_error")
    assert float(output.dZ(Z, output.g(Z), Z)[0, 0]) == 0.0


def test_huber_meets_its_two_parts():
    """At |A - Y| = delta both branches give the same loss and slope."""
    output, Y = dp.output("identity+huber(0.5)"), jnp.zeros((1, 3))
    Z = jnp.asarray([[0.4999, 0.5, 0.5001]])
    np.testing.assert_allclose(output.loss(Z, Y)[0], 0.125, rtol=1e-3)
    np.testing.assert_allclose(output.dZ(Z, Z, Y), 0.5, rtol=1e-3)


def test_an_output_and_a_cost_of_your_own():
    quartic = dp.Cost(
        "quartic",
        loss=lambda A, Y: jnp.sum((A - Y) ** 4, axis=-2),
        dA=lambda A, Y: 4 * (A - Y) ** 3,
    )
    assert dp.output(("tanh", quartic)) == dp.output(("tanh", quartic))
    params = dp.init_params(jax.random.key(0), [3, 4, 2], output=("tanh", quartic))
    _, cache = dp.forward(params, jnp.ones((3, 5)))
    expected = exactly(params, jnp.ones((3, 5)), jnp.ones((2, 5)))
    for grad, e in zip(dp.manual_backward(cache, jnp.ones((2, 5))), expected, strict=True):
        np.testing.assert_allclose(grad.W, e.W, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (
            "sofmax",
            ValueError,
            "output must be one of softmax, sigmoid, identity, exp, gaussian, got",
        ),
        ("tanh+focal(2)", ValueError, "cost must be one of squared_error, .* got 'focal"),
        ("softmax(3)", ValueError, "output softmax takes no number"),
        ("tanh+hubber", ValueError, "cost must be one of squared_error, absolute_error, huber"),
        ("tanh+squared_error(2)", ValueError, "cost squared_error takes no number"),
        ("tanh+huber(0)", ValueError, "cost takes a finite number above 0"),
        (("tanh", 3), TypeError, "cost must be a name or a dp.Cost"),
        (("tanh",), TypeError, "output must be a name, an"),
        (None, TypeError, "output must be a name, an"),
    ],
)
def test_unknown_outputs(choice, error, message):
    with pytest.raises(error, match=message):
        dp.output(choice)
