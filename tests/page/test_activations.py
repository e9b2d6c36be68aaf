import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import deepprop as dp
from deepprop.activations import ACTIVATIONS
from tests.problems import HIDDEN, exactly, problem

# Every g again, in NumPy and SciPy.
REFERENCE = {
    "identity": lambda z: z,
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "leaky_relu(0.3)": lambda z: np.where(z > 0, z, 0.3 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "elu(0.7)": lambda z: np.where(z > 0, z, 0.7 * np.expm1(np.minimum(z, 0))),
    "selu": lambda z: (
        1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0)))
    ),
    "softplus": lambda z: np.logaddexp(z, 0),
    "silu": lambda z: z * special.expit(z),
    "gelu": lambda z: z * special.ndtr(z),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
}
Z = np.concatenate([np.linspace(-9, 9, 401) + 0.01, [-300.0, 300.0]])  # 0 is not among them


def test_every_activation_has_its_formula_here_and_is_named_in_the_reference():
    assert not set(HIDDEN) - set(REFERENCE), "these need a formula in REFERENCE"
    listed = set(re.findall(r"\w+", dp.activation.__doc__))
    assert not set(ACTIVATIONS) - listed, "add these to the docstring of dp.activation"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HIDDEN)
def test_g(name):
    g = dp.activation(name).g
    # 1 + tanh and the like cancel on the left, to a few eps times |Z| <= 9.
    np.testing.assert_allclose(
        g(jnp.asarray(Z)), REFERENCE[name](Z), rtol=1e-13, atol=9 * 4e-16 * 4
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HIDDEN)
def test_g_prime_is_the_derivative_of_g(name):
    entry = dp.activation(name)
    expected = jax.vmap(jax.grad(entry.g))(jnp.asarray(Z))
    found = entry.g_prime(jnp.asarray(Z), entry.g(jnp.asarray(Z)))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("relu", 0.0),
        ("leaky_relu", 0.01),
        ("leaky_relu(0.3)", 0.3),
        ("elu", 1.0),
        ("elu(0.7)", 0.7),
        ("selu", 1.0507009873554805 * 1.6732632423543772),
    ],
)
def test_the_slope_at_a_kink_is_the_one_from_the_left(name, slope):
    entry, zero = dp.activation(name), jnp.zeros(1)
    assert float(entry.g_prime(zero, entry.g(zero))[0]) == pytest.approx(slope, rel=1e-6)
    left = jnp.full(1, -1e-6)
    assert float(entry.g_prime(left, entry.g(left))[0]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", HIDDEN)
def test_far_out_everything_is_finite_and_keeps_its_type(name, dtype):
    entry, far = dp.activation(name), jnp.asarray([-1e4, -300, 0, 300, 1e4], dtype)
    A = entry.g(far)
    slope = entry.g_prime(far, A)
    assert A.dtype == slope.dtype == dtype
    assert np.isfinite(A.astype(jnp.float32)).all()
    assert np.isfinite(slope.astype(jnp.float32)).all()
    assert (abs(slope.astype(jnp.float32)) < 2).all()


def test_equal_choices_are_equal_static_data():
    """Layers with equal activations must be equal static data, or jit compiles again."""
    assert dp.activation("leaky_relu(0.2)") == dp.activation(" leaky_relu(.20) ")
    assert dp.activation("leaky_relu(0.2)") != dp.activation("leaky_relu(0.3)")
    assert dp.activation("leaky_relu(0.123456789)").name == "leaky_relu(0.123456789)"
    assert dp.activation("relu") is dp.activation("relu")
    for name in HIDDEN:
        copied, pickled = copy.deepcopy(dp.activation(name)), pickle.dumps(dp.activation(name))
        assert copied == pickle.loads(pickled) == dp.activation(name)
        assert hash(copied) == hash(dp.activation(name))
    own = dp.Activation("own", lambda Z: Z, lambda Z, A: A * 0 + 1)
    assert dp.activation(own) is own


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("elu", 1.0), ("elu(0.7)", 0.7), ("selu", 1.0507009873554805 * 1.6732632423543772)],
)
def test_the_left_tail_does_not_cancel(name, alpha):
    """A + alpha is 0 at Z = -20 in float32; the slope is alpha exp(-20)."""
    entry, left = dp.activation(name), jnp.asarray([-20.0, -5.0])
    slope = entry.g_prime(left, entry.g(left))
    np.testing.assert_allclose(slope, alpha * np.exp([-20.0, -5.0]), rtol=1e-5)


@pytest.mark.parametrize("name", ["rleu", "", "relu(0.2)", "leaky_relu(-1)", "elu(nan)", "elu(x)"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"^activation .*got '"):
        dp.activation(name)


def test_what_is_no_activation():
    with pytest.raises(TypeError, match=r"^activation must be a name or a dp.Activation"):
        dp.activation(3)


@pytest.mark.usefixtures("x64")
def test_an_activation_may_differ_from_unit_to_unit():
    """g acts on each example's column (n, 1), however XLA lays it out: here as many examples as units."""
    steepness = jnp.arange(1.0, 6.0)[:, None]
    own = dp.Activation(
        "steep", lambda Z: jnp.tanh(steepness * Z), lambda Z, A: steepness * (1 - A * A)
    )
    params, X, Y, _ = problem(0, [4, 5, 3], 5, [own], "identity")
    cache = jax.jit(dp.forward)(params, X)[1]
    np.testing.assert_allclose(cache.A[1], np.tanh(steepness * cache.Z[0]), rtol=1e-12)
    dZ = jax.jit(dp.error_signals)(cache, Y)
    dA = np.asarray(params[1].W).T @ dZ[1]
    np.testing.assert_allclose(dZ[0], dA * steepness * (1 - cache.A[1] ** 2), rtol=1e-9, atol=1e-14)


ONES = jnp.ones_like
COUPLED = {
    "centred over the batch": lambda Z: Z - jnp.mean(Z, axis=-1, keepdims=True),
    "centred over the layer": lambda Z: Z - jnp.mean(Z, axis=-2, keepdims=True),
    "a norm over the layer": lambda Z: Z / jnp.sqrt(jnp.sum(Z**2, axis=0, keepdims=True)),
    "over the largest": lambda Z: Z / jnp.max(jnp.abs(Z)),
    "softmax": lambda Z: jax.nn.softmax(Z, axis=0),
    "a sum from the left": lambda Z: jnp.cumsum(Z, axis=1),
    "sorted": lambda Z: jnp.sort(Z, axis=1),
    "the others' columns": lambda Z: jnp.roll(Z, 1, axis=1),
}
BY_PLACE = {
    "a mask of units": lambda Z: Z * (jnp.arange(4) % 2 == 0)[:, None].astype(Z.dtype),
    "a mask of units and examples": lambda Z: Z * jnp.asarray(MASK, Z.dtype),
    "a mask of examples": lambda Z: Z * jnp.asarray(MASK[:1], Z.dtype),
    "a slope by the example's number": lambda Z: Z * jnp.arange(Z.shape[1], dtype=Z.dtype)[None],
    "over the number of examples": lambda Z: Z / Z.shape[1],
}
MASK = np.random.default_rng(0).integers(2, size=(4, 7))


def passes(g, g_prime, m=7, **how):
    """The passes of a network with that activation, and its parts; built past `activation`."""
    params, X, Y, _ = problem(0, [3, 4, 4, 2], m, "tanh", dtype=np.float32)
    own = dp.Activation("own", g, g_prime)
    params = (*(dp.Layer(p.W, p.b, own) for p in params[:2]), params[2])
    params = dp.stack(params) if how.get("stack") else params

    def run(params, X, Y):
        A, cache = dp.forward(params, X)
        return A, dp.manual_backward(cache, Y)

    return run, (params, X, Y)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("name", [*COUPLED, *BY_PLACE])
def test_any_g_is_the_same_function_compiled_and_not(name, stack):
    g = {**COUPLED, **BY_PLACE}[name]
    run, parts = passes(g, lambda Z, A: ONES(Z) + 0.1 * g(Z), stack=stack)
    leaves = map(jax.tree.leaves, (run(*parts), jax.jit(run)(*parts)))
    for plain, compiled in zip(*leaves, strict=True):
        # Sums of up to 7 terms of about 1, in another order.
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BY_PLACE)
def test_g_by_place_has_the_right_gradient(name):
    """dZ = dA * g'(Z) holds where a number of A depends on one of Z, wherever it stands."""
    g = BY_PLACE[name]
    run, parts = passes(g, lambda Z, A: g(ONES(Z)))
    expected = exactly(*parts)
    for found, due in zip(*map(jax.tree.leaves, (jax.jit(run)(*parts)[1], expected)), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", ["g", "g_prime"])
@pytest.mark.parametrize("name", COUPLED)
def test_what_is_not_elementwise_is_refused(name, where):
    coupled = COUPLED[name]
    parts = {"g": jnp.sin, "g_prime": lambda Z, A: jnp.cos(Z)}
    parts[where] = coupled if where == "g" else lambda Z, A: coupled(Z)
    own = dp.Activation("own", **parts)
    message = f"activation own must be elementwise, but entries of its {where} change"
    for use in (
        lambda: dp.init_params(jax.random.key(0), [3, 4, 2], hidden=own),
        lambda: dp.init_params(jax.random.key(0), [3, 4, 2], hidden=["relu", own][1:]),
        lambda: dp.output((own, "huber")),
        lambda: jax.jit(lambda: dp.init_params(jax.random.key(0), [3, 4, 2], hidden=own))(),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("name", BY_PLACE)
def test_what_goes_by_place_is_taken(name):
    own = dp.Activation("own", BY_PLACE[name], lambda Z, A: BY_PLACE[name](ONES(Z)))
    assert dp.activation(own) is own


@pytest.mark.ordinary(3)
@pytest.mark.parametrize(
    "g",
    [jnp.sin, jax.nn.relu, jax.nn.gelu, jax.nn.mish, lambda Z: jnp.where(Z > 0, Z, 0.1 * Z**3),
     lambda Z: jnp.clip(Z, -1, 1), lambda Z: jnp.interp(Z, jnp.arange(3.0), jnp.arange(3.0) ** 2)],
)  # fmt: skip
def test_an_elementwise_g_is_taken_and_computed_in_rows(g):
    """Column by column, so that examples lie in rows: but for interp, whose jaxpr has a gather."""
    own = dp.Activation("own", g, lambda Z, A: ONES(Z))
    assert dp.activation(own) is own
    run, parts = passes(own.g, own.g_prime)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool(jnp.allclose(a, b, rtol=1e-4, atol=1e-5)),
            run(*parts), jax.jit(run)(*parts),
        )
    )  # fmt: skip
