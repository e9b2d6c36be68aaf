"""Parameters and sums in float32, factors of products in bfloat16 or float16: `with_compute_dtype`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop import _arithmetic as precision
from tests.page.narrow import (
    NARROW,
    TINY,
    U_SUM,
    U,
    backward,
    error_signals,
    forward,
    mixed,
    plain,
)
from tests.problems import by_hand, exactly


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
    roundings, and A's own times 2 at most. To evaluate g costs a few, 4 u here.
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


@pytest.mark.ordinary(1)
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


@pytest.mark.ordinary(1)
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


# Bad input.

BAD = {
    "int8": 'compute_dtype must be "bfloat16", "float16", "auto" or None, got \'int8\'',
    "float32": 'compute_dtype must be "bfloat16", "float16", "auto" or None, got \'float32\'',
    "fp16": 'compute_dtype must be "bfloat16", "float16", "auto" or None, got \'fp16\'',
    "float8_e4m3fn": 'compute_dtype must be "bfloat16", "float16", "auto" or None',
    3: 'compute_dtype must be "bfloat16", "float16", "auto" or None, got 3',
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
