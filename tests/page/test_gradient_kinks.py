"""`check_gradients` where a derivative is continuous but has a kink itself: Z = 0 or |A - Y| = delta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import HIDDEN, OUTPUTS, targets

SEEDS = range(6)


def network(seed, hidden, output="identity"):
    """Fresh, so that b = 0, with an example of zeros; in float64 for targets at delta exactly."""
    params = dp.init_params(jax.random.key(seed), [3, 4, 4, 2], hidden=hidden, output=output)
    params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float64)), params)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((3, 3))
    X[:, 0] = 0
    return params, X, targets(rng, output, 2, 3)


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hidden", HIDDEN)
def test_an_example_of_zeros_passes_with_every_activation(hidden):
    for seed in SEEDS:
        report = dp.check_gradients(*network(seed, hidden))
        kinked = hidden in {"relu", "leaky_relu", "leaky_relu(0.3)", "elu(0.7)", "selu"}
        assert bool(report.at_kinks) == kinked


@pytest.mark.ordinary(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_example_of_zeros_passes_with_every_cost(output):
    for seed in SEEDS:
        assert dp.check_gradients(*network(seed, "elu", output)).ok


def at_delta(seed, hidden, output):
    params, X, Y = network(seed, hidden, output)
    A = np.asarray(dp.predict(params, X))
    return params, X, np.concatenate([A[:, :1] - 0.5, A[:, 1:2] + 0.5, Y[:, 2:]], axis=1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("hidden", "output"), [("tanh", "tanh+huber(0.5)"), ("elu", "identity+huber(0.5)")])  # fmt: skip
def test_errors_of_exactly_delta_pass(hidden, output):
    for seed in range(20):
        assert dp.check_gradients(*at_delta(seed, hidden, output)).at_kinks == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("share", [1e-2, 1e-4, 3e-5])
@pytest.mark.parametrize("make", [lambda s: network(s, "elu"), lambda s: at_delta(s, "elu", "identity+huber(0.5)")])  # fmt: skip
def test_a_small_mistake_is_found_there_and_where_it_is(make, share):
    """In the largest entry of each layer's dW, where 3e-5 of it is above what rounding leaves."""
    for seed in range(3):
        params, X, Y = make(seed)
        for l in range(3):

            def backward(*args, l=l):
                grads = list(dp.manual_backward(*args))
                W = grads[l].W
                largest = jnp.unravel_index(jnp.argmax(abs(W)), W.shape)
                return (*grads[:l], dp.Layer(W.at[largest].multiply(1 + share), grads[l].b, grads[l].activation), *grads[l + 1 :])  # fmt: skip

            with pytest.raises(dp.GradientError) as caught:
                dp.check_gradients(params, X, Y, backward=backward)
            report = caught.value.report
            assert report.where.startswith(f"W[{l + 1}]")
            assert report.worst == pytest.approx(share, rel=0.3)


@pytest.mark.usefixtures("x64")
def test_a_wrong_g_prime_is_found_there():
    """elu's derivative one at Z <= 0, and one that is wrong by 1e-4 there."""
    elu = dp.activation("elu")
    for wrong in (jnp.ones_like, lambda Z: (1 + 1e-4) * jnp.exp(Z)):
        mistaken = dp.Activation("mistaken", elu.g, lambda Z, A, f=wrong: jnp.where(Z > 0, 1.0, f(Z)))  # fmt: skip
        for seed in SEEDS:
            with pytest.raises(dp.GradientError, match="the gradient is wrong"):
                dp.check_gradients(*network(seed, mistaken))
