"""Stacks and residual layers: every function means the same by them as by layers one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.walk import by_entry
from tests.problems import (
    HIDDEN,
    autodiff,
    by_hand,
    exactly,
    problem,
    public_cost,
    thorough,
    worst_error,
)

KEEPS = [1, 2, 3, "sqrt", 100]
SIZES = [4, *[6] * 8, 3]  # 7 equal layers: a prime, which no segment divides


def deep(hidden="tanh", output="softmax", residual=False, m=7, dtype=np.float64, sizes=SIZES):
    """A network of equal layers one by one, with data and weights."""
    params, X, Y, w = problem(3, sizes, m, hidden, output, weighted=True, dtype=dtype)
    adds = [residual and p.W.shape[0] == p.W.shape[1] and p is not params[-1] for p in params]
    params = tuple(replace(p, residual=add) for p, add in zip(params, adds, strict=True))
    return params, X, Y, w


def one_by_one(entries, params):
    """Entries of a cache or dZ, a stack's taken apart."""
    return [
        one
        for layer, entry in zip(params, entries, strict=True)
        for one in (entry if layer.W.ndim == 3 else [entry])
    ]


# Residual layers.


@pytest.mark.ordinary(3)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hidden", [HIDDEN, *map(thorough, HIDDEN)], ids=str)
@pytest.mark.parametrize("output", ["softmax", "tanh+huber(0.4)"])
def test_residual_gradients_are_autodiffs(hidden, output):
    """With each activation in a layer of one network, and in all layers of one."""
    sizes = SIZES if isinstance(hidden, str) else [4, *[6] * len(HIDDEN), 3]
    params, X, Y, w = deep(hidden, output, residual=True, sizes=sizes)
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


@pytest.mark.thorough
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


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("hidden", "keep", "residual"),
    [("tanh", 1, False), ("tanh", 3, True), ("gelu", 1, True), ("relu", "sqrt", False),
     *(thorough("tanh", keep, added) for keep in KEEPS for added in (False, True) if (keep != 1 or added) and (keep != 3 or not added)),
     thorough("relu", 1, True), thorough("relu", 3, False), thorough("gelu", 1, False), thorough("gelu", 3, True)],
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
    exact = exactly(params, X, Y, w)
    for one in (*map(dp.unstack, grads), *grads_plain):
        assert worst_error(one, exact) < 1e-10
    if keep == 1:
        for one, p in ((cache.Z, plain.Z), (cache.A[1:], plain.A[1:])):
            for a, b in zip(one_by_one(one, stacked), p, strict=True):
                close(a, b)
        assert worst_error(grads[0], exactly(stacked, X, Y, w)) < 1e-10


@pytest.mark.ordinary(2)
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


@pytest.mark.thorough
def test_a_deep_residual_network_begins_with_signals_of_one_size():
    for hidden in ("relu", "tanh", "gelu"):
        params = dp.init_params(
            jax.random.key(0), [20, *[32] * 1000, 3], hidden=hidden, residual=True, stack=True
        )
        X = jax.random.normal(jax.random.key(1), (20, 50))
        _, cache = jax.jit(dp.forward)(params, X)
        rms = jnp.sqrt(jnp.mean(cache.A[2] ** 2, axis=(1, 2)))
        assert 0.3 < float(rms[-1] / rms[0]) < 10, hidden


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


@pytest.mark.thorough
def test_a_stack_is_differentiated_by_autodiff_too():
    """Of `forward` nothing but the derivative is by hand, and a user may hold one against the other."""
    params, X, Y, w = deep(dtype=np.float32)
    assert np.isfinite(jax.grad(public_cost)(dp.stack(params), X, Y, w)[1].W).all()
