"""The derivatives of docs/recipes.md are autodiff's, and its code for other libraries runs.

The tests take the functions from the page. Its training runs in test_documents.py.
"""

import ast
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "recipes.md").read_text()
SETUP = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
ELSEWHERE = re.findall(r"```py\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)

pytestmark = pytest.mark.usefixtures("optax_types")


def recipe(heading):
    """Return the names of the first block and the functions of a recipe."""
    (section,) = (part for part in PAGE.split("\n## ") if part.startswith(heading))
    names = {}
    exec(SETUP, names)
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        for node in ast.parse(code).body:
            if isinstance(node, ast.FunctionDef) or "defvjp" in ast.unparse(node):
                exec(ast.unparse(node), names)
    return names


def network(seed, sizes, output, **options):
    key = jax.random.key(seed)
    return dp.init_params(
        key, sizes, **{"hidden": "tanh"} | options, output=output, dtype=jnp.float64
    )


def columns(seed, n, m):
    return jax.random.normal(jax.random.key(seed), (n, m), jnp.float64)


def assert_close(found, expected, rtol=1e-9):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = max(float(jnp.abs(b).max()) for b in jax.tree.leaves(expected))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest)


@pytest.mark.usefixtures("x64")
def test_the_policy_gradient():
    names = recipe("A policy gradient")
    policy, states = network(0, [4, 5, 2], ("softmax", None)), columns(1, 4, 6)
    actions, advantages = jnp.array([0, 1, 1, 0, 1, 1]), columns(2, 1, 6)[0]

    @jax.grad
    def expected(policy):
        A = dp.forward(policy, states)[0]
        return -jnp.mean(advantages * jnp.log(A[actions, jnp.arange(6)]))

    found = jax.jit(names["policy_gradient"])(policy, states, actions, advantages)
    assert_close(found, jax.jit(expected)(policy))


@pytest.mark.usefixtures("x64")
def test_the_pole_moves_as_its_equations_say():
    """(M + m) x'' + m l (cos * angle'' - sin * angle'^2) = F and 4/3 l angle'' + cos * x'' = g sin.

    l is half the length of the pole, whose moment of inertia about its end is 4/3 m l^2.
    """
    names = recipe("A policy gradient")
    state, action = columns(0, 4, 5), jnp.array([0, 1, 0, 1, 1])
    dx, d_speed, d_angle, d_spin = (names["move"](state, action) - state) / 0.02
    _, speed, angle, spin = state
    sin, cos, M, m, l, g = jnp.sin(angle), jnp.cos(angle), 1.0, 0.1, 0.5, 9.8
    assert_close((dx, d_angle), (speed, spin))
    force = (M + m) * d_speed + m * l * (cos * d_spin - sin * spin**2)
    assert_close(force, jnp.where(action == 1, 10.0, -10.0))
    assert_close(4 / 3 * l * d_spin + cos * d_speed, g * sin)


def test_episodes_end_where_the_pole_falls():
    names = recipe("A policy gradient")
    policy = dp.init_params(jax.random.key(0), [4, 2], output=("softmax", None))
    states, actions, up = jax.jit(names["play"], static_argnums=(2, 3))(
        policy, jax.random.key(1), 8, 60
    )
    assert states.shape == (60, 4, 8)
    assert actions.shape == up.shape == (60, 8)
    inside = (jnp.abs(states[:, 0]) < 2.4) & (jnp.abs(states[:, 2]) < 0.2095)
    fallen = ~up[-1]
    assert fallen.any()
    assert jnp.array_equal(up, inside)  # a fallen pole stays where it fell


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_the_gradients_of_an_autoencoder():
    names = recipe("Two networks in a row")
    encoder = network(0, [6, 5, 3], ("tanh", None))
    decoder = network(1, [3, 5, 6], "sigmoid")
    X = jax.nn.sigmoid(columns(2, 6, 4))

    def J(encoder, decoder):
        A = dp.forward(decoder, dp.forward(encoder, X)[0])[0]
        return -jnp.sum(X * jnp.log(A) + (1 - X) * jnp.log(1 - A)) / 4

    found, cost = jax.jit(names["autoencoder_gradients"])(encoder, decoder, X)
    assert_close(found, jax.jit(jax.grad(J, argnums=(0, 1)))(encoder, decoder))
    assert_close(cost, J(encoder, decoder))
    of_one = jax.jit(names["as_one_network"])(encoder, decoder, X)
    assert_close(jax.tree.leaves(of_one), jax.tree.leaves(found))


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_the_gradients_of_a_gan():
    names = recipe("Two networks against each other")
    generator = network(0, [2, 5, 3], ("identity", None))
    discriminator = network(1, [3, 5, 1], "sigmoid")
    real, noise = columns(2, 3, 4), columns(3, 2, 4)

    def D(discriminator, X):
        return dp.forward(discriminator, X)[0]

    def made(generator):
        return dp.forward(generator, noise)[0]

    def of_generator(generator):
        return -jnp.mean(jnp.log(D(discriminator, made(generator))))

    def of_discriminator(discriminator):  # the mean over real and generated points
        right = jnp.log(D(discriminator, real)), jnp.log(1 - D(discriminator, made(generator)))
        return -jnp.mean(jnp.concatenate(right, axis=1))

    found = jax.jit(names["gan_gradients"])(generator, discriminator, real, noise)
    expected = jax.jit(jax.grad(of_generator))(generator)
    assert_close(found, (expected, jax.jit(jax.grad(of_discriminator))(discriminator)))


@pytest.mark.usefixtures("x64")
def test_the_derivative_of_triplets():
    triplet = recipe("A loss that compares examples")["triplet"]
    params, X = network(0, [4, 6, 3], ("identity", None)), columns(4, 4, 15)

    def J(A, margin=1.0):
        a, p, n = A[:, :5], A[:, 5:10], A[:, 10:]
        losses = jnp.sum((a - p) ** 2, axis=0) - jnp.sum((a - n) ** 2, axis=0) + margin
        return jnp.mean(jnp.maximum(losses, 0)), losses

    A, cache = dp.forward(params, X)
    assert 0 < jnp.sum(J(A)[1] > 0) < 5  # some triplets have a loss, and others have none
    found, dA = triplet(A)
    assert_close(found, J(A)[0])
    assert_close(dA, 15 * jax.grad(lambda A: J(A)[0])(A))
    expected = jax.jit(jax.grad(lambda params: J(dp.forward(params, X)[0])[0]))(params)
    assert_close(dp.manual_backward(cache, dA=dA), expected)


def test_triplets_are_drawn_by_their_labels():
    names = recipe("A loss that compares examples")
    drawn = jax.jit(names["draw_triplets"], static_argnums=1)(jax.random.key(0), 200)
    anchor, positive, negative = jnp.split(names["labels"][drawn], 3)
    assert jnp.array_equal(anchor, positive)
    assert not jnp.any(anchor == negative)
    assert len(set(np.asarray(drawn[200:400]).tolist())) > 150  # not the same positive each time


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_saliency_and_integrated_gradients():
    names = recipe("Which pixels matter")
    params, X = network(0, [6, 5, 4], "softmax"), columns(1, 6, 3)

    def Z(x, k):
        return dp.forward(params, x[:, None])[1].Z[-1][k, 0]

    of_columns = jax.jit(jax.vmap(jax.value_and_grad(Z), in_axes=(1, None), out_axes=(0, 1)))
    for k in (0, 3):
        scores, dX = jax.jit(names["score"])(params, X, k)
        assert_close((scores, dX), of_columns(X, k))
    assert_close(dX, dp.jacobian(dp.forward(params, X)[1], "Z")[:, k].T)
    x = X[:, 0]
    attributions = names["integrated_gradients"](params, x, k, 2000)
    nodes, shares = np.polynomial.legendre.leggauss(20)  # another rule of integration
    _, dX = of_columns(jnp.outer(x, jnp.asarray((nodes + 1) / 2)), k)
    assert_close(attributions, x * (dX @ (shares / 2)), 1e-6)
    (at_x, at_0), _ = of_columns(jnp.stack([x, 0 * x], axis=1), k)
    assert_close(attributions.sum(), at_x - at_0, 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("keep", [None, 2])
def test_the_rule_for_autodiff(keep):
    rule = recipe("Inside a model")["network"]
    params, X = network(0, [4, 6, 6, 6, 3], ("tanh", None), residual=True), columns(1, 4, 5)
    assert_close(rule(params, X), dp.predict(params, X))

    def J(network):  # it couples the examples
        return lambda params, X: jnp.sum(jax.nn.logsumexp(network(params, X), axis=1) ** 2)

    def one_by_one(params, X):
        return jax.vmap(lambda x: rule(params, x[:, None])[:, 0], in_axes=1, out_axes=1)(X)

    expected = jax.jit(jax.grad(J(dp.predict), argnums=(0, 1)))(params, X)
    for network_of in (rule, one_by_one):
        given = params if keep is None else dp.stack(params, keep)
        found = jax.jit(jax.grad(J(network_of), argnums=(0, 1)))(given, X)
        assert_close((dp.unstack(found[0]), found[1]), expected)
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(lambda X: rule(params, X), (X,), (X,))


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_a_penalty_on_dA_0():
    params, X = network(0, [4, 6, 1], ("identity", None)), columns(1, 4, 5)

    def penalty(dX):
        return jnp.mean((jnp.linalg.norm(dX, axis=0) - 1) ** 2)

    def by_hand(params):
        _, cache = dp.forward(params, X)
        return penalty(dp.input_signal(cache, dp.error_signals(cache, dA=jnp.ones((1, 5)))))

    def by_autodiff(params):
        return penalty(jax.grad(lambda X: jnp.sum(dp.forward(params, X)[0]))(X))

    found, expected = (jax.jit(jax.grad(f))(params) for f in (by_hand, by_autodiff))
    assert_close(found, expected)


@pytest.mark.parametrize("library", ["equinox", "flax"])
def test_code_for_other_libraries_prints_what_is_shown(library, capsys):
    ((code, output),) = (block for block in ELSEWHERE if library in block[0].partition("class")[0])
    module = pytest.importorskip(library)
    names = recipe("Inside a model")
    exec(SETUP, names)
    capsys.readouterr()
    exec(code, names)
    assert capsys.readouterr().out == output

    grad = module.filter_grad if library == "equinox" else names["nnx"].grad
    args = names["model"], names["images"][:7], names["labels"][:7]
    found = grad(names["cost"])(*args)
    names["network"] = dp.predict  # autodiff goes through it
    expected = grad(names["cost"])(*args)
    leaves = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    assert len(leaves) == 6  # the kernel and bias of the convolution, and two layers
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_every_block_for_other_libraries_is_run():
    assert len(ELSEWHERE) == PAGE.count("```py\n") == 2


def cells(svg):
    """Return the colors of the panels of a picture, (panels, 8, 8, 3)."""
    panels = re.findall(r'<g transform="translate[^>]*>(.*?)</g>', svg)
    found = np.zeros((len(panels), 8, 8, 3))
    for image, panel in zip(found, panels, strict=True):
        for color, paths in re.findall(r'fill="#(\w{6})" d="(.*?)"', panel):
            for column, row in re.findall(r"M(\d) (\d)h", paths):
                image[int(row), int(column)] = tuple(bytes.fromhex(color))
    return found


@pytest.mark.thorough
def test_the_picture_is_that_of_the_page():
    text = (DOCS / "_static" / "saliency.svg").read_text()
    drawn = runpy.run_path(str(DOCS / "draw_saliency.py"))["picture"]()
    assert cells(text).shape == (12, 8, 8, 3)
    np.testing.assert_allclose(cells(drawn), cells(text), atol=2 * 255 / 16)  # two of its levels
    assert re.sub("<path.*?/>", "", drawn) == re.sub("<path.*?/>", "", text)
    assert len(text) < 60_000
