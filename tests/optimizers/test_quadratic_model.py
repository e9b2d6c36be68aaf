"""Steps and damping by a quadratic model of the cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import problem
from tests.signals.oracles import flat, gauss_newton


@pytest.mark.usefixtures("x64")
def test_the_quadratic_model_is_minimised_over_both_directions(optax_types):
    """Step by step against its definition, with the Gauss-Newton matrix whole."""
    params, X, Y, _ = problem(127, [3, 4, 2], 8)
    optimizer = dp.by_quadratic_model(optax.identity(), damping=0.25)
    state, last = optimizer.init(params), np.zeros(flat(params).size)

    @jax.jit
    def step(params, state):
        _, cache = dp.forward(params, X)
        grads, J = dp.manual_backward(cache, Y), dp.cost(cache, Y)
        return grads, *optimizer.update(grads, state, params, value=J, cache=cache, Y=Y)

    for _ in range(4):
        grads, updates, state = step(params, state)
        g = flat(grads)
        G = gauss_newton(params, X, Y, np.ones(8)) + 0.25 * np.eye(g.size)
        span = np.stack([g, last] if last.any() else [g])
        share = np.linalg.solve(span @ G @ span.T, -span @ g)
        np.testing.assert_allclose(flat(updates), share @ span, rtol=1e-7)
        params, last = optax.apply_updates(params, updates), flat(updates)


@pytest.mark.usefixtures("x64")
def test_the_damping_follows_how_well_the_model_foretold(optax_types):
    """Least squares is its own model: the damping falls. A model far off: it grows."""
    rng = np.random.default_rng(131)
    X, Y = rng.standard_normal((4, 50)), rng.standard_normal((2, 50))
    params = (dp.Layer(jnp.zeros((2, 4)), jnp.zeros((2, 1)), dp.output("identity")),)
    for told, factor in ((1.0, 0.95**5), (1e6, 1 / 0.95**5)):
        optimizer = dp.by_quadratic_model(optax.identity(), damping=0.5)
        state, at = optimizer.init(params), params

        @jax.jit
        def step(at, state, optimizer=optimizer, told=told):
            cache = dp.forward(at, X)[1]
            # A cost that is told too low makes what is kept of the promise negative.
            value = dp.cost(cache, Y) - (0 if told == 1.0 else told)
            updates, state = optimizer.update(
                dp.manual_backward(cache, Y), state, at, value=value, cache=cache, Y=Y
            )
            return optax.apply_updates(at, updates), state

        for _ in range(5):
            assert float(state.damping) == pytest.approx(0.5)
            at, state = step(at, state)
        assert float(state.damping) == pytest.approx(0.5 * factor)
