"""Stacks and residual layers: every function means the same by them as by layers one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.walk import by_entry
from tests.problems import HIDDEN, autodiff, by_hand, problem, public_cost, worst_error

KEEPS = [1, 2, 3, "sqrt", 100]
SIZES = [4, *[6] * 8, 3]  # 7 equal layers: a prime, which no segment divides


def deep(hidden="tanh", output="softmax", residual=False, m=7, dtype=np.float64, sizes=SIZES):
    """A network of equal layers one by one, with data and weights."""
    params, X, Y, w = problem(3, sizes, m, hidden, output, weighted=True, dtype=dtype)
    adds = [residual and p.W.shape[0] == p.W.shape[1] and p is not params[-1] for p in params]
    params = tuple(replace(p, residual=add) for p, add in zip(params, adds, strict=True))
    return params, X, Y, w


def numbers(tree, params):
    """The leaves, those of stacks one by one, as they come without stacks."""
    if isinstance(tree, tuple) and tree and isinstance(tree[0], dp.Layer):
        return jax.tree.leaves(dp.unstack(tree))
    return jax.tree.leaves(tree)


def one_by_one(entries, params):
    """Entries of a cache or dZ, a stack's taken apart."""
    return [
        one
        for layer, entry in zip(params, entries, strict=True)
        for one in (entry if layer.W.ndim == 3 else [entry])
    ]


# Residual layers.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("output", ["softmax", "tanh+huber(0.4)"])
def test_residual_gradients_are_autodiffs(hidden, output):
    params, X, Y, w = deep(hidden, output, residual=True)
    assert any(p.residual for p in params)
    found, exact = (jax.jit(f)(params, X, Y, w) for f in (by_hand, autodiff))
    assert worst_error(found, exact) < 1e-10


@pytest.mark.usefixtures("x64")
def test_a_residual_layer_adds_its_input():
    """A[l] = A[l-1] + g(Z[l]), and dA[l-1] = W[l]^T dZ[l] + dA[l]: layer by layer in NumPy."""
    params, X, Y, _ = deep("tanh", "identity", residual=True)
    A_L, cache = dp.forward(params, X)
    dZ = dict(enumerate(map(np.asarray, dp.error_signals(cache, Y)), 1))
    dA = np.asarray(A_L) - Y
    np.testing.assert_allclose(dZ[9], dA, rtol=1e-13)
    dA = params[8].W.T @ dZ[9]
    for l in range(8, 0, -1):
        Z, A, A_below = (np.asarray(P) for P in (cache.Z[l - 1], cache.A[l], cache.A[l - 1]))
        added = A_below if l > 1 else 0
        np.testing.assert_allclose(A, np.tanh(Z) + added, rtol=1e-13)
        rounding = 8 * 6 * 2.2e-16 * abs(dA).max()  # of at most 8 layers' sums of 6 and a skip
        np.testing.assert_allclose(dZ[l], dA * (1 - np.tanh(Z) ** 2), rtol=0, atol=rounding)
        dA = params[l - 1].W.T @ dZ[l] + (dA if l > 1 else 0)


@pytest.mark.usefixtures("x64")
def test_residual_gradients_against_differences():
    params, X, Y, w = deep("softplus", "sigmoid", residual=True)
    report = dp.check_gradients(dp.stack(params, 3), X, Y, w)
    assert report.checked == report.parameters == sum(p.W.size + p.b.size for p in params)


def test_a_planted_error_is_found_where_it_is_in_a_stack():
    params, X, Y, _ = deep("tanh", "softmax", dtype=np.float32)

    def wrong(cache, Y, weights=None):
        first, stack, last = dp.manual_backward(cache, Y, weights)
        return first, replace(stack, W=stack.W.at[4, 2, 1].mul(1.1)), last

    with pytest.raises(dp.GradientError) as error:
        dp.check_gradients(dp.stack(params), X, Y, backward=wrong)
    assert error.value.report.where == "W[6][2, 1]"


# Stacks against layers one by one.


@jax.jit
def everything(params, X, Y, w):
    A, cache = dp.forward(params, X)
    dZ = dp.error_signals(cache, Y)
    grads = dp.manual_backward(cache, Y, w), dp.gradients(cache, dZ, w)
    return A, dp.predict(params, X), dp.cost(cache, Y, w), cache, dZ, grads


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("hidden", "keep", "residual"),
    [*(("tanh", keep, added) for keep in KEEPS for added in (False, True)),
     ("relu", 1, True), ("relu", 3, False), ("gelu", 1, False), ("gelu", 3, True)],
)  # fmt: skip
def test_passes_are_those_of_the_layers_one_by_one(hidden, keep, residual):
    params, X, Y, w = deep(hidden, residual=residual)
    stacked = dp.stack(params, keep)
    assert [p.W.shape for p in stacked] == [(6, 4), (7, 6, 6), (3, 6)]
    *found, cache, dZ, grads = everything(stacked, X, Y, w)
    *expected, plain, dZ_plain, grads_plain = everything(params, X, Y, w)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)  # noqa: E731
    for f, e in zip(found, expected, strict=True):
        close(f, e)
    for d, d_plain in zip(one_by_one(dZ, stacked), dZ_plain, strict=True):
        close(d, d_plain)
    exact = jax.jit(autodiff)(params, X, Y, w)
    for one in (*map(dp.unstack, grads), *grads_plain):
        assert worst_error(one, exact) < 1e-10
    if keep == 1:
        for one, p in ((cache.Z, plain.Z), (cache.A[1:], plain.A[1:])):
            for a, b in zip(one_by_one(one, stacked), p, strict=True):
                close(a, b)
        assert worst_error(grads[0], jax.jit(autodiff)(stacked, X, Y, w)) < 1e-10


@pytest.mark.parametrize(("keep", "kept"), [(1, 7), (2, 4), (3, 3), ("sqrt", 4), (7, 1), (100, 1)])
def test_what_is_kept(keep, kept):
    params, X, _, _ = deep(dtype=np.float32)
    _, plain = dp.forward(params, X)
    stacked = dp.stack(params, keep)
    _, cache = dp.forward(stacked, X)
    assert cache.A[2].shape == (kept, 6, 7)
    assert (cache.Z[1] is None) == (keep != 1)
    k = stacked[1].keep
    for s in range(kept):  # layer 1 is below the stack
        A = plain.A[1 + min((s + 1) * k, 7)]
        np.testing.assert_allclose(cache.A[2][s], A, rtol=1e-5, atol=1e-6)


def test_stack_and_unstack():
    params, *_ = deep(dtype=np.float32)
    stacked = dp.stack(params, 2)
    again = dp.unstack(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(params)))
    twice = dp.stack(stacked, "sqrt")
    assert twice[1].keep == 2
    joined = dp.stack((*again[:3], *stacked[1:]))[1]  # layers 2 and 3, then the stack of 7
    assert joined.W.shape == (9, 6, 6)
    assert joined.keep == 2


def test_only_equal_layers_are_joined():
    names = ["relu", "relu", "tanh", "tanh", "relu", "relu", "relu"]
    sizes = [5, 5, 5, 5, 5, 4, 4, 4, 4]
    params = dp.init_params(jax.random.key(0), sizes, hidden=names)
    assert [p.W.shape for p in dp.stack(params)] == [
        (2, 5, 5),
        (2, 5, 5),
        (4, 5),
        (2, 4, 4),
        (4, 4),
    ]
    mixed = (replace(params[0], residual=True), *params[1:])
    assert dp.stack(mixed)[0].W.shape == (5, 5)


@pytest.mark.parametrize("residual", [False, True])
def test_init_params_makes_the_same_stacked_or_not(residual):
    make = lambda stack: dp.init_params(  # noqa: E731
        jax.random.key(0), [6, *[6] * 5, 3], hidden="tanh", residual=residual, stack=stack
    )
    one, other = make(False), dp.unstack(make(True))
    assert [p.residual for p in one] == [residual] * 5 + [False]
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_a_deep_residual_network_begins_with_signals_of_one_size():
    for hidden in ("relu", "tanh", "gelu"):
        params = dp.init_params(
            jax.random.key(0), [20, *[32] * 1000, 3], hidden=hidden, residual=True, stack=True
        )
        X = jax.random.normal(jax.random.key(1), (20, 50))
        _, cache = jax.jit(dp.forward)(params, X)
        rms = jnp.sqrt(jnp.mean(cache.A[2] ** 2, axis=(1, 2)))
        assert 0.3 < float(rms[-1] / rms[0]) < 10, hidden


# Everything that reads (cache, dZ).


def draws(key, cache):
    return dp.error_signals(cache, dp.sampled_targets(key, cache))


CAPABILITIES = {
    "per_example_norms": lambda c, dZ, Y, w: dp.per_example_norms(c, dZ),
    "norms per layer": lambda c, dZ, Y, w: dp.per_example_norms(c, dZ, per_layer=True),
    "per_example_products": lambda c, dZ, Y, w: dp.per_example_products(c, dZ, c, dZ),
    "clipped": lambda c, dZ, Y, w: dp.clipped_backward(c, Y, 0.5, weights=w),
    "clipped layer by layer": lambda c, dZ, Y, w: dp.clipped_backward(
        c, Y, [0.1 * l for l in range(1, 10)]
    ),
    "normalised": lambda c, dZ, Y, w: dp.clipped_backward(c, Y, 0.5, gamma=0.1),
    "squared_gradients": lambda c, dZ, Y, w: dp.squared_gradients(c, dZ, w),
    "gradient_variance": lambda c, dZ, Y, w: dp.gradient_variance(c, dZ, w),
    "gradient_noise_scale": lambda c, dZ, Y, w: dp.gradient_noise_scale(c, dZ),
    "gauss_newton_diagonal": lambda c, dZ, Y, w: dp.gauss_newton_diagonal(c, w),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("keep", "residual"), [(1, False), (3, True)])
@pytest.mark.parametrize("name", CAPABILITIES)
def test_what_reads_dZ_reads_stacks(name, keep, residual):
    params, X, Y, w = deep("tanh", "softmax", residual=residual)

    def run(params):
        _, cache = dp.forward(params, X)
        return CAPABILITIES[name](cache, dp.error_signals(cache, Y), Y, w)

    found, expected = jax.jit(run)(dp.stack(params, keep)), jax.jit(run)(params)
    pairs = list(zip(numbers(found, params), numbers(expected, params), strict=True))
    scale = max(float(abs(e).max()) for _, e in pairs)
    for f, e in pairs:
        assert f.shape == e.shape
        np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-12 * scale)


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residual", [False, True])
def test_the_gauss_newton_product_of_a_stack(residual):
    """Against jax.jvp and jax.vjp of Z[L], and so of residual layers too."""
    params, X, *_ = deep("tanh", "identity", residual=residual)
    stacked = dp.stack(params, 2)
    V = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), stacked)
    _, RZ = jax.jvp(lambda p: dp.predict(p, X), (dp.stack(stacked),), (dp.stack(V),))
    plain = dp.stack(stacked)
    _, pull = jax.vjp(lambda p: dp.predict(p, X), plain)
    (expected,) = pull(RZ / X.shape[1])
    _, cache = dp.forward(stacked, X)
    G_V = dp.gauss_newton_product(cache, V)
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


def test_bad_input_is_named():
    params, X, Y, _ = deep(dtype=np.float32)
    stacked = dp.stack(params)
    first, middle, last = stacked
    _, cache = dp.forward(stacked, X)
    dZ = dp.error_signals(cache, Y)
    for f, message in (
        (lambda: dp.stack(params, 0), 'keep must be a whole number above 0, or "sqrt", got 0'),
        (lambda: dp.stack(params, "all"), "keep must be .* got 'all'"),
        (lambda: dp.stack(params, True), "keep must be"),
        (lambda: dp.forward((first, replace(middle, W=middle.W[:, :5]), last), X), r"W\[2\] must have shape \(n_l, 6\), or \(K, n, n\)"),
        (lambda: dp.forward((first, replace(middle, b=middle.b[0]), last), X), r"b\[2\] must have shape \(7, 6, 1\)"),
        (lambda: dp.forward((replace(first, residual=True), middle, last), X), "layer 1 must be hidden"),
        (lambda: dp.forward((first, replace(middle, keep=0), last), X), "layer 2 must have a keep of at least 1"),
        (lambda: dp.gradients(cache, (dZ[0], dZ[1][:3], dZ[2])), r"dZ\[2\] must have shape \(7, 6, 7\)"),
        (lambda: dp.gradients(cache, dZ[:2]), "dZ must hold one array per layer, 3 for this cache"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            f()
    with pytest.raises(TypeError, match="one compute_dtype, layer 1 has None, layer 2"):
        dp.forward((first, replace(middle, compute_dtype=np.dtype("float16")), last), X)


def test_rows_of_all_layers_go_to_their_entries():
    params, *_ = deep(dtype=np.float32)
    entries = by_entry(dp.stack(params), jnp.arange(9.0))
    assert [np.asarray(e).tolist() for e in entries] == [0.0, [1, 2, 3, 4, 5, 6, 7], 8.0]


def test_the_program_is_as_long_for_a_thousand_layers_as_for_ten():
    def operations(depth, keep):
        params, X, Y, _ = deep("relu", dtype=np.float32, sizes=[4, *[6] * depth, 3])
        args = jax.eval_shape(lambda: (dp.stack(params, keep), X, Y))
        return len(jax.jit(by_hand).lower(*args).as_text().splitlines())

    assert operations(11, 1) == operations(41, 1) == operations(1001, 1)
    assert operations(17, "sqrt") == operations(1025, 32)


def test_a_stack_is_differentiated_by_autodiff_too():
    """Of `forward` nothing but the derivative is by hand, and a user may hold one against the other."""
    params, X, Y, w = deep(dtype=np.float32)
    assert np.isfinite(jax.grad(public_cost)(dp.stack(params), X, Y, w)[1].W).all()
