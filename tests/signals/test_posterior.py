"""The Laplace posterior: closed forms, explicit matrices, and the marginal likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import deepprop as dp
from deepprop.signals.evidence import Evidence
from tests.problems import CANONICAL, problem
from tests.signals.oracles import jacobians
from tests.signals.test_training_influence import explicit_curvature, with_bias

pytestmark = pytest.mark.usefixtures("x64")
PRIOR = 0.7


def explicit_covariance(params, X, Y, w, X_test, prior, noise=1.0, below=0):
    """J Sigma J^T of layers above `below`, from autodiff's Jacobians and explicit matrices."""
    J, total = jacobians(params, X_test, np.zeros((Y.shape[0], X_test.shape[1])))[0], 0
    for l, (U, V, values) in enumerate(explicit_curvature(params, X, Y, w)):
        if l >= below:
            rotated = U.T @ with_bias(J[l]) @ V
            sigma = 1 / (w.sum() * values / noise + prior)
            if params[-1].activation.name == "softmax":  # of Z[L] minus its mean
                rotated = rotated - rotated.mean(axis=1, keepdims=True)
            total = total + np.einsum("ikuv,uv,ihuv->ikh", rotated, sigma, rotated)
    return total


def pairwise(Z, C):
    """Lu et al. 2020: p_k is 1 / sum_h exp(-(z_k - z_h) / sqrt(1 + pi/8 v_kh)), normalised."""
    p = np.empty(Z.shape)
    for k, i in np.ndindex(*Z.shape):
        v = C[i, k, k] + np.diag(C[i]) - 2 * C[i, k]
        p[k, i] = 1 / np.exp((Z[:, i] - Z[k, i]) / np.sqrt(1 + np.pi / 8 * v)).sum()
    return p / p.sum(axis=0)


@pytest.mark.parametrize("noise", [None, 0.3])
def test_one_linear_layer_is_bayesian_linear_regression(noise):
    params, X, Y, _ = problem(5, [4, 3], 20, output="identity")
    a, variance = np.concatenate([X, np.ones((1, 20))]), noise or 1.0
    sigma = np.linalg.inv(a @ a.T / variance + PRIOR * np.eye(5))
    expected = np.einsum("qi,qr,ri->i", a, sigma, a)
    posterior = dp.laplace(params, X, Y, prior_precision=PRIOR, noise=noise)
    mean, found = posterior.predict(X)
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), rtol=1e-10)
    np.testing.assert_allclose(mean, dp.predict(params, X), rtol=1e-12)
    full = np.eye(3) * expected[:, None, None]
    np.testing.assert_allclose(posterior.covariance(X), full, atol=1e-12)


def test_the_evidence_of_one_linear_layer_is_that_of_the_normal_distribution():
    """At the maximum of the posterior, the Laplace approximation of a Gaussian is exact."""
    rng = np.random.default_rng(0)
    X, a = rng.standard_normal((2, 12)), None
    a = np.concatenate([X, np.ones((1, 12))])
    Y = np.array([[1.0, -1.0, 0.4]]) @ a + 0.2 * rng.standard_normal((1, 12))
    for prior, noise in ((0.5, 0.04), (2.0, 0.3)):
        theta = np.linalg.solve(a @ a.T / noise + prior * np.eye(3), a @ Y[0] / noise)
        output = dp.output("identity")
        params = (dp.Layer(jnp.asarray(theta[None, :2]), jnp.asarray(theta[None, 2:]), output),)
        posterior = dp.laplace(params, X, Y, prior_precision=prior, noise=noise)
        covariance = a.T @ a / prior + noise * np.eye(12)
        exact = stats.multivariate_normal(np.zeros(12), covariance).logpdf(Y[0])
        constant = -6 * np.log(2 * np.pi)
        np.testing.assert_allclose(posterior.log_evidence + constant, exact, rtol=1e-10)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("output", CANONICAL)
def test_covariance_is_that_of_the_explicit_matrices(output):
    params, X, Y, w = problem(51, [3, 4, 5, 2], 9, ["tanh", "gelu"], output, True)
    X_test = X[:, :4] + 0.5
    for layers, below in (("all", 0), ("last", 2)):
        posterior = dp.laplace(
            params, X, Y, prior_precision=PRIOR, weights=w, layers=layers, batch_size=4
        )
        expected = explicit_covariance(params, X, Y, w, X_test, PRIOR, below=below)
        np.testing.assert_allclose(posterior.covariance(X_test), expected, atol=1e-10)
        variance = np.einsum("ikk->ki", expected)
        mean, found = posterior.predict(X_test)
        np.testing.assert_allclose(found, variance, atol=1e-10)
        Z = np.asarray(dp.forward(params, X_test)[1].Z[-1])
        divided = Z / np.sqrt(1 + np.pi / 8 * variance)
        due = {
            "softmax": pairwise(Z, expected), "sigmoid": special.expit(divided),
            "identity": Z, "exp": np.exp(Z + variance / 2),
        }  # fmt: skip
        np.testing.assert_allclose(mean, due[output], rtol=1e-9)


@pytest.mark.thorough
def test_the_mean_of_counts_is_exact_and_that_of_two_classes_is_close():
    """Against draws of Z[L] from its normal distribution: within 5 standard errors, and 0.02."""
    draws = np.random.default_rng(0).standard_normal((200_000, 1))
    for output, margin in (("exp", 0.0), ("sigmoid", 0.02)):
        params, X, Y, _ = problem(53, [3, 4, 1], 30, "tanh", output)
        mean, variance = dp.laplace(params, X, Y, prior_precision=5.0).predict(X)
        Z = np.asarray(dp.forward(params, X)[1].Z[-1])
        drawn = np.asarray(params[-1].activation.g(Z + np.sqrt(variance) * draws))
        error = 5 * drawn.std(axis=0) / np.sqrt(len(draws)) + margin
        assert (abs(drawn.mean(axis=0) - np.asarray(mean[0])) <= error).all()


def test_the_mean_of_classes_is_close_and_depends_on_differences_alone():
    """Against draws of Z[L]; and a million examples of two classes leave no doubt."""
    params, X, Y, _ = problem(57, [3, 4], 30, output="softmax")
    posterior = dp.laplace(params, X, Y, prior_precision=0.3)
    mean, C = np.asarray(posterior.predict(X)[0]), np.asarray(posterior.covariance(X))
    Z = np.asarray(dp.forward(params, X)[1].Z[-1])
    random = np.random.default_rng(0)
    for i in range(30):
        drawn = random.multivariate_normal(Z[:, i], C[i], 20_000)
        assert abs(special.softmax(drawn, axis=1).mean(axis=0) - mean[:, i]).max() < 0.03
    assert abs(special.softmax(Z, axis=0) - mean).max() > 0.1  # it is not as if nothing were unsure
    sure = dp.laplace(params, X, Y, prior_precision=0.3, weights=np.full(30, 1e6))
    np.testing.assert_allclose(sure.predict(X)[0], special.softmax(Z, axis=0), atol=1e-5)


@pytest.mark.thorough
def test_stacks_and_weights_that_count_examples():
    params, X, Y, _ = problem(7, [3, 4, 4, 4, 2], 8, "tanh", "softmax")
    once = dp.laplace(params, X, Y, prior_precision=PRIOR, layers="all").covariance(X)
    for layers in ("all", "last"):
        plain = dp.laplace(params, X, Y, layers=layers)
        stacked = dp.laplace(dp.stack(params, keep=2), X, Y, layers=layers)
        np.testing.assert_allclose(stacked.covariance(X), plain.covariance(X), rtol=1e-8)
        np.testing.assert_allclose(stacked.log_evidence, plain.log_evidence, rtol=1e-10)
    options = {"prior_precision": PRIOR, "layers": "all"}
    twice = dp.laplace(params, np.tile(X, 2), np.tile(Y, 2), **options)
    weighted = dp.laplace(params, X, Y, weights=np.full(8, 2.0), **options)
    np.testing.assert_allclose(weighted.covariance(X), twice.covariance(X), rtol=1e-9)
    assert (weighted.predict(X)[1] < np.einsum("ikk->ki", once)).all()


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("output", ["identity", "softmax"])
@pytest.mark.parametrize("layers", ["all", "last"])
def test_prior_and_noise_maximise_the_evidence(output, layers):
    """Its derivatives by jax.grad are 0 there, and no point of a grid is better."""
    params, X, Y, _ = problem(9, [3, 6, 2], 40, "tanh", output)
    posterior = dp.laplace(params, X, Y, layers=layers)
    values = jnp.concatenate([jnp.ravel(40 * c.values) for c in posterior.curvature])
    head = params if layers == "all" else params[-1:]
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(head))
    losses = 40 * dp.cost(dp.forward(params, X)[1], Y)
    n = 80.0 if output == "identity" else 0.0
    evidence = Evidence(values, jnp.asarray(square), losses, jnp.asarray(n), jnp.mean(Y**2))
    at = jnp.log(jnp.stack([posterior.prior_precision, posterior.noise]))

    def log(at):
        return evidence.log(*jnp.exp(at))

    np.testing.assert_allclose(log(at), posterior.log_evidence, rtol=1e-10)
    slope = jax.jit(jax.grad(log))(at)
    np.testing.assert_allclose(slope if n else slope[:1], 0, atol=1e-6)
    around = jnp.linspace(-3, 3, 13)
    grid = jnp.stack(jnp.meshgrid(around, around if n else jnp.zeros(1)), -1).reshape(-1, 2)
    assert (jax.jit(jax.vmap(log))(at[None] + grid) <= log(at) + 1e-9).all()


def test_validation_finds_the_noise_of_a_network_that_has_overfitted():
    """40 parameters and 30 examples: the training data alone would be far too sure."""
    rng = np.random.default_rng(2)
    W, noise = rng.standard_normal((1, 40)), 0.5
    X, X_val, X_test = (rng.standard_normal((40, m)) for m in (30, 200, 400))
    Y, Y_val, Y_test = (
        W @ P / 6 + noise * rng.standard_normal((1, P.shape[1])) for P in (X, X_val, X_test)
    )
    whole = np.linalg.lstsq(X.T, Y.T)[0].T  # through every point
    params = (dp.Layer(jnp.asarray(whole), jnp.zeros((1, 1)), dp.output("identity")),)
    errors = np.asarray(dp.predict(params, X_test)) - Y_test
    shares = []
    for validation in (None, (X_val, Y_val)):
        posterior = dp.laplace(params, X, Y, validation=validation)
        deviation = np.sqrt(posterior.predict(X_test)[1] + posterior.noise)
        shares.append((abs(errors) < 1.96 * deviation).mean())
    # 0.95 for a normal distribution, within 5 standard errors of 400, and of 200 examples too
    assert shares[0] < 0.95 - 5 * np.sqrt(0.95 * 0.05 / 400)
    assert abs(shares[1] - 0.95) < 5 * np.sqrt(0.95 * 0.05 * (1 / 200 + 1 / 400))


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("output", ["identity", "softmax", "exp", "sigmoid"])
def test_validation_takes_the_likeliest_of_the_prior_precisions(output, layers):
    """Against the posteriors for each of them, and the likelihoods written out with SciPy."""
    params, X, Y, _ = problem(55, [3, 5, 2], 20, "tanh", output)
    X_val, Y_val = X[:, :9] + 0.3, Y[:, :9]
    options = {"noise": 0.6} if output == "identity" else {}
    posterior = dp.laplace(params, X, Y, layers=layers, validation=(X_val, Y_val), **options)

    def loss(prior):
        p = dp.laplace(params, X, Y, layers=layers, prior_precision=prior, **options)
        mean, variance = map(np.asarray, p.predict(X_val))
        if output == "softmax":
            return -np.mean(np.sum(Y_val * np.log(mean), 0))
        if output == "sigmoid":
            return -np.mean(
                np.sum(special.xlogy(Y_val, mean) + special.xlogy(1 - Y_val, 1 - mean), 0)
            )
        if output == "exp":
            return -np.mean(np.sum(stats.poisson.logpmf(Y_val, mean), 0))
        return -np.mean(stats.norm.logpdf(Y_val, mean, np.sqrt(variance + posterior.noise)))

    best = float(posterior.prior_precision)
    noise, others = float(posterior.noise), best * 10.0 ** np.array([-2, -0.25, 0.25, 2])
    within = [other for other in others if 0.9e-4 < other * noise < 1.1e8]  # the ends of the grid
    assert len(within) > 1
    assert all(loss(best) <= loss(other) + 1e-9 for other in within)
    if output == "identity":  # the noise, too: the derivative of the likelihood is 0
        posterior = dp.laplace(params, X, Y, layers=layers, validation=(X_val, Y_val))
        ratio = (np.asarray(dp.predict(params, X_val)) - Y_val) ** 2
        variance = np.asarray(posterior.predict(X_val)[1]) + float(posterior.noise)
        np.testing.assert_allclose(np.mean(ratio / variance), 1, rtol=1e-8)


def test_what_enters_a_normalised_residual_network_counts():
    """The covariance by autodiff through normalisation and residual layers; dropout is off."""
    params = dp.init_params(
        jax.random.key(2), [3, 5, 5, 2], hidden="tanh", output="identity", normalize="layer",
        residual=True, dropout=0.3, dtype=jnp.float64,
    )  # fmt: skip
    random = np.random.default_rng(0)
    X, Y = random.standard_normal((3, 9)), random.standard_normal((2, 9))
    posterior = dp.laplace(params, X, Y, prior_precision=PRIOR, layers="all")
    J = jax.jit(jax.jacobian(lambda p: dp.forward(p, X)[1].Z[-1].T))(params)
    expected = 0
    for j, c in zip(J, posterior.curvature, strict=True):
        rotated = np.asarray(c.dZ).T @ with_bias(j) @ np.asarray(c.A)
        values = np.einsum("ikuv,ikuv->uv", rotated, rotated) / 9
        np.testing.assert_allclose(c.values, values, atol=1e-12)
        expected = expected + np.einsum(
            "ikuv,uv,ihuv->ikh", rotated, 1 / (9 * values + PRIOR), rotated
        )
    np.testing.assert_allclose(posterior.covariance(X), expected, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_targets_that_are_met_exactly_and_narrow_types_stay_finite(dtype):
    layer = dp.Layer(jnp.zeros((1, 2), dtype), jnp.zeros((1, 1), dtype), dp.output("identity"))
    X, Y = np.ones((2, 6), np.float32), np.zeros((1, 6), np.float32)
    for options in ({}, {"validation": (X, Y)}, {"validation": (X, Y, np.ones(6, np.float32))}):
        posterior = dp.laplace((layer,), X, Y, **options)
        numbers = [posterior.prior_precision, posterior.noise, *posterior.predict(X)]
        assert all(np.isfinite(np.asarray(number, np.float32)).all() for number in numbers)


def test_large_targets_only_change_the_unit():
    """A prior precision of 1e-12 is found, too: the search starts from the parameters' size."""
    params, X, Y, _ = problem(9, [3, 2], 40, output="identity")
    (layer,), unit = params, 1e6
    large = (dp.Layer(unit * layer.W, unit * layer.b, layer.activation),)
    one, other = dp.laplace(params, X, Y), dp.laplace(large, X, unit * Y)
    np.testing.assert_allclose(other.noise, unit**2 * one.noise, rtol=1e-6)
    np.testing.assert_allclose(other.deviation(X), unit * one.deviation(X), rtol=1e-6)


def test_validation_weights_leave_examples_out():
    params, X, Y, _ = problem(55, [3, 5, 2], 20, "tanh", "identity")
    w = (np.arange(20) % 2).astype(float)
    weighted = dp.laplace(params, X, Y, validation=(X, Y + 9 * (w == 0), w))
    fewer = dp.laplace(params, X, Y, validation=(X[:, w == 1], Y[:, w == 1]))
    np.testing.assert_allclose(weighted.noise, fewer.noise, rtol=1e-10)


def test_the_deviation_of_new_targets():
    for output in CANONICAL:
        params, X, Y, _ = problem(53, [3, 4, 2], 12, "tanh", output)
        posterior = dp.laplace(params, X, Y, prior_precision=2.0)
        mean, variance = map(np.asarray, posterior.predict(X))
        of_target = {"identity": 1.0, "exp": mean}.get(output, mean * (1 - mean))
        of_mean = {"identity": variance, "exp": mean**2 * np.expm1(variance)}.get(output, 0.0)
        np.testing.assert_allclose(posterior.deviation(X) ** 2, of_target + of_mean, rtol=1e-10)


def test_noise_is_found_and_uncertainty_grows_far_from_the_data():
    rng = np.random.default_rng(1)
    X = rng.uniform(-1, 1, (1, 300))
    a = np.concatenate([X, np.ones((1, 300))])
    Y = 2 * X + 0.5 + 0.1 * rng.standard_normal((1, 300))
    whole = np.linalg.lstsq(a.T, Y.T)[0].T
    layer = dp.Layer(jnp.asarray(whole[:, :1]), jnp.asarray(whole[:, 1:]), dp.output("identity"))
    posterior = dp.laplace((layer,), X, Y)
    assert float(posterior.noise) == pytest.approx(0.01, rel=5 * np.sqrt(2 / 300))
    near, far = posterior.predict(np.array([[0.0, 10.0]]))[1][0]
    assert far > 20 * near


def test_a_posterior_passes_through_jit_as_an_argument():
    params, X, Y, _ = problem(9, [3, 6, 2], 10, "tanh", "softmax")
    posterior = dp.laplace(params, X, Y)
    for found, expected in zip(
        jax.jit(lambda p, X: p.predict(X))(posterior, X), posterior.predict(X), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_posterior_is_shown_without_its_arrays():
    params, X, Y, _ = problem(0, [3, 40, 1], 5, "tanh", "identity")
    posterior = dp.laplace(params, X, Y, prior_precision=2, noise=0.5)
    shown = "Posterior(layers='last', count=5.0, prior_precision=2.0, noise=0.5)"
    assert repr(posterior) == str(posterior) == shown
    with pytest.raises(ValueError, match=r"Y must have shape \(1, 5\).*; pass Y\[None\]"):
        dp.laplace(params, X, Y[0])


def test_bad_input():
    params, X, Y, _ = problem(0, [3, 4, 2], 5, "tanh", "softmax")
    with pytest.raises(ValueError, match='layers must be "all" or "last", got 2'):
        dp.laplace(params, X, Y, layers=2)
    with pytest.raises(ValueError, match="prior_precision must be finite and above 0, got -1"):
        dp.laplace(params, X, Y, prior_precision=-1)
    with pytest.raises(ValueError, match="noise must be None for the output softmax, got 1"):
        dp.laplace(params, X, Y, noise=1)
    with pytest.raises(ValueError, match="prior_precision must be one number, got an array"):
        dp.laplace(params, X, Y, prior_precision=np.ones(2))
    with pytest.raises(ValueError, match="X must hold finite numbers"):
        dp.laplace(params, np.where(X > 0, np.nan, X), Y)
    with pytest.raises(ValueError, match=r"Y must have shape \(2, 5\)"):
        dp.laplace(params, X, Y[:1])
    with pytest.raises(ValueError, match=r"X must have shape \(3, m\)"):
        dp.laplace(params, X, Y).predict(X[:2])
    with pytest.raises(ValueError, match=r"X_validation must have shape \(3, m\)"):
        dp.laplace(params, X, Y, validation=(X[:2], Y))
    with pytest.raises(ValueError, match=r"validation must be .* got 4 arrays"):
        dp.laplace(params, X, Y, validation=(X, Y, Y, Y))
    with pytest.raises(TypeError, match=r"validation must be .*, got Array"):
        dp.laplace(params, X, Y, validation=jnp.ones(2))
    with pytest.raises(TypeError, match=r"params must be a tuple of dp\.Layer"):
        dp.laplace(X, X, Y)
    params, X, Y, _ = problem(0, [3, 4, 2], 5, "tanh", "tanh+huber")
    with pytest.raises(
        ValueError, match="for the Gauss-Newton matrix the network must have output"
    ):
        dp.laplace(params, X, Y)
