"""A backward pass of one's own: pairs are taken, and what does not fit is told in words."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import problem


def pairs(grads):
    return tuple((g.W, g.b) for g in grads)


def one(grads, l, **changed):
    return (*grads[: l - 1], replace(grads[l - 1], **changed), *grads[l:])


RIGHT = {
    "pairs": pairs,
    "lists": lambda g: [list(pair) for pair in pairs(g)],
    "a list of layers": list,
    "some layers": lambda g: (g[0], *pairs(g)[1:]),
    "other static data": lambda g: tuple(replace(q, activation=dp.activation("relu")) for q in g),
}
LIKE = "backward must return layers like params"
WRONG = {
    "None": (lambda g: None, TypeError, f"{LIKE}, or pairs (dW, db): got None"),
    "one array": (lambda g: g[0].W, TypeError, f"{LIKE}, or pairs (dW, db): got a "),
    "a dict": (lambda g: {"dW": g[0].W}, TypeError, f"{LIKE}, or pairs (dW, db): got a dict"),
    "one layer": (lambda g: g[0], TypeError, f"{LIKE}, or pairs (dW, db): got a Layer"),
    "too few": (lambda g: g[1:], ValueError, f"{LIKE}: got a tuple of 1 entries for 2 layers"),
    "too many": (lambda g: [*pairs(g), (1, 2)], ValueError, f"{LIKE}: got a list of 3 entries for 2 layers"),
    "flat": (lambda g: tuple(jax.tree.leaves(g)), ValueError, f"{LIKE}: got a tuple of 4 entries for 2 layers"),
    "with the cost": (lambda g: (1.0, g), TypeError, f"{LIKE}, or pairs (dW, db): got a float for layer 1"),
    "dW alone": (lambda g: tuple(q.W for q in g), TypeError, f"{LIKE}, or pairs (dW, db): got a "),
    "three in a layer": (lambda g: ((g[0].W, g[0].b, g[0].b), g[1]), ValueError, f"{LIKE}, or pairs (dW, db): got a tuple of 3 entries for layer 1"),
    "turned": (lambda g: one(g, 2, W=g[1].W.T), ValueError, f"{LIKE}: dW[2] has shape (4, 2), should have (2, 4)"),
    "b flat": (lambda g: one(g, 1, b=g[0].b[:, 0]), ValueError, f"{LIKE}: db[1] has shape (4,), should have (4, 1)"),
    "b first": (lambda g: tuple((b, W) for W, b in pairs(g)), ValueError, f"{LIKE}: dW[1] has shape (4, 1), should have (4, 3)"),
    "None for b": (lambda g: one(g, 2, b=None), TypeError, f"{LIKE}: db[2] is None, should be an array"),
    "a number for W": (lambda g: one(g, 1, W=0.0), TypeError, f"{LIKE}: dW[1] is a float, should be an array"),
    "whole numbers": (lambda g: one(g, 1, W=jnp.zeros(g[0].W.shape, int)), TypeError, f"{LIKE}: dW[1] has dtype int"),
    "complex": (lambda g: one(g, 2, W=jnp.asarray(g[1].W, complex)), TypeError, f"{LIKE}: dW[2] has dtype complex"),
}  # fmt: skip


def doors(backward):
    params, X, Y, _ = problem(6, [3, 4, 2], 5, dtype=np.float32)
    sgd, key = optax.sgd(0.1), jax.random.key(0)
    common = {"epochs": 1, "batch_size": 5, "key": key, "backward": backward}
    copy = jax.tree.map(jnp.copy, params)
    return {
        "check_gradients": lambda: dp.check_gradients(params, X, Y, backward=backward),
        "train_step": lambda: dp.train_step(sgd, backward)(copy, sgd.init(copy), X, Y),
        "fit": lambda: dp.fit(params, sgd, X, Y, **common).params,
        "fit_batches": lambda: dp.fit_batches(params, sgd, [(X, Y)], epochs=1, backward=backward).params,
        "fit_ensemble": lambda: dp.fit_ensemble(params, lambda learning_rate: sgd, X, Y, sweep={"learning_rate": [0.1]}, **common),
    }  # fmt: skip


DOORS = list(doors(None))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["None", "too few", "turned", "whole numbers"])
def test_each_door_tells_what_does_not_fit(door, name):
    change, kind, message = WRONG[name]
    with pytest.raises(kind) as caught:
        doors(lambda *args: change(dp.manual_backward(*args)))[door]()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_in_words(name):
    change, kind, message = WRONG[name]
    with pytest.raises(kind) as caught:
        doors(lambda *args: change(dp.manual_backward(*args)))["check_gradients"]()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", RIGHT)
def test_pairs_are_taken(name):
    backward = lambda *args: RIGHT[name](dp.manual_backward(*args))  # noqa: E731
    got = doors(backward)
    assert got["check_gradients"]().checked == 26
    expected = doors(dp.manual_backward)["fit"]()
    for a, b in zip(*map(jax.tree.leaves, (got["fit"](), expected)), strict=True):
        assert np.array_equal(a, b)


def test_a_mistake_in_plain_numpy_pairs_is_found():
    params, X, Y, _ = problem(6, [3, 4, 2], 5, dtype=np.float32)

    def backward(cache, Y, weights):
        (dW, db), last = pairs(jax.tree.map(np.asarray, dp.manual_backward(cache, Y, weights)))
        return (1.01 * dW, db), last

    with pytest.raises(dp.GradientError, match=r"the gradient is wrong: at W\[1\]"):
        dp.check_gradients(params, X, Y, backward=backward)


def test_a_stack_counts_as_one():
    params, X, Y, _ = problem(6, [3, 4, 4, 4, 2], 5, dtype=np.float32)
    stacked = dp.stack(params)
    assert dp.check_gradients(stacked, X, Y, backward=lambda *a: pairs(dp.manual_backward(*a))).ok
    with pytest.raises(ValueError, match="got a tuple of 4 entries for 3 layers, a stack counted"):
        dp.check_gradients(stacked, X, Y, backward=lambda *a: dp.unstack(dp.manual_backward(*a)))
