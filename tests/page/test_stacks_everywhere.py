"""Stacks in all that reads (cache, dZ), in training and in files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import problem, thorough, worst_error
from tests.readers import READERS, read

SIZES = [4, *[6] * 8, 3]  # 7 equal layers: a prime, which no segment divides


def deep(hidden="tanh", output="softmax", residual=False, m=7, dtype=np.float64, sizes=SIZES):
    """A network of equal layers one by one, with data and weights."""
    params, X, Y, w = problem(3, sizes, m, hidden, output, weighted=True, dtype=dtype)
    adds = [residual and p.W.shape[0] == p.W.shape[1] and p is not params[-1] for p in params]
    params = tuple(replace(p, residual=add) for p, add in zip(params, adds, strict=True))
    return params, X, Y, w


def numbers(tree):
    """The leaves, those of stacks one by one, as they come without stacks."""
    if isinstance(tree, tuple) and tree and isinstance(tree[0], dp.Layer):
        return jax.tree.leaves(dp.unstack(tree))
    return jax.tree.leaves(tree)


# What has a stack's axis in another place; tests below cover it.
LAID_OUT_OTHERWISE = {"per_example_gradients", "kfac_factors", "gauss_newton_product"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("keep", "residual"), [thorough(1, False), thorough(3, True)])
def test_what_reads_dZ_reads_stacks(keep, residual):
    """Against the layers one by one, which other tests hold against autodiff."""
    params, X, Y, w = deep("tanh", "softmax", residual=residual)
    names = [name for name in READERS if name not in LAID_OUT_OTHERWISE]
    run = jax.jit(lambda params: read(dp.forward(params, X)[1], Y, w, names))
    found, expected = run(dp.stack(params, keep)), run(params)
    for name in names:
        pairs = list(zip(numbers(found[name]), numbers(expected[name]), strict=True))
        scale = max(float(abs(e).max()) for _, e in pairs)
        for f, e in pairs:
            assert f.shape == e.shape, name
            np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-12 * scale, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("keep", [1, 3])
def test_per_example_gradients_of_a_stack(keep):
    params, X, Y, _ = deep("tanh", residual=True)
    stacked = dp.stack(params, keep)
    of = jax.jit(
        lambda p: dp.per_example_gradients(c := dp.forward(p, X)[1], dp.error_signals(c, Y))
    )
    each, expected = of(stacked), of(params)
    assert each[1].W.shape == (7, 7, 6, 6)  # 7 examples, 7 layers
    for i in range(7):
        one = dp.unstack(jax.tree.map(lambda leaf, i=i: leaf[i], each))
        assert worst_error(one, jax.tree.map(lambda leaf, i=i: leaf[i], expected)) < 1e-12


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residual", [False, True])
def test_the_gauss_newton_product_of_a_stack(residual):
    """Against jax.jvp and jax.vjp of Z[L], and so of residual layers too."""
    params, X, *_ = deep("tanh", "identity", residual=residual)
    stacked = dp.stack(params, 2)
    V = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), stacked)
    plain, predict = dp.stack(stacked), lambda p: dp.predict(p, X)

    @jax.jit
    def both(stacked, plain, V):
        _, RZ = jax.jvp(predict, (plain,), (dp.stack(V),))
        (expected,) = jax.vjp(predict, plain)[1](RZ / X.shape[1])
        return dp.gauss_newton_product(dp.forward(stacked, X)[1], V), expected

    G_V, expected = both(stacked, plain, V)
    assert worst_error(jax.tree.leaves(G_V), jax.tree.leaves(expected)) < 1e-10


@pytest.mark.usefixtures("x64")
def test_kfac_of_a_stack():
    params, X, Y, w = deep("tanh", "softmax", residual=True)
    optimizer = dp.scale_by_kfac(damping=0.1)

    def run(params):
        _, cache = dp.forward(params, X)
        dZ = dp.error_signals(cache, Y)
        factors = dp.kfac_factors(cache, dZ, w)
        natural, _ = optimizer.update(
            dp.gradients(cache, dZ, w), optimizer.init(params), factors=factors
        )
        return natural, factors

    run = jax.jit(run)
    (found, factors), (expected, factors_plain) = run(dp.stack(params, 2)), run(params)
    assert factors[1].A.shape == (7, 7, 7)
    assert factors[1].dZ.shape == (7, 6, 6)
    np.testing.assert_allclose(factors[1].A[3], factors_plain[4].A, rtol=1e-11)
    assert worst_error(dp.unstack(found), expected) < 1e-9


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("keep", [1, 3])
def test_a_diagnosis_has_every_layer_of_a_stack(keep):
    params, X, Y, _ = deep("tanh", "softmax", residual=True, m=20, dtype=np.float32)

    def run(params):
        _, cache = dp.forward(params, X)
        return dp.diagnose(cache, dp.error_signals(cache, Y), params)

    run = jax.jit(run)
    found, expected = run(dp.stack(params, keep)), run(params)
    assert found.units == expected.units == (4, *[6] * 8, 3)
    assert found.activations == expected.activations
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4)


# Training.


def trained(params, optimizer, **options):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 50)).astype(params[0].W.dtype)
    Y = np.eye(3, dtype=X.dtype)[:, rng.integers(3, size=50)]
    options = {"epochs": 3, "batch_size": 16, "key": jax.random.key(5), **options}
    return dp.fit(params, optimizer, X, Y, **options)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
@pytest.mark.parametrize("keep", [1, 3])
def test_fit_goes_the_same_way(keep):
    params, *_ = deep("tanh", residual=True)
    options = {"record": dp.Record(dp.diagnose, 2), "weights": np.linspace(0.5, 1, 50)}
    one = trained(params, optax.adam(1e-2), **options)
    other = trained(dp.stack(params, keep), optax.adam(1e-2), **options)
    np.testing.assert_allclose(one.history["cost"], other.history["cost"], rtol=1e-9)
    np.testing.assert_allclose(one.history["dZ"], other.history["dZ"], rtol=1e-8)
    assert worst_error(dp.unstack(other.params), one.params) < 1e-7


@pytest.mark.thorough
@pytest.mark.usefixtures("optax_types")
def test_other_ways_to_train_take_stacks(tmp_path):
    params, X, Y, _ = deep("tanh", residual=True, dtype=np.float32)
    stacked = dp.stack(params, 2)
    private = trained(stacked, optax.sgd(0.1), privacy=dp.Privacy(1.0, 1e-3, noise_multiplier=1.0))
    assert np.isfinite(jax.tree.leaves(private.params)[0]).all()
    by_kfac = trained(stacked, dp.kfac(), epochs=10)
    assert by_kfac.history["cost"][-1] < by_kfac.history["cost"][0]
    batches = dp.fit_batches(stacked, optax.sgd(0.1), [(X, Y)] * 2, epochs=2)
    plain = dp.fit_batches(params, optax.sgd(0.1), [(X, Y)] * 2, epochs=2)
    np.testing.assert_allclose(batches.history["cost"], plain.history["cost"], rtol=1e-5)
    sweep = {"learning_rate": jnp.array([0.01, 0.1])}
    run = lambda p: dp.fit_ensemble(  # noqa: E731
        p, optax.sgd, X, Y, epochs=2, batch_size=4, key=jax.random.key(0), sweep=sweep
    )
    both = run(stacked)
    np.testing.assert_allclose(both.history["cost"], run(params).history["cost"], rtol=1e-4)
    assert both.params[1].W.shape == (2, 7, 6, 6)
    again = run(both.params)  # networks with an axis of their own before the stack's
    assert (again.history["cost"][-1] < both.history["cost"][0]).all()


@pytest.mark.thorough
def test_checkpoints_tell_residual_networks_apart(tmp_path):
    params, *_ = deep("tanh", dtype=np.float32)
    stacked = dp.stack(params)
    first = trained(stacked, optax.sgd(0.1), checkpoint=tmp_path, epochs=1)
    further = trained(stacked, optax.sgd(0.1), checkpoint=tmp_path)
    straight = trained(stacked, optax.sgd(0.1))
    assert first.history["cost"][0] == further.history["cost"][0]
    assert all(map(np.array_equal, *map(jax.tree.leaves, (further.params, straight.params))))
    residual = tuple(replace(p, residual=p.W.ndim == 3) for p in stacked)
    with pytest.raises(ValueError, match=r"another network.*6 tanh 7 times - .*residual"):
        trained(residual, optax.sgd(0.1), checkpoint=tmp_path)


# Files, bad input, and what is compiled.


@pytest.mark.parametrize("keep", [1, 3])
def test_a_saved_stack_is_what_it_was(tmp_path, keep):
    params, X, *_ = deep("tanh", residual=True, dtype=np.float32)
    stacked = dp.with_compute_dtype(dp.stack(params, keep), "bfloat16")
    dp.save(tmp_path / "model.npz", stacked, classes=np.arange(3))
    again = dp.load(tmp_path / "model.npz")
    assert jax.tree.structure(again) == jax.tree.structure(stacked)
    assert np.array_equal(dp.predict(again, X), dp.predict(stacked, X))
    assert list(dp.load_extra(tmp_path / "model.npz")) == ["classes"]
