"""Curvature against its definition, by jax.jacobian and jax.hessian in float64; K-FAC as a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from deepprop.costs import OUTPUTS
from deepprop.signals.gauss_newton import gauss_newton_form
from tests.problems import problem, worst_error
from tests.signals.test_per_example import one_by_one, signals_of

CANONICAL = list(OUTPUTS)
forward = jax.jit(dp.forward)
kfac_factors = jax.jit(dp.kfac_factors)


def gauss_newton(params, X, Y, w):
    """sum_i w_i / sum w J_i^T H_i J_i, whole: parameters as `rows` orders them."""
    J, H = jacobians(params, X, Y)
    n = X.shape[1]
    J = np.concatenate([np.reshape(j, (n, j.shape[1], -1)) for j in jax.tree.leaves(J)], axis=2)
    return np.einsum("i,ikp,ikl,ilq->pq", w / w.sum(), J, np.asarray(H), J)


@jax.jit
def jacobians(params, X, Y):
    """J_i of Z[L] by the parameters, leaves (m, n_L, ...), and H_i of the loss by Z[L]."""

    def Z_L(params, x):
        return dp.forward(params, x[:, None])[1].Z[-1][:, 0]

    def loss(z, y):
        return dp.output(params[-1].activation).loss(z[:, None], y[:, None])[0]

    J = jax.vmap(jax.jacobian(Z_L), (None, 1))(params, X)
    return J, jax.vmap(jax.hessian(loss), (1, 1))(dp.forward(params, X)[1].Z[-1], Y)


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_gauss_newton_diagonal(output):
    params, X, Y, w = problem(59, [3, 4, 4, 3], 5, ["tanh", "gelu"], output, True)
    _, cache = forward(params, X)
    for weights in (None, w):
        share = np.ones(5) if weights is None else weights
        expected = np.diag(gauss_newton(params, X, Y, share))
        got = jax.jit(dp.gauss_newton_diagonal)(cache, weights)
        np.testing.assert_allclose(flat(got), expected, rtol=1e-10, atol=1e-14)


def test_gauss_newton_of_a_certain_network_is_not_lost_in_rounding():
    """softmax at A = (1 - 1e-9, 1e-9): A - (A - s) would have lost what s is."""
    layer = dp.Layer(jnp.zeros((2, 1)), jnp.array([[0.0], [-20.7232658]]), dp.output("softmax"))
    _, cache = dp.forward((layer,), jnp.ones((1, 1)))
    (diagonal,) = dp.gauss_newton_diagonal(cache)
    np.testing.assert_allclose(diagonal.b[1], 1e-9, rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_sampled_targets_make_the_fisher(output):
    """Over draws, dZ[L] has mean 0 and covariance H: within 5 standard errors, entry by entry."""
    params, X, Y, _ = problem(61, [3, 4, 3], 4, "tanh", output)
    _, cache = forward(params, X)
    draws = jax.random.split(jax.random.key(2), 20_000)

    @jax.jit
    @jax.vmap
    def drawn(key):
        return dp.error_signals(cache, dp.sampled_targets(key, cache))[-1]

    dZ = np.asarray(drawn(draws))  # (draws, n_L, m)
    squares = np.einsum("sim,sjm->smij", dZ, dZ)
    loss = params[-1].activation.loss
    H = jax.vmap(jax.hessian(lambda z, y: loss(z[:, None], y[:, None])[0]), (1, 1))(cache.Z[-1], Y)
    for values, expected in ((dZ, 0), (squares, np.asarray(H))):
        error = values.std(axis=0) / np.sqrt(len(draws))
        assert (abs(values.mean(axis=0) - expected) <= 5 * error + 1e-12).all()


def test_counts_above_what_an_integer_holds_are_drawn():
    layer = dp.Layer(jnp.zeros((1, 1)), jnp.full((1, 1), 25.0), dp.output("exp"))
    A, cache = dp.forward((layer,), jnp.zeros((1, 1000)))
    drawn = np.asarray(dp.sampled_targets(jax.random.key(0), cache), np.float64)
    # 7.2e10, with a deviation of 2.7e5; 1,000 draws, and float32 rounds them by 4096
    assert abs(drawn.mean() - float(A[0, 0])) < 5 * 2.7e5 / np.sqrt(1000) + 4096
    assert drawn.std() == pytest.approx(2.7e5, rel=0.15)


@pytest.mark.usefixtures("x64")
def test_squared_gradients_of_sampled_targets_estimate_the_gauss_newton_diagonal():
    params, X, _, _ = problem(67, [3, 4, 3], 5, "tanh", "softmax")
    _, cache = forward(params, X)

    @jax.jit
    @jax.vmap
    def drawn(key):
        dZ = dp.error_signals(cache, dp.sampled_targets(key, cache))
        return dp.squared_gradients(cache, dZ)

    samples = drawn(jax.random.split(jax.random.key(3), 4_000))
    exact = dp.gauss_newton_diagonal(cache)
    for got, expected in zip(jax.tree.leaves(samples), jax.tree.leaves(exact), strict=True):
        error = np.asarray(got).std(axis=0) / np.sqrt(len(got))
        assert (abs(np.asarray(got).mean(axis=0) - np.asarray(expected)) <= 5 * error).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighted", [False, True])
def test_kfac_factors(weighted):
    """For one example a block is the factors' Kronecker product, exactly; for more, their means."""
    params, X, Y, w = problem(71, [3, 4, 2], 6, "tanh", "softmax", weighted)
    cache, dZ = signals_of(params, X, Y)
    each = one_by_one(params, X, Y)
    for i in range(6):
        alone = signals_of(params, X[:, i : i + 1], Y[:, i : i + 1])
        for l, (A, G) in enumerate(kfac_factors(*alone)):
            g = np.concatenate([each[l].W[i], each[l].b[i]], axis=1).T.ravel()  # column by column
            np.testing.assert_allclose(np.kron(A, G), np.outer(g, g), atol=1e-12)
    share = (np.ones(6) if w is None else w) / (6 if w is None else w.sum())
    for l, (A, G) in enumerate(kfac_factors(cache, dZ, w)):
        a = np.concatenate([cache.A[l], np.ones((1, 6))])
        np.testing.assert_allclose(A, (a * share) @ a.T, atol=1e-12)
        np.testing.assert_allclose(G, (np.asarray(dZ[l]) * share) @ np.asarray(dZ[l]).T, atol=1e-12)


def test_an_output_that_tells_no_distribution_is_refused():
    params, X, _, _ = problem(0, [3, 4, 2], 5, output="tanh+huber", dtype=np.float32)
    _, cache = forward(params, X)
    with pytest.raises(
        ValueError, match="sampled targets must be of a network with output softmax"
    ):
        dp.sampled_targets(jax.random.key(0), cache)
    with pytest.raises(ValueError, match="the Gauss-Newton diagonal must be of a network with"):
        dp.gauss_newton_diagonal(cache)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.sampled_targets(0, cache)


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("output", CANONICAL)
def test_gauss_newton_product(output):
    params, X, Y, w = problem(107, [3, 4, 4, 3], 5, ["tanh", "gelu"], output, True)
    U, V = (problem(seed, [3, 4, 4, 3], 5, ["tanh", "gelu"], output)[0] for seed in (109, 113))
    _, cache = forward(params, X)
    for weights in (None, w):
        G = gauss_newton(params, X, Y, np.ones(5) if weights is None else weights)
        got = jax.jit(dp.gauss_newton_product)(cache, V, weights)
        np.testing.assert_allclose(flat(got), G @ flat(V), rtol=1e-10, atol=1e-12)
        form = jax.jit(gauss_newton_form)(cache, (U, V), weights)
        both = np.stack([flat(U), flat(V)])
        np.testing.assert_allclose(form, both @ G @ both.T, rtol=1e-10)


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


def test_a_direction_of_another_network_is_refused():
    params, X, _, _ = problem(0, [3, 4, 2], 5, dtype=np.float32)
    _, cache = forward(params, X)
    with pytest.raises(ValueError, match="V must hold W of shapes"):
        dp.gauss_newton_product(cache, params[:1])
    with pytest.raises(TypeError, match="V must be layers like params, got tuple"):
        dp.gauss_newton_product(cache, (1, 2))


def test_kfac_needs_factors_or_a_cache():
    params = problem(0, [3, 2], 4, dtype=np.float32)[0]
    optimizer = dp.kfac(0.1)
    with pytest.raises(ValueError, match="kfac must be given factors"):
        optimizer.update(params, optimizer.init(params), params)
    adaptive = dp.kfac()
    with pytest.raises(ValueError, match=r"by_quadratic_model \(and so dp.kfac without a learning"):
        adaptive.update(params, adaptive.init(params), params)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.kfac(0.1, key=3)
