"""DP-SGD: the sum of a step, its samples, its noise, and the epsilon that it spends."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import deepprop as dp
from deepprop.training.epoch import no_sums
from deepprop.training.private import _clipped_sum, private_epoch, sampling
from tests.problems import problem, thorough

pytestmark = pytest.mark.usefixtures("optax_types")
SOME = dp.Privacy(max_norm=0.5, delta=1e-5, noise_multiplier=1.0)


def epoch(params, X, Y, sigma, batch_size, privacy=SOME, epoch=1, optimizer=None):
    optimizer = optimizer or optax.sgd(1.0)
    return private_epoch(
        params, optimizer.init(params), jax.random.key(7), epoch, X.T, Y.T, sigma,
        optimizer=optimizer, privacy=privacy, batch_size=batch_size,
    )  # fmt: skip


def taken(epoch, m, batch_size):
    """Return which examples each step of an epoch takes, by repeating its draws."""
    return list(np.asarray(_taken(epoch, m, batch_size)))


@partial(jax.jit, static_argnums=(1, 2))
def _taken(epoch, m, batch_size):
    q, steps = sampling(m, batch_size)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), epoch), steps)
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.split(key)[0], q, (m,)))(keys)


@pytest.mark.parametrize("batch_size", [3, thorough(10), thorough(40)])
def test_without_noise_a_step_is_the_clipped_sum_over_the_expected_count(batch_size):
    """For any number of examples: more than one block, none, and all (batch_size = m)."""
    params, X, Y, _ = problem(1, [3, 4, 2], 40, dtype=np.float32)

    @jax.jit
    def stepped(params, mask):
        _, cache = dp.forward(params, X)
        mean, n = dp.clipped_backward(cache, Y, 0.5, weights=mask), jnp.sum(mask)
        return jax.tree.map(lambda p, g: p - g * n / batch_size, params, mean), dp.cost(
            cache, Y, mask
        )

    sizes = set()
    for number in range(1, 11):
        got, _, row, finite = epoch(params, X, Y, 0.0, batch_size, epoch=number)
        expected, J, count = params, 0.0, 0
        for mask in taken(number, 40, batch_size):
            expected, cost = stepped(expected, mask.astype(np.float32))
            J, count = J + mask.sum() * cost, count + mask.sum()
            sizes.add(int(mask.sum()))
        assert finite
        np.testing.assert_allclose(row["cost"], J / count, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # sums of float32 in chunks
    if batch_size == 3:
        assert min(sizes) == 0
        assert max(sizes) > 3 + 2 * 2  # more than one block


def test_the_noise_has_the_right_standard_deviation():
    """With X = 0 and Y = A the gradient is 0: a step is only noise, of sigma C / batch_size."""
    params = dp.init_params(jax.random.key(0), [200, 50, 1], output="identity")
    X = np.zeros((200, 64), np.float32)
    Y = np.asarray(dp.predict(params, X))
    for max_norm, norm in ((0.5, 0.5), ((0.3, 0.4), 0.5)):
        privacy = dp.Privacy(max_norm=max_norm, delta=1e-5, noise_multiplier=3.0)
        new, *_ = epoch(params, X, Y, 3.0, 64, privacy)
        noise = [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (new, params)), strict=True)]
        deviation = 3.0 * norm / 64
        together = np.concatenate(noise) / deviation
        assert stats.kstest(together, "norm").pvalue > 1e-3  # 10,101 draws, a fixed key
        W, b = noise[0][:50], noise[1]
        assert abs(np.corrcoef(W, b)[0, 1]) < 0.5  # the leaves have keys of their own


@pytest.mark.thorough
def test_noise_is_new_in_each_step_and_epoch():
    """Over n steps of only noise, the sum grows with sqrt(n) as for independent noise, not with n."""
    params = dp.init_params(jax.random.key(0), [200, 50, 1], output="identity")
    X = np.zeros((200, 64), np.float32)
    Y = np.asarray(dp.predict(params, X))

    def moved(number, steps):
        new, *_ = epoch(params, X, Y, 3.0, 64 // steps, epoch=number)
        pairs = zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True)
        return np.concatenate([np.ravel(a - b) for a, b in pairs]) * (64 // steps) / (3.0 * 0.5)

    for steps in (1, 4, 16):
        # 10,101 draws give the deviation to 1 / sqrt(2 * 10,101), 0.7 %
        assert moved(1, steps).std() == pytest.approx(np.sqrt(steps), rel=5 * 0.007)
    assert abs(np.corrcoef(moved(1, 1), moved(2, 1))[0, 1]) < 0.05


def test_samples_are_independent_with_the_right_probability():
    """Each example is taken with probability q, independently of the others and of other steps."""
    m, batch_size = 50, 10
    masks = np.array([mask for e in range(1, 401) for mask in taken(e, m, batch_size)])
    n = len(masks)  # 2,000 steps
    assert stats.chisquare(masks.sum(axis=0), np.full(m, masks.sum() / m)).pvalue > 1e-3
    assert abs(masks.mean() - 0.2) < 5 * np.sqrt(0.16 / masks.size)
    sizes = np.bincount(masks.sum(axis=1), minlength=m + 1)
    expected = stats.binom.pmf(np.arange(m + 1), m, 0.2) * n
    common = expected > 5
    observed = np.append(sizes[common], sizes[~common].sum())
    assert (
        stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue
        > 1e-3
    )
    again = (masks[1:] & masks[:-1]).mean()
    assert abs(again - 0.04) < 5 * np.sqrt(0.04 / masks.size)


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("gamma", [None, 0.01])
@pytest.mark.parametrize("max_norm", [0.5, (0.3, 0.4)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, jnp.float16])
def test_one_example_changes_the_sum_by_at_most_C(dtype, max_norm, gamma):
    """One more example changes the sum by at most C, also with narrow dtypes."""
    params, X, Y, _ = problem(3, [3, 6, 2], 3000, dtype=np.float32)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    privacy = dp.Privacy(max_norm=max_norm, delta=1e-5, noise_multiplier=1.0, gamma=gamma)
    X, Y = jnp.asarray(100 * X.T), jnp.asarray(Y.T)  # so that every gradient is above C
    add_up = jax.jit(partial(_clipped_sum, block=1000, privacy=privacy))
    everyone, but_one = jnp.ones(3000, bool), jnp.arange(3000) != 5
    sums = [add_up(params, X, Y, some, no_sums(params))[0] for some in (everyone, but_one)]
    moved = jax.tree.map(lambda a, b: np.sum(np.square(np.asarray(a, np.float64) - b)), *sums)
    length = np.sqrt(sum(jax.tree.leaves(moved)))
    # The sum of 3,000 has a norm of at most 1,500; float32 rounds numbers of that size by 6e-5.
    assert 0.25 < length <= 0.5 + 6 * 4 * 6e-5


@pytest.mark.parametrize(("hidden", "size"), [("tanh", 1e38), ("identity", 3e38)])
def test_an_example_out_of_range_is_clipped_or_left_out(hidden, size):
    """It must not end the run, which would reveal that it is in the data.

    Through tanh its gradient is finite, and is clipped. Through the identity its Z is infinite.
    """
    params, X, Y, _ = problem(3, [3, 6, 2], 32, hidden, "identity", dtype=np.float32)
    params = jax.tree.map(jnp.abs, params)
    whole, *_ = epoch(params, X, Y, 1.0, 32)
    Y[:, 7] = size
    X[:, 7] = size
    without, _, row, finite = epoch(params, X, Y, 1.0, 32)
    assert finite
    assert not np.isfinite(row["cost"])
    moved = jax.tree.map(lambda a, b: np.sum(np.square(a - b)), whole, without)
    assert 0 < np.sqrt(sum(jax.tree.leaves(moved))) <= 0.5 / 32 * (1 + 1e-4)


def test_fit_reports_epsilon_and_stays_within_it():
    params, X, Y, _ = problem(4, [3, 4, 2], 64, dtype=np.float32)
    privacy = dp.Privacy(max_norm=1.0, delta=1e-4, epsilon=2.0)
    fit = dp.fit(params, optax.sgd(0.1), X, Y, epochs=4, batch_size=16, key=jax.random.key(1),
                 privacy=privacy)  # fmt: skip
    spent = fit.history["epsilon"]
    assert (np.diff(spent) > 0).all()
    assert 1.99 < spent[-1] <= 2.0
    sigma = dp.noise_for(2.0, sampling_rate=0.25, steps=16, delta=1e-4)
    for epochs, epsilon in enumerate(spent, 1):
        known = dp.epsilon_spent(sigma, sampling_rate=0.25, steps=4 * epochs, delta=1e-4)
        assert epsilon == pytest.approx(known, rel=1e-6)


def exact_epsilon(sigma, steps, delta):
    """Invert delta(epsilon) of steps without sampling (Balle and Wang 2018, theorem 8)."""
    mu = np.sqrt(steps) / sigma

    def of(epsilon):
        return stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(
            -mu / 2 - epsilon / mu
        )

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (5.0, 10), (20.0, 1000), (2200.0, 1000)])
def test_epsilon_against_the_closed_form(sigma, steps):
    """The result is an upper bound, and at most 1 % higher because of the grid."""
    exact = exact_epsilon(sigma, steps, 1e-5)
    spent = dp.epsilon_spent(sigma, sampling_rate=1.0, steps=steps, delta=1e-5)
    assert exact <= spent <= 1.01 * exact


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (20.0, 1000)])
def test_noise_against_the_closed_form(sigma, steps):
    exact = exact_epsilon(sigma, steps, 1e-5)
    noise = dp.noise_for(exact, sampling_rate=1.0, steps=steps, delta=1e-5)
    assert sigma <= noise <= 1.01 * sigma


@pytest.mark.thorough
def test_a_private_run_resumes(tmp_path):
    params, X, Y, _ = problem(5, [3, 4, 2], 64, dtype=np.float32)
    optimizer = optax.adam(0.01)
    privacy = dp.Privacy(max_norm=1.0, delta=1e-4, noise_multiplier=2.0)
    common = {"batch_size": 16, "key": jax.random.key(1), "privacy": privacy}
    whole = dp.fit(params, optimizer, X, Y, epochs=4, **common)
    folder = tmp_path / "run"
    dp.fit(params, optimizer, X, Y, epochs=2, checkpoint=folder, **common)
    rest = dp.fit(params, optimizer, X, Y, epochs=4, checkpoint=folder, **common)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(rest.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.history["epsilon"], rest.history["epsilon"])
    less = common | {"privacy": dp.Privacy(max_norm=1.0, delta=1e-4, noise_multiplier=1.0)}
    with pytest.raises(ValueError, match="has another privacy"):
        dp.fit(params, optimizer, X, Y, epochs=5, checkpoint=folder, **less)


def test_the_optimizer_sees_only_the_noisy_gradient():
    """It gets neither the cost nor the cache, which are not private."""
    seen = {}

    def update(grads, state, params=None, **extra):
        seen.update(extra)
        return grads, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params, X, Y, _ = problem(6, [3, 2], 8, dtype=np.float32)
    epoch(params, X, Y, 1.0, 4, optimizer=spy)
    assert seen == {}


BAD = {
    "privacy must have one of epsilon and noise_multiplier": {"epsilon": 1.0},
    "noise_multiplier must be finite and above 0": {"noise_multiplier": 0.0},
    "max_norm must be finite and above 0": {"max_norm": -1.0},
    "delta must be below 1": {"delta": 1.0},
    "epsilon must be one number": {"noise_multiplier": None, "epsilon": [1.0]},
    "gamma must be finite and above 0": {"gamma": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_numbers(message):
    good = {"max_norm": 1.0, "delta": 1e-5, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=message):
        dp.Privacy(**{**good, **BAD[message]})


@pytest.mark.thorough
def test_numbers_of_other_types_are_accepted():
    params, X, Y, _ = problem(5, [3, 4, 2], 64, dtype=np.float32)
    for max_norm in ([1.0, 1.0], np.float32(1), jnp.ones(2)):
        privacy = dp.Privacy(max_norm=max_norm, delta=1e-4, noise_multiplier=jnp.float32(1))
        fit = dp.fit(
            params, optax.sgd(0.1), X, Y, epochs=np.int64(1), batch_size=np.int64(16),
            key=jax.random.key(1), privacy=privacy,
        )  # fmt: skip
        assert fit.history["epsilon"].shape == (1,)


def test_arguments_that_privacy_would_not_cover_are_refused():
    params, X, Y, _ = problem(7, [3, 4, 2], 8, dtype=np.float32)
    common = {"epochs": 1, "batch_size": 4, "key": jax.random.key(0), "privacy": SOME}
    for name, value in (
        ("weights", np.ones(8)),
        ("record", dp.diagnose),
        ("backward", lambda cache, Y, w: dp.manual_backward(cache, Y)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be left out with privacy"):
            dp.fit(params, optax.sgd(0.1), X, Y, **common, **{name: value})
    with pytest.raises(ValueError, match="fit passes them, but not with privacy"):
        dp.fit(params, dp.kfac(), X, Y, **common)
    with pytest.raises(TypeError, match=r"privacy must be a dp\.Privacy, got 1\.0"):
        dp.fit(params, optax.sgd(0.1), X, Y, **(common | {"privacy": 1.0}))
    three = dp.Privacy(max_norm=(1.0, 1.0, 1.0), delta=1e-5, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="max_norm must be one number, or L = 2 numbers"):
        dp.fit(params, optax.sgd(0.1), X, Y, **(common | {"privacy": three}))
    for name, value in (("sampling_rate", 0.0), ("steps", 0), ("delta", 0.0)):
        good = {"sampling_rate": 0.1, "steps": 10, "delta": 1e-5}
        with pytest.raises(ValueError, match=f"{name} must be"):
            dp.epsilon_spent(1.0, **(good | {name: value}))


def test_a_missing_accountant_is_named_before_any_training():
    code = """
import sys; sys.modules["dp_accounting"] = None
import deepprop as dp
dp.noise_for(1.0, sampling_rate=0.1, steps=1, delta=1e-5)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install dp-accounting" in run.stderr


@pytest.mark.thorough
def test_private_training_learns():
    """Two clouds far apart: 95 % are right at epsilon 3."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1000)
    X = (rng.standard_normal((2, 1000)) + 3 * labels).astype(np.float32)
    params = dp.init_params(jax.random.key(0), [2, 8, 1], hidden="tanh", output="sigmoid")
    privacy = dp.Privacy(max_norm=1.0, delta=1e-4, epsilon=3.0)
    fit = dp.fit(params, optax.sgd(0.5), X, labels[None, :], epochs=10, batch_size=100,
                 key=jax.random.key(1), privacy=privacy)  # fmt: skip
    right = jnp.mean((dp.predict(fit.params, X) > 0.5) == labels[None, :])
    assert right > 0.95
