"""What enters a layer, normalised and with dropout: against autodiff of plain jax.numpy."""

from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import deepprop as dp
from deepprop.entry import along_entry, below_entry, entering, mask
from tests.problems import problem, thorough
from tests.random_networks import networks

KEY = jax.random.key(7)
RATES = {"no dropout": 0.0, "dropout": 0.3}


def network(
    normalize="layer",
    dropout=0.3,
    residual=False,
    output="softmax",
    dtype=np.float64,
    hidden="tanh",
):
    """A network of 6-6-6-6-3 with two equal layers, all of which normalise and drop what enters."""
    params, X, Y, w = problem(5, [6, 6, 6, 6, 3], 7, hidden, output, weighted=True, dtype=dtype)
    params = tuple(
        replace(layer, normalize=normalize, dropout=dropout, residual=residual and l < 3)
        for l, layer in enumerate(params)
    )
    return params, X, Y, w


def masks(params, m, key=KEY):
    """M[l] / (1 - p) of each layer: layer l has its own key, made of its number."""
    scaled = []
    for l, layer in enumerate(params, start=1):
        M = jnp.ones((layer.W.shape[1], m))
        if layer.dropout and key is not None:
            M = mask(layer, jax.random.fold_in(key, l), m).astype(float) / (1 - layer.dropout)
        scaled.append(M)
    return scaled


def normalized(A, kind):
    """N, in plain jax.numpy."""
    if kind == "layer":
        return (A - A.mean(0, keepdims=True)) / jnp.sqrt(A.var(0, keepdims=True) + 1e-5)
    return A / jnp.sqrt((A**2).mean(0, keepdims=True) + 1e-5) if kind == "rms" else A


def plain(params, X, M):
    """Z[L] and all U, in plain jax.numpy."""
    A, U = X, []
    for layer, M_l in zip(params, M, strict=True):
        U.append(normalized(A, layer.normalize) * M_l)
        Z = layer.W @ U[-1] + layer.b
        A = A + layer.activation.g(Z) if layer.residual else layer.activation.g(Z)
    return Z, U


def plain_losses(params, X, Y, M):
    return params[-1].activation.loss(plain(params, X, M)[0], Y)


def assert_close(found, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max() + 1e-30))


def assert_autodiffs(params, X, Y, w, keep):
    """All that reads (cache, dZ) to first order, against autodiff of the plain passes.

    Autodiff runs operation by operation: of networks with layers of one unit, XLA without its
    optimisations, as the tests run it, compiles a gradient that is nan.
    """
    M = masks(params, X.shape[1])

    @jax.jit
    def by_hand(params, X):
        stacked = params if keep is None else dp.stack(params, keep)
        A, cache = dp.forward(stacked, X, key=KEY)
        dZ = dp.error_signals(cache, Y)
        gradients = dp.manual_backward(cache, Y, w), dp.gradients(cache, dZ, w)
        single = jax.vmap(dp.unstack)(dp.per_example_gradients(cache, dZ))
        norms, squares = dp.per_example_norms(cache, dZ), dp.squared_gradients(cache, dZ)
        return {
            "A": A,
            "J": dp.cost(cache, Y, w),
            "manual_backward": dp.unstack(gradients[0]),
            "gradients": dp.unstack(gradients[1]),
            "dA[0]": dp.input_signal(cache, dZ),
            "per_example_gradients": single,
            "per_example_norms": norms,
            "squared_gradients": dp.unstack(squares),
            "clipped_backward": dp.unstack(dp.clipped_backward(cache, Y, 0.1)),
        }

    def by_autodiff(params, X):
        share = jnp.full(X.shape[1], 1 / X.shape[1]) if w is None else w / w.sum()
        J = lambda params, X: share @ plain_losses(params, X, Y, M)  # noqa: E731
        gradient, single = jax.grad(J)(params, X), jax.jacrev(plain_losses)(params, X, Y, M)
        squares = jax.tree.map(jnp.square, single)
        norms = jnp.sqrt(sum(P.sum((1, 2)) for P in jax.tree.leaves(squares)))
        factor = jnp.minimum(1, 0.1 / jnp.maximum(norms, 1e-300))[:, None, None]
        return {
            "A": params[-1].activation.g(plain(params, X, M)[0]),
            "J": J(params, X),
            "manual_backward": gradient,
            "gradients": gradient,
            "dA[0]": jax.grad(lambda X: plain_losses(params, X, Y, M).sum())(X),
            "per_example_gradients": single,
            "per_example_norms": norms,
            "squared_gradients": jax.tree.map(lambda P: P.mean(0), squares),
            "clipped_backward": jax.tree.map(lambda P: (factor * P).mean(0), single),
        }

    found, expected = by_hand(params, X), by_autodiff(params, X)
    largest = max(float(abs(P).max()) for P in jax.tree.leaves(expected["per_example_gradients"]))
    for name in expected:
        pairs = zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True)
        for one, other in pairs:
            size = max(float(abs(other).max()), 1e-6 * largest, 1e-5)
            assert float(abs(one - other).max()) <= 1e-9 * size, name


VALUES = ["layer", "rms", None], list(RATES), [False, True], [None, 1, 2]
# Half of the combinations: any two values occur together. The random networks have all.
HALF = [
    tuple(values[i] for values, i in zip(VALUES, places, strict=True))
    for places in product(*(range(len(values)) for values in VALUES))
    if sum(places) % 2 == 0
]


@pytest.mark.ordinary(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("normalize", "rate", "residual", "keep"), HALF)
def test_the_passes_are_autodiffs(normalize, rate, residual, keep):
    assert_autodiffs(*network(normalize, RATES[rate], residual), keep)


@st.composite
def entries(draw):
    """A random network whose layers normalise, drop and are residual at random, and `keep`."""
    seed, sizes, m, hidden, output, weighted = draw(networks())
    of_layers = [
        (
            draw(st.sampled_from([None, "layer", "rms"])),
            draw(st.sampled_from([0.0, 0.2, 0.7])),
            draw(st.booleans()) and n == n_below and l < len(sizes) - 1,
        )
        for l, (n_below, n) in enumerate(pairwise(sizes), start=1)
    ]
    return (
        (seed, sizes, m, hidden, output, weighted),
        of_layers,
        draw(st.sampled_from([None, 1, 2])),
    )


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("part", range(6))
def test_random_networks(part):
    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @seed(part)
    @given(entries())
    def check(drawn):
        arguments, of_layers, keep = drawn
        params, X, Y, w = problem(*arguments)
        params = tuple(
            replace(layer, normalize=normalize, dropout=dropout, residual=residual)
            for layer, (normalize, dropout, residual) in zip(params, of_layers, strict=True)
        )
        assert_autodiffs(params, X, Y, w, keep)

    check()


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("normalize", ["layer", "rms", None])
def test_the_gauss_newton_product_is_autodiffs(normalize, keep):
    params, X, _, w = network(normalize, residual=True)
    M, share = masks(params, X.shape[1]), w / w.sum()

    @jax.jit
    def both(params, V):
        stacked, V_stacked = (p if keep is None else dp.stack(p, keep) for p in (params, V))
        _, cache = dp.forward(stacked, X, key=KEY)
        Z_L = lambda params: plain(params, X, M)[0]  # noqa: E731
        Z, RZ = jax.jvp(Z_L, (params,), (V,))
        A = params[-1].activation.g(Z)
        HR = A * (RZ - (A * RZ).sum(0, keepdims=True))
        product = jax.vjp(Z_L, params)[1](HR * share[None])[0]
        return dp.unstack(dp.gauss_newton_product(cache, V_stacked, w)), product

    assert_close(*both(params, jax.tree.map(jnp.sin, params)))


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalize", ["layer", "rms"])
def test_kfac_factors_and_the_diagonal_have_U_in_the_place_of_A(normalize):
    params, X, Y, _ = network(normalize, output="identity")
    M = masks(params, X.shape[1])
    _, cache = dp.forward(params, X, key=KEY)
    dZ = dp.error_signals(cache, Y)
    _, U = plain(params, X, M)
    for factor, U_l in zip(dp.kfac_factors(cache, dZ), U, strict=True):
        with_1 = jnp.concatenate([U_l, jnp.ones((1, U_l.shape[1]))])
        assert_close(factor.A, with_1 @ with_1.T / X.shape[1])
    J = jax.jacrev(lambda params: plain(params, X, M)[0])(params)
    expected = jax.tree.map(lambda P: (P**2).sum(0).mean(0), J)
    assert_close(dp.gauss_newton_diagonal(cache), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalize", ["layer", "rms", None])
@pytest.mark.parametrize("dropped", [True, False])
def test_the_derivatives_of_an_entry_are_autodiffs(normalize, dropped):
    layer = replace(network(normalize, 0.4)[0][1])
    A, dU = (jax.random.normal(jax.random.key(i), (6, 5), jnp.float64) for i in (0, 1))
    kept = jax.random.key(3) if dropped else None
    f = lambda A: entering(layer, A, kept)  # noqa: E731
    assert_close(below_entry(layer, dU, A, kept), jax.vjp(f, A)[1](dU)[0], 1e-12)
    assert_close(along_entry(layer, dU, A, kept), jax.jvp(f, (A,), (dU,))[1], 1e-12)


def test_without_a_key_nothing_is_dropped():
    params, X, _, _ = network(None, 0.5, dtype=np.float32)
    whole = tuple(replace(layer, dropout=0.0) for layer in params)
    A, cache = dp.forward(params, X)
    assert cache.kept == ()
    assert_close((A, dp.predict(params, X)), (dp.predict(whole, X),) * 2, 1e-6)
    assert float(jnp.abs(dp.forward(params, X, key=KEY)[0] - A).max()) > 0.01
    assert_close(dp.forward(whole, X, key=KEY)[0], A, 1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_scale(p):
    """The number of kept entries is binomial: 5 standard deviations hold all but 1 in 1.7e6 runs."""
    layer = dp.Layer(jnp.ones((2, 300)), jnp.zeros((2, 1)), "relu", dropout=p)
    A = jnp.ones((300, 400))
    U = np.asarray(entering(layer, A, KEY))
    n, values = U.size, np.unique(U)
    np.testing.assert_allclose(values, [0, 1 / (1 - p)], rtol=1e-6)
    kept = U > 0
    assert abs(kept.sum() - n * (1 - p)) < 5 * np.sqrt(n * p * (1 - p))
    for axis, size in ((0, 400), (1, 300)):  # no row and no column is special: a chi-square test
        k = kept.shape[axis]
        chi2 = ((kept.sum(axis) - k * (1 - p)) ** 2 / (k * p * (1 - p))).sum()
        assert abs(chi2 - size) < 5 * np.sqrt(2 * size)


def test_every_layer_has_its_own_mask_also_in_a_stack():
    params, X, _, _ = network(None, 0.5, dtype=np.float32)
    stacked = dp.stack(params)
    flat, in_stack = (dp.forward(p, X, key=KEY)[1] for p in (params, stacked))
    drawn = [mask(layer, kept, X.shape[1]) for layer, kept in zip(params, flat.kept, strict=True)]
    assert len({np.asarray(M).tobytes() for M in drawn}) == len(drawn)
    of_stack = [mask(params[0], kept, X.shape[1]) for kept in in_stack.kept[0]]
    assert [np.asarray(M).tobytes() for M in of_stack] == [
        np.asarray(M).tobytes() for M in drawn[:3]
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["bfloat16", thorough("float16")])
def test_narrow_products_are_close_to_wide_ones(kind):
    """A factor is rounded by up to 2^-9 (bfloat16); errors of a few layers add up to below 0.05."""
    params, X, Y, w = network(dtype=np.float32)
    grads = []
    for p in (params, dp.with_compute_dtype(params, kind)):
        _, cache = dp.forward(p, X, key=KEY)
        grads.append(dp.manual_backward(cache, Y, w))
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        assert float(jnp.linalg.norm(one - other)) < 0.05 * float(jnp.linalg.norm(other)) + 1e-3


@pytest.mark.usefixtures("x64")
def test_the_gradient_check_covers_normalisation_and_dropout():
    params, X, Y, w = network(hidden="softplus")
    for p in (params, dp.stack(params, 2)):
        assert dp.check_gradients(p, X, Y, w, key=KEY).ok
    wrong = lambda cache, Y, w: dp.manual_backward(replace(cache, kept=()), Y, w)  # noqa: E731
    with pytest.raises(dp.GradientError):
        dp.check_gradients(params, X, Y, w, backward=wrong, key=KEY)


def test_a_plain_network_has_the_program_that_it_had():
    """normalize and dropout add no operation to a network without them, with or without a key."""
    params, X, Y, _ = problem(0, [5, 8, 8, 3], 4, dtype=np.float32)

    def both(params, X, Y, **key):
        _, cache = dp.forward(params, X, **key)
        return dp.manual_backward(cache, Y)

    jaxpr = jax.make_jaxpr(both)(params, X, Y)
    with_key = jax.make_jaxpr(partial(both, key=KEY))(params, X, Y)
    assert str(jaxpr) == str(with_key)
    found = {eqn.primitive.name for eqn in jaxpr.jaxpr.eqns}
    assert not found & {"random_bits", "random_fold_in", "rsqrt", "sqrt"}


ENTRY = {"normalize": "rms", "dropout": 0.25}


def test_init_params_leaves_what_enters_layer_1_alone():
    params = dp.init_params(KEY, [5, 8, 8, 3], **ENTRY)
    assert [(p.normalize, p.dropout) for p in params] == [(None, 0.0), ("rms", 0.25), ("rms", 0.25)]
    params = dp.init_params(KEY, [5, 8, 3], normalize=["layer", None], dropout=[0.1, 0.2])
    assert [(p.normalize, p.dropout) for p in params] == [("layer", 0.1), (None, 0.2)]
    stacked = dp.init_params(KEY, [8, 8, 8, 8, 3], stack=True, **ENTRY)
    assert [p.W.shape for p in stacked] == [(8, 8), (2, 8, 8), (3, 8)]  # layer 1 differs
    single = dp.init_params(KEY, [8, 8, 8, 8, 8, 3], dropout=[0, 0.1, 0.1, 0.2, 0], normalize="rms")
    assert [p.W.shape for p in dp.stack(single)] == [(8, 8), (2, 8, 8), (8, 8), (3, 8)]
    single = dp.init_params(KEY, [8, 8, 8, 8, 3], normalize=["rms", "rms", "layer", None])
    assert [p.W.shape for p in dp.stack(single)] == [(2, 8, 8), (8, 8), (3, 8)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"normalize": "batch"},
            ValueError,
            "got 'batch': batch normalisation ties examples together",
        ),
        (
            {"normalize": "l2"},
            ValueError,
            'layer 2 must have normalize "layer", "rms" or None, got \'l2\'',
        ),
        ({"dropout": 1.0}, ValueError, "layer 2 must have a dropout from 0 to below 1, got 1.0"),
        ({"dropout": -0.1}, ValueError, "layer 2 must have a dropout from 0 to below 1, got -0.1"),
        (
            {"dropout": [0.1]},
            ValueError,
            "dropout must be one for all layers, or L = 2 of them, got 1",
        ),
        ({"dropout": "0.1"}, TypeError, "layer 2 must have a number as its dropout, got '0.1'"),
        (
            {"normalize": ["layer"] * 3},
            ValueError,
            "normalize must be one for all layers, or L = 2 of them, got 3",
        ),
    ],
)
def test_bad_entries_are_named(given, error, message):
    with pytest.raises(error, match=message):
        dp.init_params(KEY, [4, 5, 2], **given)
    if isinstance(next(iter(given.values())), float | str):
        layers = dp.init_params(KEY, [4, 5, 2])
        with pytest.raises(error, match=message):
            dp.forward((layers[0], replace(layers[1], **given)), jnp.ones((4, 3)))


def test_a_bad_key_is_named():
    params = dp.init_params(KEY, [4, 5, 2], dropout=0.5)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        dp.forward(params, jnp.ones((4, 3)), key=0)
