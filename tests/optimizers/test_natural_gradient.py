"""K-FAC as an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from tests.problems import problem, worst_error
from tests.signals.oracles import signals_of

forward = jax.jit(dp.forward)
kfac_factors = jax.jit(dp.kfac_factors)


def damped(A, G, damping):
    pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
    root = np.sqrt(damping)
    return A + pi * root * np.eye(len(A)), G + root / pi * np.eye(len(G))


@pytest.mark.usefixtures("x64")
def test_kfac_solves_with_the_kronecker_product():
    """vec(V) = (A (x) G)^-1 vec(gradient), of the damped factors, layer by layer."""
    params, X, Y, _ = problem(73, [3, 4, 2], 8)
    cache, dZ = signals_of(params, X, Y)
    grads, factors = dp.gradients(cache, dZ), kfac_factors(cache, dZ)
    optimizer = dp.scale_by_kfac(damping=0.02)
    update = jax.jit(optimizer.update)
    natural, state = update(grads, optimizer.init(params), factors=factors)
    for layer, grad, (A, G) in zip(natural, grads, factors, strict=True):
        g = np.concatenate([grad.W, grad.b], axis=1)
        block = np.kron(*damped(np.asarray(A), np.asarray(G), 0.02))
        v = np.linalg.solve(block, g.T.ravel()).reshape(g.T.shape).T
        np.testing.assert_allclose(np.concatenate([layer.W, layer.b], axis=1), v, rtol=1e-9)
    assert int(state.steps) == 1


@pytest.mark.usefixtures("x64")
def test_kfac_solves_least_squares_in_one_step():
    """One layer and squared error: the block is the whole Gauss-Newton matrix, and exact."""
    rng = np.random.default_rng(79)
    X, Y = rng.standard_normal((4, 50)), rng.standard_normal((2, 50))
    params = (dp.Layer(jnp.zeros((2, 4)), jnp.zeros((2, 1)), dp.output("identity")),)
    _, cache = forward(params, X)
    (A, _), *_ = dp.kfac_factors(cache, dp.error_signals(cache, Y))
    optimizer = dp.kfac(1.0, damping=1e-14, momentum=0.0, max_kl=None)
    fisher = (dp.Factors(A, jnp.eye(2)),)  # of a normal about A[L] with variance 1
    updates, _ = optimizer.update(
        dp.manual_backward(cache, Y), optimizer.init(params), params, factors=fisher
    )
    solved = optax.apply_updates(params, updates)
    solution, *_ = np.linalg.lstsq(np.concatenate([X, np.ones((1, 50))]).T, Y.T)
    np.testing.assert_allclose(np.concatenate([solved[0].W, solved[0].b], axis=1), solution.T, 1e-5)


@pytest.mark.usefixtures("x64")
def test_kfac_averages_and_inverts_when_it_should():
    params, X, Y, _ = problem(83, [3, 4, 2], 8)
    cache, dZ = signals_of(params, X, Y)
    grads = dp.gradients(cache, dZ)
    optimizer = dp.scale_by_kfac(damping=0.1, decay=0.6, every=3)
    update, state, average, inverted = jax.jit(optimizer.update), optimizer.init(params), None, []
    once = kfac_factors(cache, dZ)
    for step in range(1, 10):
        factors = jax.tree.map(lambda P, s=step: s * P, once)
        before = state.inverses[0].A
        _, state = update(grads, state, factors=factors)
        kept = min(1 - 1 / step, 0.6)
        new = np.asarray(factors[0].A)
        average = new if step == 1 else kept * average + (1 - kept) * new
        np.testing.assert_allclose(state.factors[0].A, average, rtol=1e-10)
        inverted.append(not np.array_equal(before, state.inverses[0].A))
    assert inverted == [True, True, True, False, False, True, False, False, True]


@pytest.mark.usefixtures("x64")
def test_max_kl_holds_the_step():
    """Half the squared length in the metric of the damped factors is at most max_kl."""
    params, X, Y, _ = problem(89, [3, 4, 2], 8)
    cache, dZ = signals_of(params, X, Y)
    grads, factors = dp.gradients(cache, dZ), kfac_factors(cache, dZ)
    for max_kl, held in ((1e-4, True), (1e4, False)):
        optimizer = dp.kfac(0.5, damping=0.01, momentum=0.0, max_kl=max_kl)
        update = jax.jit(optimizer.update)
        updates, _ = update(grads, optimizer.init(params), params, factors=factors)
        kl = 0
        for layer, (A, G) in zip(updates, factors, strict=True):
            v = np.concatenate([layer.W, layer.b], axis=1)
            A, G = damped(np.asarray(A), np.asarray(G), 0.01)
            kl += np.sum(v * (G @ v @ A)) / 2
        assert np.isclose(kl, max_kl, rtol=1e-8) if held else kl < max_kl


@pytest.mark.thorough
def test_kfac_in_fit_and_in_a_step_of_ones_own(optax_types):
    """With the cache that they pass on, it draws targets and makes the Fisher's factors itself."""
    params, X, Y, w = problem(97, [3, 8, 2], 64, weighted=True, dtype=np.float32)
    Y = np.eye(2, dtype=np.float32)[:, np.argmax(Y, axis=0)]
    optimizer = dp.kfac(0.3, damping=0.01, every=10, key=jax.random.key(5))
    fit = dp.fit(params, optimizer, X, Y, epochs=5, batch_size=64, weights=w, key=jax.random.key(1))
    assert fit.history["cost"][-1] < fit.history["cost"][0]

    step, state = dp.train_step(optimizer), optimizer.init(params)
    copied = jax.tree.map(jnp.copy, params)
    stepped, _, _ = step(copied, state, X, Y, w / w.max())
    _, cache = forward(params, X)
    drawn = dp.sampled_targets(jax.random.fold_in(jax.random.key(5), 0), cache)
    factors = dp.kfac_factors(cache, dp.error_signals(cache, drawn), w)
    updates, _ = optimizer.update(
        dp.manual_backward(cache, Y, w), optimizer.init(params), params, factors=factors
    )
    # a step's rounding in float32, through inverses with a condition of some hundreds
    assert worst_error(stepped, optax.apply_updates(params, updates)) <= 1e-4


@pytest.mark.thorough
def test_kfac_beats_gradient_descent_where_directions_differ_in_scale(optax_types):
    """Inputs on scales 1 to 100: the natural gradient does not see them."""
    rng = np.random.default_rng(101)
    X = (rng.standard_normal((4, 256)) * np.array([[1, 5, 25, 100]]).T).astype(np.float32)
    Y = (rng.standard_normal((1, 4)) @ (X / np.array([[1, 5, 25, 100]]).T) > 0).astype(np.float32)
    params = dp.init_params(jax.random.key(0), [4, 1], output="sigmoid", init="lecun_normal")
    common = {"epochs": 30, "batch_size": 256, "key": jax.random.key(1)}
    J = dp.fit(params, dp.kfac(1.0, damping=1e-4, max_kl=0.3), X, Y, **common).history["cost"][-1]
    rates = 10.0 ** np.arange(-6, 1)
    descent = dp.fit_ensemble(params, optax.sgd, X, Y, sweep={"learning_rate": rates}, **common)
    assert 0.5 * descent.history["cost"][-1].min() > J


@pytest.mark.thorough
def test_kfac_without_a_learning_rate_learns_faster_than_adam(optax_types):
    """An autoencoder 16-8-4-8-16: cost after 30 steps against the best of five rates of Adam."""
    rng = np.random.default_rng(137)
    Z = rng.standard_normal((4, 256))
    X = (1 / (1 + np.exp(-3 * rng.standard_normal((16, 4)) @ Z))).astype(np.float32)
    params = dp.init_params(jax.random.key(0), [16, 8, 4, 8, 16], hidden="tanh", output="sigmoid")
    common = {"epochs": 30, "batch_size": 256, "key": jax.random.key(1)}
    J = dp.fit(params, dp.kfac(), X, X, **common).history["cost"][-1]
    rates = {"learning_rate": 10.0 ** np.arange(-4, 1)}
    adam = dp.fit_ensemble(params, optax.adam, X, X, sweep=rates, **common).history["cost"][-1]
    assert np.nanmin(adam) > J


@pytest.mark.thorough
def test_kfac_without_a_learning_rate_goes_on_being_stable(optax_types):
    """Hundreds of small minibatches, on which the quadratic model flatters itself; and past J = 0."""
    data = load_data(None, held_out=0.2, seed=0, standardize=False, output=None)
    params = dp.init_params(jax.random.key(0), [64, 32, 10])
    common = {"epochs": 40, "key": jax.random.key(1)}
    fit = dp.fit(params, dp.kfac(), data.X, data.Y, batch_size=64, **common)
    assert fit.history["cost"][-1] < 0.01
    assert 1e-3 <= fit.state.damping <= 1e3
    X = np.zeros((3, 64), np.float32)  # an input that is always 0, and a target that is reached
    X[:2] = np.random.default_rng(0).standard_normal((2, 64))
    params = dp.init_params(jax.random.key(0), [3, 1], output="identity")
    fit = dp.fit(params, dp.kfac(), X, X[:1], batch_size=64, **(common | {"epochs": 1000}))
    assert fit.history["cost"][-1] < 1e-10


@pytest.mark.thorough
def test_a_sweep_over_what_kfac_is_given(optax_types):
    """Each network as `fit` trains it alone, though numbers are traced when K-FAC is made."""
    params, X, Y, _ = problem(103, [3, 4, 2], 32, dtype=np.float32)
    rates = {"learning_rate": jnp.array([0.1, 0.5]), "damping": jnp.array([0.1, 0.01])}
    common = {"epochs": 3, "batch_size": 16, "key": jax.random.key(1)}
    together = dp.fit_ensemble(params, dp.kfac, X, Y, sweep=rates, **common)
    for k, (rate, damping) in enumerate([(0.1, 0.1), (0.5, 0.01)]):
        alone = dp.fit(params, dp.kfac(rate, damping=damping), X, Y, **common)
        np.testing.assert_allclose(
            together.history["cost"][:, k], alone.history["cost"], rtol=1e-4
        )  # float32


BAD = {
    "damping must be finite and above 0": {"damping": 0.0},
    "decay must be from 0 to below 1": {"decay": 1.0},
    "every must be a whole number above 0": {"every": 0},
    "max_kl must be finite and above 0": {"max_kl": -1.0},
    "min_damping must be finite and above 0": {"learning_rate": None, "min_damping": 0.0},
    "learning_rate must be finite and above 0": {"learning_rate": -0.1},
    "momentum must be from 0 to below 1": {"momentum": 2.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_of_kfac(message):
    with pytest.raises(ValueError, match=message):
        dp.kfac(**{"learning_rate": 0.1, **BAD[message]})


def test_kfac_needs_factors_or_a_cache():
    params = problem(0, [3, 2], 4, dtype=np.float32)[0]
    optimizer = dp.kfac(0.1)
    with pytest.raises(ValueError, match="kfac needs factors"):
        optimizer.update(params, optimizer.init(params), params)
    adaptive = dp.kfac()
    with pytest.raises(ValueError, match=r"by_quadratic_model \(and so dp.kfac without a learning"):
        adaptive.update(params, adaptive.init(params), params)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.kfac(0.1, key=3)
