"""Mixed precision in all that reads (cache, dZ), in training, and in compiled programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop._arithmetic import (
    _by_matrix,
    _cpu_has_bfloat16,
    _into_rows,
    _summed,
    product,
)
from deepprop.mixed_precision import PAYS, time_of_bfloat16
from tests.page.narrow import NARROW, U_SUM, U, backward, errors, flat, forward, mixed, plain
from tests.problems import exactly, problem
from tests.project.test_autodiff_free import capabilities, everything, primitives
from tests.readers import READERS, read

WITHOUT_PRODUCTS = {  # given the cache and dZ, these are exact except for float32
    "per_example_norms", "per_example_norms, per layer", "per_example_products", "per_example_gradients", "kfac_factors",
    "squared_gradients", "gradient_variance", "gradient_noise_scale",
}  # fmt: skip


def direction(params):
    return jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", NARROW)
def test_capabilities_agree_with_float32s_within_rounding(kind):
    """Three layers with eleven roundings each (W, A, b, W A, Z, g, and g', dA, dZ, W, dZ): 33 u.

    Squares count twice. Errors are relative to the largest number of an array, and random ones add
    up as roots: what cancels has as much room again.
    """
    args = (4, 6, 6, 3), 32, "tanh", "softmax", True
    params, X, Y, w = mixed(kind, *args)

    run = jax.jit(lambda params: read(dp.forward(params, X)[1], Y, w))
    found, expected, stacked = run(params), run(plain(params)), run(dp.stack(params, 2))
    for name in READERS:
        assert max(errors(found[name], expected[name])) <= 2 * 33 * U[kind], name
        assert max(errors(stacked[name], found[name])) <= 2 * 33 * U[kind], name
    # What needs no further product is exact but for float32, given the cache and dZ.
    cache = jax.jit(dp.forward)(params, X)[1]
    dZ = jax.jit(dp.error_signals)(cache, Y)
    without = lambda c, dZ, Y, w: {name: READERS[name](c, dZ, Y, w, None) for name in WITHOUT_PRODUCTS}  # noqa: E731  # fmt: skip
    found = jax.jit(without)(cache, dZ, Y, w)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda P: jnp.asarray(np.asarray(P), jnp.float64), tree)  # noqa: E731
        exact = dp.Cache(plain(wide(cache.params)), wide(cache.Z), wide(cache.A))
        expected = jax.jit(without)(exact, wide(dZ), wide(Y), wide(w))
        for name in WITHOUT_PRODUCTS:
            # Sums of at most 32 terms, over 3 layers, of squares, less others of their size.
            assert max(errors(found[name], expected[name])) <= 32 * 3 * 2 * U_SUM, name


@pytest.mark.parametrize("kind", NARROW)
def test_the_gauss_newton_product_is_linear_however_long_the_direction(kind):
    """A direction may be a gradient's size, which float16 has no numbers for."""
    params, X, _, w = mixed(kind, (4, 6, 6, 3), 32, "tanh", "identity", True)
    cache, V, G = forward(params, X)[1], direction(params), jax.jit(dp.gauss_newton_product)
    for factor in (2.0**-30, 2.0**30):
        scaled = jax.tree.map(lambda v, factor=factor: factor * v, V)
        for a, b in zip(flat(G(cache, V, w)), flat(G(cache, scaled, w)), strict=True):
            assert np.array_equal(factor * a, b)  # a power of 2, so the bits are the same


def test_the_check_by_differences_is_of_the_network_in_float64():
    params, X, Y, w = mixed("float16", (4, 6, 3), 8, "tanh", "softmax", True)
    report = dp.check_gradients(params, X, Y, w)
    assert report == dp.check_gradients(plain(params), X, Y, w)
    assert report.ok


# Training.


def data():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((4, 256)).astype(np.float32)
    Y = np.eye(3, dtype=np.float32)[:, np.argmax(rng.standard_normal((3, 4)) @ X, axis=0)]
    return X, Y


def trained(params, optimizer, **options):
    X, Y = data()
    options = {"epochs": 10, "batch_size": 32, "key": jax.random.key(5), **options}
    return dp.fit(params, optimizer, X, Y, **options)


@pytest.mark.thorough
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize(("kind", "stacked"), [("bfloat16", False), ("float16", True)])
def test_fit_comes_to_the_cost_that_float32_comes_to(kind, stacked):
    """Of the same parameters with another order of the examples: that is the noise."""
    make = lambda **more: dp.init_params(jax.random.key(0), [4, *[16] * 4, 3], hidden="tanh", stack=stacked, **more)  # noqa: E731  # fmt: skip
    options = {"optimizer": optax.adam(0.01), "weights": np.ones(256), "validation": data(), "record": dp.diagnose}  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 2)
    orders = [trained(make(), key=key, **options).history["cost"][-1] for key in keys]
    got, expected = trained(make(compute_dtype=kind), **options), trained(make(), **options)
    assert got.history["cost"][-1] < 0.2 * got.history["cost"][0]
    spread = max(orders) - min(orders)
    for name in ("cost", "val_cost"):
        assert abs(got.history[name][-1] - expected.history[name][-1]) < spread
    assert (got.params[0].W.dtype, got.params[0].compute_dtype) == (np.float32, np.dtype(kind))
    for name in ("A", "dZ", "dW"):  # the record of the first step: 5 layers, as above
        seen = got.history[name][0, 0]
        np.testing.assert_allclose(seen, expected.history[name][0, 0], rtol=5 * 11 * U[kind])


@pytest.mark.thorough
@pytest.mark.usefixtures("optax_types")
def test_other_ways_to_train():
    """Of float16, where dZ is of one type and A of another; K-FAC's steps are traced below."""
    kind = "float16"
    params = dp.init_params(jax.random.key(0), [4, 8, 3], hidden="tanh", compute_dtype=kind)
    private = {"epochs": 2, "privacy": dp.Privacy(1.0, 1e-3, noise_multiplier=1.0), "optimizer": optax.sgd(0.1)}  # fmt: skip
    got, expected = (trained(p, **private) for p in (params, plain(params)))
    # The private sums are float32's: X alone is rounded.
    assert max(errors(got.params, expected.params)) <= 33 * U[kind]
    X, Y = data()
    sweep = {"learning_rate": jnp.array([0.01, 0.03])}
    common = {"epochs": 3, "batch_size": 32, "key": jax.random.key(1)}
    together = dp.fit_ensemble(params, optax.adam, X, Y, sweep=sweep, **common)
    adam = optax.adam(0.03)
    alone = dp.fit(params, adam, X, Y, **common)
    # The products of one network are scaled for it alone; the order of sums is vmap's.
    np.testing.assert_allclose(together.history["cost"][:, 1], alone.history["cost"], rtol=U[kind])
    batches = dp.fit_batches(params, optax.sgd(0.1), [(X, Y), (X[:, :9], Y[:, :9])], epochs=2)
    assert batches.history["cost"][1] < batches.history["cost"][0]
    in_backward = dp.fit(params, dp.in_backward(adam), X, Y, **common)
    assert max(errors(in_backward.params, alone.params)) <= U[kind]


@pytest.mark.parametrize("stacked", [None, 1, 2])
@pytest.mark.parametrize("kind", NARROW)
def test_steps_of_kfac_and_in_backward_keep_strict_types(kind, stacked):
    params, X, Y, w = mixed(kind, (3, 4, 4, 4, 2), weighted=True)
    params = params if stacked is None else dp.stack(params, stacked)
    for optimizer in (dp.kfac(), dp.kfac(0.1), dp.in_backward(optax.sgd(0.1))):
        state = jax.eval_shape(optimizer.init, params)
        step = jax.eval_shape(dp.train_step(optimizer), params, state, X, Y, w)
        types = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]  # noqa: E731
        assert types(step[:2]) == types((params, state))


@pytest.mark.thorough
def test_parameters_in_float64(x64, optax_types):
    params, X, Y, w = problem(17, [3, 4, 2], 8, weighted=True)
    params = dp.with_compute_dtype(params, "float16")
    with jax.numpy_dtype_promotion("strict"):
        grads = backward(params, X, Y, w)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float64)}
        fit = dp.fit(params, optax.sgd(0.1), X, Y, epochs=2, batch_size=4, key=jax.random.key(0), weights=w)  # fmt: skip
        for optimizer in (dp.kfac(), dp.kfac(0.1)):
            state = jax.eval_shape(optimizer.init, params)
            step = jax.eval_shape(dp.train_step(optimizer), params, state, X, Y, w)
            assert step[0][0].W.dtype == np.float64
    assert fit.params[0].W.dtype == np.float64
    assert max(errors(grads, exactly(plain(params), X, Y, w))) < 33 * U["float16"]


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("kind", NARROW)
def test_a_checkpoint_and_a_file_know_the_type_of_products(kind, tmp_path):
    params = dp.init_params(jax.random.key(0), [4, 16, 3], compute_dtype=kind)
    dp.save(tmp_path / "model.npz", params)
    assert jax.tree.structure(dp.load(tmp_path / "model.npz")) == jax.tree.structure(params)
    trained(params, optax.sgd(0.1), epochs=1, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=f"another network.*{kind}"):
        trained(plain(params), optax.sgd(0.1), epochs=2, checkpoint=tmp_path / "run")


# What is compiled.


def passes(params, X, Y, weights):
    A, cache = dp.forward(params, X)
    return A, dp.cost(cache, Y, weights), dp.manual_backward(cache, Y, weights)


NAMES = {"bfloat16": "bf16", "float16": "f16"}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("kind", NARROW)
def test_products_are_of_narrow_factors_and_add_up_in_float32(kind, platform, stacked):
    """In the StableHLO for each platform. XLA's CPU takes some of them widened to float32."""
    params, X, Y, w = mixed(kind, (20, 16, 16, 16, 5), 8, "gelu", "softmax", True)
    params = dp.stack(params) if stacked else params
    rows = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")
    export = jax.export.export(jax.jit(passes), platforms=[platform], disabled_checks=[rows])
    exported = export(params, X, Y, w)
    dots = re.findall(r"stablehlo\.dot_general.*: \((.*)\) -> (.*)", exported.mlir_module())
    # Z[l] and dW[l] of each layer, dA of each but the last; a stack's are there once.
    assert len(dots) == (8 if stacked else 11)
    widened = platform == "cpu" and not (kind == "bfloat16" and _cpu_has_bfloat16())
    factor = "f32" if widened else NAMES[kind]
    for factors, result in dots:
        assert re.findall(r"x([a-z]+\d+)>", factors) == [factor, factor]
        assert re.findall(r"x([a-z]+\d+)>", result)[0] == "f32"


def operand_types(compiled):
    """Return the types of the factors of each product in a compiled program."""
    text = compiled.as_text()
    types = dict(re.findall(r"%?([\w.-]+) = (\w+)\[", text))
    types |= dict(re.findall(r"([\w.-]+): (\w+)\[", text))  # parameters of computations
    pairs = re.findall(r" dot\(%?([\w.-]+), %?([\w.-]+)\)", text)
    return [(types[one], types[other]) for one, other in pairs]


@pytest.mark.skipif(
    not _cpu_has_bfloat16(), reason="neither AMX-BF16 nor AVX512-BF16 here, or jax before 0.10.2"
)
@pytest.mark.parametrize("stacked", [False, True])
def test_a_cpu_with_bfloat16_multiplies_narrow_factors(stacked):
    """In the compiled program, which a layout that is folded into a product would widen.

    dW lies as W does. Its transpose would have to be turned by every optimizer.
    """
    params, X, Y, w = mixed("bfloat16", (20, 16, 16, 16, 5), 8, "gelu", "softmax", True)
    params = dp.stack(params) if stacked else params

    def clipped(params, X, Y, w):
        return dp.clipped_backward(dp.forward(params, X)[1], Y, 1.0, weights=w)

    for program in (passes, clipped):
        compiled = jax.jit(program).lower(params, X, Y, w).compile()
        types = operand_types(compiled)
        assert len(types) >= 8
        assert set(types) == {("bf16", "bf16")}
        results = set(re.findall(r"= f32\[([\d,]+)\]\S* dot\(", compiled.as_text()))
        assert {"16,20", "5,16"} <= results
        assert not {"20,16", "16,5"} & results


FORMS = [_into_rows, _by_matrix, _summed]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, None), (None, 2), (2, 1)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_bfloat16_have_a_kernel_in_every_layout(axes, turned, form):
    """XLA's CPU backend finds out that it has none only when the program runs."""
    rng = np.random.default_rng(0)
    for n, k, m in ((1, 5, 33), (16, 32, 1), (40, 1, 2), (16, 32, 33)):
        P, Q = rng.standard_normal((n, k)), rng.standard_normal((k, m))
        P, Q = (np.asarray(M, np.float32).astype(jnp.bfloat16) for M in (P, Q))
        several = [
            M if axis is None else np.stack([M, -M, M], axis)
            for M, axis in zip(
                (P.T if turned[0] else P, Q.T if turned[1] else Q), axes, strict=True
            )
        ]

        def of_one(P, Q):
            P, Q = (M.mT if t else M for M, t in zip((P, Q), turned, strict=True))
            return product(P, Q, jnp.float32, jnp.bfloat16, narrow=form)

        found = np.asarray(jax.jit(jax.vmap(of_one, axes))(*several))[0]
        exact = P.astype(np.float64) @ Q.astype(np.float64)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(2, 8, 8), (1, 5, 33), (33, 1, 2)])
def test_products_of_bfloat16_have_a_kernel_in_loops_and_branches(sizes, form):
    """XLA compiles these another way than a program's outermost products."""
    n, k, m = sizes
    P, Q = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((n, k), (k, m))))
    once = jax.jit(lambda P, Q: product(P, Q, jnp.float32, jnp.bfloat16, narrow=form))

    def branch(P, Q):
        return jax.lax.cond(P[0, 0] < 100, once, lambda P, Q: jnp.zeros((n, m)), P, Q)

    def loop(P, Q):
        add = lambda i, total: total + branch(P + 0 * total[0, 0], Q)  # noqa: E731
        return jax.lax.fori_loop(0, 3, add, jnp.zeros((n, m)))

    expected = once(P, Q)
    narrow = [np.asarray(M.astype(jnp.bfloat16), np.float64) for M in (P, Q)]
    np.testing.assert_allclose(expected, narrow[0] @ narrow[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(branch)(P, Q), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(loop)(P, Q), 3 * expected, rtol=1e-5, atol=1e-5)


def test_auto_takes_bfloat16_where_a_measured_product_is_faster(monkeypatch, caplog):
    measured = []

    def share(n, n_below, m):
        measured.append((n, n_below, m))
        return 0.5 if n > 50 else 0.9

    monkeypatch.setattr("deepprop.mixed_precision.time_of_bfloat16", share)
    with caplog.at_level("INFO", "deepprop"):
        wide, narrow = (
            dp.init_params(jax.random.key(0), [20, n, 10], compute_dtype="auto") for n in (60, 40)
        )
    assert {layer.compute_dtype for layer in wide} == {jnp.dtype("bfloat16")}
    assert {layer.compute_dtype for layer in narrow} == {None}
    dp.with_compute_dtype(narrow, "auto", batch_size=32)
    assert measured == [(60, 20, 256), (40, 20, 256), (40, 20, 32)]
    assert "compute_dtype bfloat16: with bfloat16, a gradient takes 0.50" in caplog.text
    with pytest.raises(ValueError, match="batch_size must be above 0, got 0"):
        dp.with_compute_dtype(narrow, "auto", batch_size=0)
    halves = dp.init_params(jax.random.key(0), [3, 2], dtype=jnp.float16, compute_dtype="auto")
    assert halves[0].compute_dtype is None


def test_the_time_of_bfloat16_is_measured_once_also_under_jit():
    time_of_bfloat16.cache_clear()
    make = jax.jit(lambda key: dp.init_params(key, [8, 9, 3], compute_dtype="auto"))
    params = make(jax.random.key(0))
    share = time_of_bfloat16(9, 8, 256)
    assert 0 < share < np.inf
    assert time_of_bfloat16.cache_info().misses == 1
    assert (params[0].compute_dtype is not None) == (share <= PAYS)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("kind", NARROW)
def test_no_jaxpr_holds_a_custom_rule(kind):
    params, X, Y, w = mixed(kind, (4, 5, 5, 5, 3), 6, "gelu", "softmax", True)
    for network in (dp.stack(params, 2),):
        found = set(primitives(jax.make_jaxpr(everything)(network, X, Y, w).jaxpr))
        found |= set(
            primitives(jax.make_jaxpr(capabilities)(network, X, Y, w, jax.random.key(0)).jaxpr)
        )
        V = direction(network)
        found |= set(primitives(jax.make_jaxpr(lambda p, V=V: dp.gauss_newton_product(dp.forward(p, X)[1], V))(network).jaxpr))  # fmt: skip
        assert "dot_general" in found
        assert not {name for name in found if "custom" in name or "jvp" in name or "vjp" in name}


def test_autodiff_of_bfloat16_products_is_what_is_by_hand():
    """jax.grad goes through the same roundings of W and A; its dZ it rounds at other places."""
    params, X, Y, w = mixed("bfloat16", (4, 6, 3), 8, "tanh", "identity", True)
    found, expected = backward(params, X, Y, w), exactly(params, X, Y, w)
    assert max(errors(found, expected)) <= 2 * 11 * U["bfloat16"]
