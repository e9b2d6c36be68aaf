"""`in_backward` against masks and labels that choose among the layers, by whatever they choose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import by_hand, problem

pytestmark = pytest.mark.usefixtures("optax_types")

SIZES = [
    5,
    12,
    7,
    7,
    7,
    3,
]  # W[1] and W[2] are the largest, and of equal shape turned; 3 and 4 equal


def network(kind="one by one", sizes=SIZES):
    params, X, Y, _ = problem(3, sizes, 8, dtype=np.float32)
    return (dp.stack(params) if kind == "a stack" else params), X, Y


def mask_of(choose):
    """True where `choose` of a layer's number, path, W and all layers says so; for W and b."""

    def mask(params):
        return tuple(jax.tree.map(lambda leaf, l=l: bool(choose(l, leaf, params)), layer) for l, layer in enumerate(params))  # fmt: skip

    return mask


def by_path(*ends):
    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.tree_util.keystr(path).endswith(ends), params
        )

    return labels


def tree_of(mask):
    return mask(network()[0])


CHOICES = {  # a mask, and whether it is refused for SIZES
    **{f"index {i}": (mask_of(lambda l, leaf, params, i=i: l == i), True) for i in range(5)},
    "the last layer": (mask_of(lambda l, leaf, params: l == len(params) - 1), True),
    "all but the last": (mask_of(lambda l, leaf, params: l < len(params) - 1), True),
    "every second": (mask_of(lambda l, leaf, params: l % 2 == 1), True),
    "from the third": (mask_of(lambda l, leaf, params: l >= 2), True),
    "an index that is not there": (mask_of(lambda l, leaf, params: l == 9), False),
    "the path [2].W": (by_path("[2].W"), True),
    "the path [4].b": (by_path("[4].b"), True),
    "the path .W": (by_path(".W"), False),
    "the path .b": (by_path(".b"), False),
    "weight_mask": (dp.weight_mask, False),
    "the largest array": (mask_of(lambda l, leaf, params: leaf.size == max(p.size for p in jax.tree.leaves(params))), True),
    "the widest layer": (mask_of(lambda l, leaf, params: leaf.shape[-2] == max(p.W.shape[-2] for p in params)), True),
    "wide as the input": (mask_of(lambda l, leaf, params: leaf.shape[-1] == params[0].W.shape[-1]), True),
    "the shape of the one before": (mask_of(lambda l, leaf, params: l and params[l].W.shape == params[l - 1].W.shape), True),
    "more columns than one": (mask_of(lambda l, leaf, params: leaf.shape[-1] > 1), False),
    "square": (mask_of(lambda l, leaf, params: leaf.shape[-1] == leaf.shape[-2]), False),
    "more than 40 numbers": (mask_of(lambda l, leaf, params: leaf.size > 40), False),
    "ndim": (mask_of(lambda l, leaf, params: leaf.ndim > 1), False),
    "True": (True, False),
    "a given tree": (tree_of(mask_of(lambda l, leaf, params: l == 2)), True),
    "a given tree of W": (tree_of(dp.weight_mask), True),
}  # fmt: skip
USES = {
    "masked": lambda mask: optax.chain(optax.sgd(0.1), optax.masked(optax.scale(0.5), mask)),
    "decay": lambda mask: optax.adamw(0.01, weight_decay=1e-4, mask=mask),
    "partition": lambda mask: optax.partition(
        {True: optax.adam(0.01), False: optax.sgd(0.1, momentum=0.9)},
        mask if callable(mask) else lambda params: jax.tree.map(lambda _: mask, params),
    ),
}
backward = jax.jit(by_hand)
REFUSED = "optimizer must (treat all layers alike|be one for each layer alone|treat each layer on)"


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", CHOICES)
def test_refused_or_the_optimizer_by_itself(name, use):
    mask, refused = CHOICES[name]
    if use == "partition" and isinstance(mask, tuple):
        optimizer = optax.partition({True: optax.adam(0.01), False: optax.sgd(0.1)}, mask)
    else:
        optimizer = USES[use](mask)
    params, X, Y = network()
    if refused:
        with pytest.raises(ValueError, match=REFUSED):
            dp.in_backward(optimizer).init(params)
        return
    inside = dp.in_backward(optimizer)
    states, found = [inside.init(params), optimizer.init(params)], [params, params]
    for _ in range(2):
        for i, o in enumerate((inside, optimizer)):
            updates, states[i] = o.update(backward(found[i], X, Y), states[i], found[i])
            found[i] = optax.apply_updates(found[i], updates)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["one by one", "a stack"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_index_is_noticed_by_every_door(kind, index):
    params, X, Y = network(kind)
    optimizer = optax.masked(optax.scale(0.1), mask_of(lambda l, leaf, params: l == index))
    if index < 2:
        with pytest.raises(ValueError, match="optimizer must treat all layers alike"):
            dp.in_backward(optimizer)
        return
    inside = dp.in_backward(optimizer)
    with pytest.raises(ValueError, match="updates layer 3 of these params differently"):
        dp.fit(params, inside, X, Y, epochs=1, batch_size=8, key=jax.random.key(0))
    with pytest.raises(ValueError, match="updates layer 3 of these params differently"):
        dp.fit_batches(params, inside, [(X, Y)], epochs=1)


def test_the_index_of_one_of_many_layers():
    params = network(sizes=[4, *[6] * 100, 3])[0]
    mask = mask_of(lambda l, leaf, params: l == 77)
    with pytest.raises(ValueError, match="updates layer 78 of these params differently"):
        dp.in_backward(optax.masked(optax.scale(0.1), mask)).init(params)


@pytest.mark.thorough
def test_it_takes_no_memory_of_the_size_of_the_parameters():
    """Params that are only shapes, of a petabyte."""
    n = 10**7
    make = lambda n, below, g: dp.Layer(jax.ShapeDtypeStruct((n, below), jnp.float32), jax.ShapeDtypeStruct((n, 1), jnp.float32), g)  # noqa: E731 # fmt: skip
    params = (make(n, n, dp.activation("tanh")), make(n, n, dp.activation("tanh")), make(5, n, dp.output("softmax")))  # fmt: skip
    from deepprop.optimizers.independence import check_each_alone

    check_each_alone(optax.with_extra_args_support(optax.adam(0.1)), params)
    with pytest.raises(ValueError, match="updates layer 2 of these params differently"):
        check_each_alone(optax.with_extra_args_support(optax.masked(optax.scale(0.1), mask_of(lambda l, leaf, p: l == 1))), params)  # fmt: skip


@pytest.mark.thorough
def test_a_sweeps_numbers_are_not_known_and_so_not_compared():
    params, X, Y = network()
    fit = dp.fit_ensemble(
        params, lambda learning_rate: dp.in_backward(optax.adam(learning_rate)), X, Y, epochs=1, batch_size=8,
        key=jax.random.key(0), sweep={"learning_rate": [0.1, 0.2]},
    )  # fmt: skip
    assert fit.history["cost"].shape == (1, 2)


@pytest.mark.parametrize("key", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("raw", [True, False])
def test_noise_is_refused_with_keys_of_every_generator(key, raw):
    make = jax.random.PRNGKey if raw else jax.random.key
    noise = optax.GradientTransformation(lambda params: make(0, impl=key), lambda g, s, p=None: (g, s))  # fmt: skip
    with pytest.raises(ValueError, match="must not draw random numbers"):
        dp.in_backward(noise)
