"""`weight_mask`: decay and muon see W, and leave b, which has two axes too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import by_hand, problem

pytestmark = pytest.mark.usefixtures("optax_types")

KINDS = {
    "layers one by one": lambda p: p,
    "a stack": dp.stack,
}
INSIDE = {"by itself": lambda o: o, "in_backward": dp.in_backward}
of_W = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)


def network(kind):
    params, X, Y, _ = problem(2, [4, *[6] * 4, 3], 12, dtype=np.float32)
    return KINDS[kind](params), X, Y


def axes(params):
    return jax.tree.map(lambda is_W: of_W if is_W else None, dp.weight_mask(params))


def stepped(optimizer, params, grads):
    return jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])(params, grads)


def b_of(layers):
    return [np.asarray(layer.b) for layer in layers]


@pytest.mark.parametrize("kind", KINDS)
def test_true_for_W_and_false_for_b(kind):
    params, *_ = network(kind)
    mask = dp.weight_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert [(layer.W, layer.b) for layer in mask] == [(True, False)] * len(params)
    shapes = jax.eval_shape(lambda: params)
    assert jax.tree.leaves(dp.weight_mask(shapes)) == jax.tree.leaves(mask)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_decay_is_of_W_alone(kind, inside):
    """With a gradient of zero: W shrinks by the rate times the decay, b stays."""
    params, X, _ = network(kind)
    optimizer = INSIDE[inside](optax.adamw(0.1, weight_decay=0.5, mask=dp.weight_mask))
    got = stepped(optimizer, params, jax.tree.map(jnp.zeros_like, params))
    for update, layer in zip(got, params, strict=True):
        np.testing.assert_allclose(update.W, -0.05 * layer.W, rtol=1e-6)
        assert not update.b.any()
    Y = dp.predict(params, X)  # so dZ is 0
    fit = dp.fit(params, optimizer, X, Y, epochs=2, batch_size=12, key=jax.random.key(0))
    first, last = fit.params[0], params[0]
    assert abs(np.asarray(first.W)).sum() < 0.96 * abs(np.asarray(last.W)).sum()


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "form", ["partition", "a mask that is a tree", "axes", "axes in partition"]
)
def test_muon_is_of_W_and_the_step_of_b_is_adams(form, kind, inside):
    params, X, Y = network(kind)
    grads = by_hand(params, X, Y)
    adam = optax.adam(1e-3)
    parts = {
        "partition": lambda: optax.partition({True: optax.contrib.muon(0.02), False: adam}, dp.weight_mask),
        "a mask that is a tree": lambda: optax.partition({True: optax.contrib.muon(0.02), False: adam}, dp.weight_mask(params)),
        "axes": lambda: optax.contrib.muon(0.02, adam_learning_rate=1e-3, muon_weight_dimension_numbers=axes),
        "axes in partition": lambda: optax.partition({True: optax.contrib.muon(0.02, muon_weight_dimension_numbers=axes), False: adam}, dp.weight_mask),
    }  # fmt: skip
    optimizer = parts[form]()
    if inside == "in_backward" and form == "a mask that is a tree":
        with pytest.raises(ValueError, match="optimizer must"):
            dp.in_backward(optimizer).init(params)
        return
    got = stepped(INSIDE[inside](optimizer), params, grads)
    of_muon = optax.adam(1e-3, nesterov=True)
    expected = stepped(of_muon if form == "axes" else adam, params, grads)
    for found, due in zip(b_of(got), b_of(expected), strict=True):
        np.testing.assert_allclose(found, due, rtol=2e-5, atol=1e-8)
    if form.startswith("axes") or inside == "in_backward" or kind != "a stack":
        close_to_muon(got, grads, params, "axes" in form)


def close_to_muon(got, grads, params, named):
    """Of one matrix after the other; by muon's default the first axis of W is summed over."""
    muon = optax.contrib.muon(0.02)
    for update, g, p in zip(*map(dp.unstack, (got, grads, params)), strict=True):
        g_W, p_W = (g.W.T, p.W.T) if named else (g.W, p.W)
        due = stepped(muon, p_W, g_W)
        np.testing.assert_allclose(update.W, due.T if named else due, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_fit_with_muon(kind):
    params, X, Y = network(kind)
    optimizer = optax.contrib.muon(0.02, muon_weight_dimension_numbers=axes)
    fit = dp.fit(params, optimizer, X, Y, epochs=3, batch_size=6, key=jax.random.key(0))
    inside = dp.fit(params, dp.in_backward(optimizer), X, Y, epochs=3, batch_size=6, key=jax.random.key(0))  # fmt: skip
    assert fit.history["cost"][-1] < fit.history["cost"][0]
    for a, b in zip(*map(jax.tree.leaves, (fit.params, inside.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("given", [None, [], "params", ({"W": 1},), {"W": 1}])
def test_what_is_not_layers_is_refused(given):
    with pytest.raises(TypeError, match=r"params must be a tuple of dp\.Layer, got"):
        dp.weight_mask(given)
