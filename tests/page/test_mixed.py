"""Parameters and sums in float32, factors of products in bfloat16 or float16: `with_compute_dtype`."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop import _arithmetic as precision
from tests.problems import autodiff, by_hand, problem
from tests.project.test_autodiff_free import capabilities, everything, primitives

NARROW = ["bfloat16", "float16"]
U_SUM = 2.0**-24  # the unit roundoff of float32
# Of both types: the unit roundoff, and half the distance between the numbers next to 0.
U = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"bfloat16": 0.0, "float16": 2.0**-25}


def mixed(kind, sizes=(3, 4, 2), m=5, hidden="tanh", output="identity", weighted=False, seed=17):
    """A network with products of that type, and the data."""
    params, X, Y, w = problem(seed, list(sizes), m, hidden, output, weighted, np.float32)
    return dp.with_compute_dtype(params, kind), X, Y, w


def plain(params):
    return dp.with_compute_dtype(params, None)


backward = jax.jit(by_hand)  # each of them one program
forward = jax.jit(dp.forward)
error_signals = jax.jit(dp.error_signals)
gradients = jax.jit(dp.gradients)
exactly = jax.jit(autodiff)


def output_layer(W, b, compute_dtype="bfloat16", output="identity"):
    W, b = (jnp.asarray(P, jnp.float32) for P in (W, b))
    return dp.Layer(W, b, dp.output(output), compute_dtype=np.dtype(compute_dtype))


def hidden_layer(W, b, compute_dtype="bfloat16", activation="identity"):
    W, b = (jnp.asarray(P, jnp.float32) for P in (W, b))
    return dp.Layer(W, b, dp.activation(activation), compute_dtype=np.dtype(compute_dtype))


# Against float64, within a running error analysis.


class ErrorBounds:
    """First-order running error analysis of the two passes (Higham 2002, section 3.3).

    u is the rounding of a factor, and of what is kept; s(n) = (n + 2) u_sum that of a sum of n
    terms and of what follows it in float32; u_dZ that of dA and dZ as they are kept. Numbers of
    float16 round by at least half of the distance of those next to 0; where they were scaled, by
    that over 2^13 of the largest. |A| <= 1 here, and each g' is (1 - A)(1 + A) or A (1 - A): three
    roundings, and A's own times 2 at the most. To evaluate g costs a few, 4 u here.
    """

    def __init__(self, kind, params, X, Y):
        self.u, self.tiny = U[kind], TINY[kind]
        self.u_dZ = self.u if kind == "bfloat16" else U_SUM
        self.params, self.Y = params, abs(Y)
        _, self.cache = forward(params, X)
        self.A = list(map(np.asarray, self.cache.A))
        self.dZ = list(map(np.asarray, error_signals(self.cache, Y)))

    def s(self, n):
        return (n + 2) * U_SUM

    def entering(self, P):
        """Of W or dZ, from float32 into a product: they are scaled where it is float16."""
        return self.u * abs(P) + self.tiny / 2**13 * abs(P).max()

    def kept(self, P):
        """Of what is kept as it is."""
        return self.u * abs(P) + self.tiny

    def times(self, P, e_P, Q, e_Q):
        """Of P Q, from those of its factors."""
        P, Q = abs(P), abs(Q)
        return e_P @ Q + P @ e_Q + self.s(P.shape[1]) * (P @ Q)

    def forward(self):
        e_A = [self.kept(self.A[0])]
        for l, layer in enumerate(self.params):
            W, b, Z = (np.asarray(P) for P in (layer.W, layer.b, self.cache.Z[l]))
            e_Z = self.times(W, self.entering(W), self.A[l], e_A[l])
            if layer is self.params[-1]:
                e_Z = e_Z + 2 * U_SUM * abs(Z)
                e_A.append(e_Z + 4 * U_SUM * abs(self.A[l + 1]))
            else:
                e_Z = e_Z + self.kept(W @ self.A[l]) + self.kept(b) + self.kept(Z)
                e_A.append(e_Z + 4 * self.kept(self.A[l + 1]))
        return e_A

    def gradients(self):
        e_A, bounds, m = self.forward(), [], self.Y.shape[1]
        e_dZ = e_A[-1] + 2 * U_SUM * (abs(self.A[-1]) + self.Y) + self.u_dZ * abs(self.dZ[-1])
        for l in reversed(range(len(self.params))):
            dZ, A, W = self.dZ[l], self.A[l], np.asarray(self.params[l].W)
            e_in = e_dZ + self.entering(dZ)
            e_W = self.times(dZ, e_in, A.T, e_A[l].T) / m + U_SUM * (abs(dZ) @ abs(A).T) / m
            e_b = np.mean(e_dZ + self.s(m) * abs(dZ), axis=1, keepdims=True)
            bounds.append((e_W, e_b))
            if l:
                dA = W.T @ dZ
                e_dA = self.times(W.T, self.entering(W).T, dZ, e_in) + self.u_dZ * abs(dA)
                tanh = self.params[l - 1].activation.name == "tanh"
                slope = 1 - A**2 if tanh else A * (1 - A)
                e_slope = (2 if tanh else 1) * e_A[l] + 3 * self.kept(np.ones_like(A))
                e_dZ = slope * e_dA + abs(dA) * e_slope + self.u_dZ * abs(self.dZ[l - 1])
        return bounds[::-1]


def bounds_and_errors(kind, params, X, Y):
    """Array by array: what the errors against float64 may be, what they are, and the exact values.

    The exact gradient is jax.grad's of the public cost, of the same numbers in float64.
    """
    grads = backward(params, X, Y)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), plain(params))
        X, Y = X.astype(np.float64), Y.astype(np.float64)
        exact = exactly(wide, X, Y)
        bounds = ErrorBounds(kind, wide, X, Y).gradients()
        got = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
        true = [np.asarray(leaf) for leaf in jax.tree.leaves(exact)]
    flat = [bound for pair in bounds for bound in pair]
    return list(zip(flat, [abs(g - t) for g, t in zip(got, true, strict=True)], true, strict=True))


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (6, 8, 8, 3)])
@pytest.mark.parametrize("kind", NARROW)
def test_gradients_are_float64s_within_the_bounds_of_rounding(kind, sizes, output):
    params, X, Y, _ = mixed(kind, sizes, 9, "tanh", output)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(backward(params, X, Y)))
    for bound, error, true in bounds_and_errors(kind, params, X, Y):
        assert (error <= bound).all()
        if len(sizes) == 3 or kind == "float16":
            assert bound.max() < abs(true).max()  # so the bound says something
        assert error.max() > 8 * U_SUM * abs(true).max()  # and the products are of narrow factors


def deep(scale):
    """7 sigmoid layers, in which dZ falls by about 1/30 a layer, from about `scale` on.

    All W and all dZ are positive, so that nothing cancels and the bounds are near the errors.
    """
    params, X, Y, _ = mixed("float16", (4, *[8] * 7, 2), 6, "sigmoid", "identity")
    params = tuple(replace(p, W=0.05 * abs(p.W)) for p in params)
    return params, X, (-scale * (1 + abs(Y))).astype(np.float32)


@pytest.mark.parametrize(("scale", "smallest", "largest"), [(1.0, 1e-13, 1e2), (1e6, 1e-7, 1e8)])
def test_float16_has_gradients_beyond_its_range(scale, smallest, largest, monkeypatch):
    """dZ at 1e-12 and at 1e6, where numbers of float16 go from 6e-8 to 65504."""
    params, X, Y = deep(scale)
    dZ = [
        abs(np.asarray(d))
        for d in jax.jit(lambda p: dp.error_signals(dp.forward(p, X)[1], Y))(params)
    ]
    assert dZ[0].max() < 1e-10 * scale
    assert dZ[-1].max() > 0.5 * scale
    for bound, error, true in bounds_and_errors("float16", params, X, Y):
        assert (error <= bound).all()
        assert bound.max() < abs(true).max()
        assert smallest < abs(true).max() < largest
    # Without the scaling it would not be so:
    monkeypatch.setattr(precision, "_rounded", lambda P, dtype: (P.astype(dtype), None))
    monkeypatch.setattr(f"{__name__}.backward", by_hand)  # not the program of before
    cases = bounds_and_errors("float16", params, X, Y)
    lost = [not (error <= bound).all() for bound, error, _ in cases]
    assert lost[0] if scale == 1 else not np.isfinite(cases[-2][1]).any()


# What is in which type.


@pytest.mark.parametrize("stacked", [None, 1, 2])
@pytest.mark.parametrize("kind", NARROW)
def test_what_is_kept_in_which_type(kind, stacked):
    params, X, Y, w = mixed(kind, (3, 4, 4, 4, 2), weighted=True)
    params = params if stacked is None else dp.stack(params, stacked)
    A, cache = jax.eval_shape(dp.forward, params, X)
    kept = np.dtype(kind)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert {P.dtype for P in (*cache.A[:-1], *cache.Z[:-1]) if P is not None} == {kept}
    assert A.dtype == cache.A[-1].dtype == cache.Z[-1].dtype == jnp.float32
    assert jax.eval_shape(dp.cost, cache, Y, w).dtype == jnp.float32
    assert jax.eval_shape(dp.predict, params, X).dtype == jnp.float32
    signal = kept if kind == "bfloat16" else np.float32
    assert {d.dtype for d in jax.eval_shape(dp.error_signals, cache, Y)} == {np.dtype(signal)}
    for weights in (None, w):
        grads = jax.eval_shape(dp.manual_backward, cache, Y, weights)
        assert jax.tree.structure(grads) == jax.tree.structure(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", NARROW)
def test_sums_over_units_do_not_stall(kind):
    """2^14 ones: a sum in bfloat16 stops at 256, one in float16 at 2048."""
    n = 2**14
    ones = np.ones((n, 1))
    above = hidden_layer(np.ones((1, n)), [[0]], kind), output_layer([[1]], [[0]], kind)
    A, cache = dp.forward(above, ones)
    assert float(A[0, 0]) == float(cache.Z[0][0, 0]) == n  # A[0] to Z[1]
    below = hidden_layer([[1]], [[0]], kind), output_layer(ones, np.zeros((n, 1)), kind)
    _, cache = dp.forward(below, np.ones((1, 1)))
    dZ = dp.error_signals(cache, np.zeros((n, 1)))
    assert float(dZ[0][0, 0]) == n  # dZ[2] to dA[1]
    squared = output_layer(ones, np.zeros((n, 1)), kind)
    assert float(dp.cost(dp.forward((squared,), np.ones((1, 1)))[1], np.zeros((n, 1)))) == n / 2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", NARROW)
def test_sums_over_examples_do_not_stall(kind, weighted):
    """2^14 examples of dZ = 8 and A = 8; float16 would overflow at 2^10 of them."""
    m = 2**14
    X, Y = np.full((1, m), 8), np.full((1, m), -8)
    params = hidden_layer([[1]], [[0]], kind), output_layer([[0]], [[0]], kind)
    _, cache = dp.forward(params, X)
    weights = np.ones(m) if weighted else None
    grads = dp.gradients(cache, [np.full((1, m), 8)] * 2, weights)
    assert [float(g.W[0, 0]) for g in grads] == [64, 64]
    assert [float(g.b[0, 0]) for g in grads] == [8, 8]
    assert float(dp.cost(cache, Y, weights)) == 32


@pytest.mark.parametrize("kind", NARROW)
def test_what_is_float32_has_more_digits_than_the_narrow_type(kind):
    """1 + 2^-14 is a number of float32, and of neither narrow type."""
    more, m = 1 + 2.0**-14, 2**14
    (layer,) = params = (output_layer([[0]], [[more]], kind),)
    A, cache = dp.forward(params, np.ones((1, 1)))
    assert (
        float(A[0, 0]) == float(cache.Z[0][0, 0]) == float(dp.predict(params, [[1]])[0, 0]) == more
    )
    assert float(dp.cost(cache, [[0]])) == np.float32(more) ** 2 / 2
    X = np.ones((1, m))
    X[0, 0] = 2
    _, cache = dp.forward((output_layer([[0]], [[0]], kind),), X)
    (grad,) = dp.gradients(cache, [np.ones((1, m))])
    assert float(grad.W[0, 0]) == more  # a mean of 2 and of 2^14 - 1 ones
    (grad,) = dp.gradients(cache, [X])
    assert float(grad.b[0, 0]) == more
    if kind == "float16":
        _, cache = dp.forward((layer,), np.ones((1, 1)))
        assert float(dp.error_signals(cache, [[0]])[0][0, 0]) == more  # dZ, as it is kept


@pytest.mark.parametrize("kind", NARROW)
def test_factors_are_rounded_to_the_narrow_type(kind):
    """W, A[l-1] and dZ[l] as they enter; 1 + u is halfway to the next number, and rounds to 1."""
    near = 1 + U[kind]
    W = output_layer([[near]], [[0]], kind)
    assert float(dp.forward((W,), [[1]])[0][0, 0]) == 1
    assert float(dp.forward((W,), [[near]])[0][0, 0]) == 1
    _, cache = dp.forward((hidden_layer([[near]], [[0]], kind), W), [[1]])
    grads = dp.gradients(cache, [[[near]], [[near]]])
    assert [float(g.W[0, 0]) for g in grads] == [1, 1]
    dZ = dp.error_signals(cache, [[0]])
    assert float(dZ[0][0, 0]) == 1
    # b of a hidden layer is rounded too, that of the output is not.
    both = hidden_layer([[0]], [[near]], kind), output_layer([[0]], [[near]], kind)
    _, cache = dp.forward(both, [[1]])
    assert [float(Z[0, 0]) for Z in cache.Z] == [1, near]


# float16's scaling.


def product_of(kind):
    return jax.jit(lambda P, Q: precision.product(P, Q, jnp.float32, np.dtype(kind)))


@pytest.mark.parametrize("kind", NARROW)
def test_a_power_of_2_more_gives_the_same_bits(kind):
    """dZ and W times 2^k: dW and dA are what they were times 2^k, exactly."""
    params, X, Y, _ = mixed(kind, (5, 7, 3), 8)
    cache = forward(params, X)[1]
    dZ = [np.asarray(d, np.float32) for d in error_signals(cache, Y)]
    W, product = np.asarray(params[1].W).T, product_of(kind)
    expected, grads = product(W, dZ[1]), gradients(cache, dZ)
    for power in (-100, -60, -20, -1, 1, 20, 60, 90):
        times = lambda P, power=power: np.ldexp(np.asarray(P), power)  # noqa: E731
        for g, e in zip(gradients(cache, [times(d) for d in dZ]), grads, strict=True):
            assert np.array_equal(g.W, times(e.W))
            assert np.array_equal(g.b, times(e.b))
        assert np.array_equal(product(W, times(dZ[1])), times(expected))
        assert np.array_equal(product(times(W), dZ[1]), times(expected))
        assert np.array_equal(product(times(W), np.ldexp(dZ[1], -power)), expected)


def test_numbers_at_both_ends_of_float32():
    """float16 from numbers next to 2^-126 and to 2^128; what is subnormal may count as 0."""
    rng = np.random.default_rng(0)
    P, Q = (rng.uniform(0.5, 1, shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
    exact = P.astype(np.float64) @ Q
    product = product_of("float16")
    for p, q in ((-125, 0), (-125, 125), (127, -125), (127, -3), (-40, -80), (60, 60), (127, -127)):
        got = np.asarray(product(np.ldexp(P, p), np.ldexp(Q, q)), np.float64)
        if q == -127:  # subnormal: none of them is larger than 2^-127
            assert (abs(got) <= 1.01 * np.ldexp(exact, p + q)).all()
        else:
            np.testing.assert_allclose(got, np.ldexp(exact, p + q), rtol=2.1 * U["float16"])
    assert np.array_equal(product(np.ldexp(P, -149), Q) > 1e-30, np.zeros((3, 5), bool))
    # Overflow is told, not hidden.
    assert np.isinf(np.asarray(product(np.ldexp(P, 100), np.ldexp(Q, 100)))).all()


def test_small_numbers_beside_large_ones_keep_their_digits_over_28_powers_of_2():
    """The largest is brought above 2^13, and numbers of float16 are whole down to 2^-14."""
    P = np.array([[1.0, 2.0**-26 * (1 + 2.0**-10)]], np.float32)
    got = precision.product(jnp.asarray(P.T), jnp.ones((1, 1)), jnp.float32, jnp.float16)
    assert np.array_equal(got, P.T)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", NARROW)
def test_all_zero_dZ_gives_zero(kind, stacked):
    params, X, _, _ = mixed(kind, (3, 4, 4, 4, 2))
    cache = forward(dp.stack(params) if stacked else params, X)[1]
    grads = jax.jit(dp.manual_backward)(cache, cache.A[-1])
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
    zero = jax.tree.map(jnp.zeros_like, params)
    assert np.array_equal(dp.predict(zero, X), np.zeros((2, 5)))


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", NARROW)
def test_what_is_not_finite_is_not_hidden_and_goes_no_further_than_its_row(kind, wrong):
    params, X, Y, _ = mixed(kind, (5, 7, 3), 8)
    cache = forward(params, X)[1]
    dZ = [np.asarray(d, np.float32) for d in error_signals(cache, Y)]
    expected = gradients(cache, dZ)
    dZ = [d.copy() for d in dZ]  # jax may still be reading the arrays that it was given
    dZ[0][2, 4] = wrong
    dZ[0][1] *= 2**10  # were the inf left to the scale, a row of large numbers would overflow
    first, last = gradients(cache, dZ)
    assert not np.isfinite(first.W[2]).any()
    assert not np.isfinite(first.b[2]).any()
    for i, factor in ((0, 1), (1, 2**10), (3, 1)):
        np.testing.assert_allclose(first.W[i], factor * expected[0].W[i], rtol=2 * U[kind], atol=1e-5 * factor)  # fmt: skip
    assert np.array_equal(last.W, expected[1].W)
    for name in ("W", "b"):
        broken = params[1].__class__(**{**params[1].__dict__, name: getattr(params[1], name).at[1, 0].set(wrong)})  # fmt: skip
        A = np.asarray(dp.predict((params[0], broken), X))
        assert not np.isfinite(A[1]).any()
        assert np.isfinite(A[[0, 2]]).all()
    assert not np.isfinite(backward((params[0], broken), X, Y)[0].W).all()


# Everything that reads (cache, dZ).

CAPABILITIES = {
    "per_example_norms": lambda c, dZ, Y, w, V: dp.per_example_norms(c, dZ, per_layer=True),
    "per_example_products": lambda c, dZ, Y, w, V: dp.per_example_products(c, dZ, c, dZ),
    "per_example_gradients": lambda c, dZ, Y, w, V: dp.per_example_gradients(c, dZ),
    "gradients": lambda c, dZ, Y, w, V: dp.gradients(c, dZ, w),
    "clipped_backward": lambda c, dZ, Y, w, V: dp.clipped_backward(c, Y, 0.5, weights=w),
    "kfac_factors": lambda c, dZ, Y, w, V: dp.kfac_factors(c, dZ, w),
    "gauss_newton_product": lambda c, dZ, Y, w, V: dp.gauss_newton_product(c, V, w),
    "gauss_newton_diagonal": lambda c, dZ, Y, w, V: dp.gauss_newton_diagonal(c, w),
    "squared_gradients": lambda c, dZ, Y, w, V: dp.squared_gradients(c, dZ, w),
    "gradient_variance": lambda c, dZ, Y, w, V: dp.gradient_variance(c, dZ, w),
    "gradient_noise_scale": lambda c, dZ, Y, w, V: dp.gradient_noise_scale(c, dZ),
    "diagnose": lambda c, dZ, Y, w, V: dp.diagnose(c, dZ, V),
}
WITHOUT_PRODUCTS = {  # which are exact but for float32, given the cache and dZ
    "per_example_norms", "per_example_products", "per_example_gradients", "kfac_factors",
    "squared_gradients", "gradient_variance", "gradient_noise_scale",
}  # fmt: skip


def flat(tree):
    if isinstance(tree, tuple) and isinstance(tree[0], dp.Layer) and tree[-1].W.ndim == 2:
        tree = dp.unstack(tree)
    leaves = jax.tree.leaves(tree)
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def errors(found, expected):
    """The largest of each array, relative to the largest number of it."""
    pairs = zip(flat(found), flat(expected), strict=True)
    return [abs(f - e).max() / max(abs(e).max(), 1e-30) for f, e in pairs]


def direction(params):
    return jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


@pytest.mark.parametrize("kind", NARROW)
def test_capabilities_agree_with_float32s_within_rounding(kind):
    """Three layers with eleven roundings each (W, A, b, W A, Z, g, and g', dA, dZ, W, dZ): 33 u.

    Squares count twice. Errors are relative to the largest number of an array, and random ones add
    up as roots: what cancels has as much room again.
    """
    args = (4, 6, 6, 3), 32, "tanh", "softmax", True
    params, X, Y, w = mixed(kind, *args)

    @jax.jit
    def run(params):
        cache = dp.forward(params, X)[1]
        dZ, V = dp.error_signals(cache, Y), jax.tree.map(lambda p: 0.1 * p, params)
        return {name: f(cache, dZ, Y, w, V) for name, f in CAPABILITIES.items()}

    found, expected, stacked = run(params), run(plain(params)), run(dp.stack(params, 2))
    for name in CAPABILITIES:
        assert max(errors(found[name], expected[name])) <= 2 * 33 * U[kind], name
        assert max(errors(stacked[name], found[name])) <= 2 * 33 * U[kind], name
    # What needs no further product is exact but for float32, given the cache and dZ.
    cache = jax.jit(dp.forward)(params, X)[1]
    dZ = jax.jit(dp.error_signals)(cache, Y)
    without = lambda c, dZ, Y, w: {name: CAPABILITIES[name](c, dZ, Y, w, None) for name in WITHOUT_PRODUCTS}  # noqa: E731  # fmt: skip
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
    assert max(errors(grads, autodiff(plain(params), X, Y, w))) < 33 * U["float16"]


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
    """In the StableHLO for each platform. XLA's CPU takes the same numbers in float32."""
    params, X, Y, w = mixed(kind, (20, 16, 16, 16, 5), 8, "gelu", "softmax", True)
    params = dp.stack(params) if stacked else params
    exported = jax.export.export(jax.jit(passes), platforms=[platform])(params, X, Y, w)
    dots = re.findall(r"stablehlo\.dot_general.*: \((.*)\) -> (.*)", exported.mlir_module())
    # Z[l] and dW[l] of each layer, dA of each but the last; a stack's are there once.
    assert len(dots) == (8 if stacked else 11)
    factor = "f32" if platform == "cpu" else NAMES[kind]
    for factors, result in dots:
        assert re.findall(r"x([a-z]+\d+)>", factors) == [factor, factor]
        assert re.findall(r"x([a-z]+\d+)>", result)[0] == "f32"


@pytest.mark.parametrize("kind", NARROW)
def test_vmap_is_of_each_network_alone(kind):
    """Networks of sizes far apart: each product has its own scale."""
    params, X, Y, w = mixed(kind, (4, 6, 3), 8, "tanh", "identity", True)
    sizes = np.array([1, 2.0**-40, 2.0**30], np.float32)
    grads = jax.jit(jax.vmap(lambda size: passes(params, X, size * Y, w)[2]))(sizes)
    for k, size in enumerate(sizes):
        alone = backward(params, X, size * Y, w)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], grads)
        assert max(errors(one, alone)) <= 4 * U[kind]


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


# Bad input.

BAD = {
    "int8": 'compute_dtype must be "bfloat16", "float16" or None, got \'int8\'',
    "float32": 'compute_dtype must be "bfloat16", "float16" or None, got \'float32\'',
    "fp16": 'compute_dtype must be "bfloat16", "float16" or None, got \'fp16\'',
    "float8_e4m3fn": 'compute_dtype must be "bfloat16", "float16" or None',
    3: 'compute_dtype must be "bfloat16", "float16" or None, got 3',
}


@pytest.mark.parametrize("kind", BAD)
def test_another_type_is_refused(kind):
    params = plain(mixed("float16")[0])
    for make in (
        lambda: dp.with_compute_dtype(params, kind),
        lambda: dp.init_params(jax.random.key(0), [3, 2], compute_dtype=kind),
    ):
        with pytest.raises(TypeError, match=BAD[kind]):
            make()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", NARROW)
def test_params_that_are_narrow_already_are_refused(kind, dtype):
    with pytest.raises(
        TypeError, match=f"params must be wider than compute_dtype {kind}, got {dtype}"
    ):
        dp.init_params(jax.random.key(0), [3, 2], dtype=dtype, compute_dtype=kind)
    with pytest.raises(TypeError, match=r"params must be a tuple of dp\.Layer"):
        dp.with_compute_dtype([1], kind)


def test_with_compute_dtype_gives_the_same_arrays_and_none_takes_it_back():
    params = dp.init_params(jax.random.key(0), [3, 4, 2])
    narrow = dp.with_compute_dtype(params, jnp.float16)
    assert [p.compute_dtype for p in narrow] == [np.dtype(np.float16)] * 2
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (params, narrow)), strict=True))
    assert jax.tree.structure(dp.with_compute_dtype(narrow, None)) == jax.tree.structure(params)
    made = dp.init_params(jax.random.key(0), [3, 4, 2], compute_dtype="float16")
    assert jax.tree.structure(made) == jax.tree.structure(narrow)
    assert jax.tree.structure(dp.with_compute_dtype(narrow, "bfloat16")) != jax.tree.structure(made)
