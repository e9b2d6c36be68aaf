"""Many devices: the same numbers as on one, and no more exchanged than there must be.

Eight devices of the host stand for eight of their own: what XLA makes of the program is the same.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import deepprop as dp
from deepprop.training.epoch import train_epoch
from deepprop.training.shuffle import gathered, minibatches
from tests.problems import by_hand, exactly, problem, public_cost, thorough, worst_error
from tests.readers import read

SIZES = [16, 32, 64, 32, 8]  # 4 layers: two pairs of rows and columns
MESHES = [(8, 1), (1, 8), (4, 2), (2, 4)]


def placed(data, model, params, *arrays):
    mesh = dp.mesh(data=data, model=model)
    return dp.place(params, mesh), *dp.place_examples(mesh, *arrays)


def collectives(f, *args):
    """The kinds and operands of what the compiled program exchanges, each outside or in a loop."""
    text = jax.jit(f).lower(*args).compile().as_text()
    bodies = set(re.findall(r"body=(%[\w.-]+)", text))
    found, function = [], ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            function = line.split()[0]
        match = re.search(
            r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(",
            line,
        )
        if match:
            found.append((match[2], function in bodies, match[1]))
    return found


def kinds(f, *args):
    return sorted((kind, looped) for kind, looped, _ in collectives(f, *args))


def cost_and_gradient(params, X, Y, weights=None):
    _, cache = dp.forward(params, X)
    return dp.cost(cache, Y, weights), dp.manual_backward(cache, Y, weights)


def some(sizes=SIZES, m=64, **options):
    return problem(0, sizes, m, weighted=True, **options)


# The same gradients.


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("data", "model"), MESHES)
def test_gradients_are_those_of_one_device(data, model):
    params, X, Y, w = some()
    w = None if (data, model) == (2, 4) else w
    arrays = (X, Y) if w is None else (X, Y, w)
    found = jax.jit(cost_and_gradient)(*placed(data, model, params, *arrays))
    np.testing.assert_allclose(found[0], public_cost(params, X, Y, w), rtol=1e-14)
    assert worst_error(found[1], exactly(params, X, Y, w)) < 1e-13
    assert worst_error(found[1], jax.jit(by_hand)(params, X, Y, w)) < 1e-14


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("data", "model", "keep"),
    [thorough(8, 1, 1), (8, 1, 3), thorough(1, 8, 3), (4, 2, 3), (2, 4, 1)],
)
def test_gradients_of_stacks_are_those_of_one_device(data, model, keep):
    params, X, Y, w = some([16, *[32] * 7, 8])
    stacked = dp.stack(params, keep)
    found = jax.jit(by_hand)(*placed(data, model, stacked, X, Y, w))
    assert worst_error(dp.unstack(found), exactly(params, X, Y, w)) < 1e-13


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_what_reads_dZ_reads_it_on_a_mesh():
    params, X, Y, w = some()

    def everything(params, X, Y, w):
        return read(dp.forward(params, X)[1], Y, w)

    one = jax.jit(everything)(params, X, Y, w)
    many = jax.jit(everything)(*placed(4, 2, params, X, Y, w))
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


# What is exchanged.


@pytest.mark.parametrize("weighted", [False, True])
def test_data_parallel_is_one_all_reduce(weighted):
    params, X, Y, w = some(dtype=np.float32)
    arrays = (X, Y, w) if weighted else (X, Y)
    *before, (kind, looped, what) = collectives(cost_and_gradient, *placed(8, 1, params, *arrays))
    assert (kind, looped) == ("all-reduce", False)
    # The largest weight, by which all are divided, of J and of the gradient.
    assert before == [("all-reduce", False, "(f32[], f32[])")] * weighted
    for layer in params:  # the whole gradient, and J
        n, n_below = layer.W.shape
        assert f"[{n},{n_below}]" in what or f"[{n_below},{n}]" in what
    assert "f32[]" in what


@pytest.mark.ordinary(2)
@pytest.mark.parametrize(("L", "exchanges"), [(1, 0), (2, 1), (3, 1), (4, 3), (5, 3), (6, 5)])
def test_model_parallel_is_one_all_reduce_for_two_layers_each_way(L, exchanges):
    """L // 2 up; as many down, but for the first pair, below which nothing is to be learned."""
    params, X, Y, _ = some([16, *[32] * (L - 1), 8], dtype=np.float32)
    found = kinds(cost_and_gradient, *placed(1, 8, params, X, Y))
    assert found == [("all-reduce", False)] * exchanges


def test_residual_layers_gather_A_too_where_units_are_divided():
    """What is added lies otherwise than what it is added to, in every second layer."""
    params = dp.init_params(jax.random.key(0), [16, 16, 16, 16, 8], residual=True)
    X, Y = np.ones((16, 64), np.float32), np.ones((8, 64), np.float32)
    found = [kind for kind, _ in kinds(cost_and_gradient, *placed(1, 8, params, X, Y))]
    assert found.count("all-reduce") == 3
    assert 0 < found.count("all-gather") <= 2 * 3  # three of the layers are residual


@pytest.mark.parametrize(("data", "model"), [(4, 2), (2, 4)])
def test_both_are_the_sum_of_the_two(data, model):
    params, X, Y, _ = some(dtype=np.float32)
    found = kinds(cost_and_gradient, *placed(data, model, params, X, Y))
    assert found == [("all-reduce", False)] * 4


def test_data_parallel_stacks_reduce_each_layer_as_soon_as_it_is_there():
    params, X, Y, w = some([16, *[32] * 7, 8], dtype=np.float32)
    found = kinds(cost_and_gradient, *placed(8, 1, dp.stack(params), X, Y))
    assert found == [("all-reduce", False), ("all-reduce", True)]  # the rest, and a layer's
    found = kinds(cost_and_gradient, *placed(8, 1, dp.stack(params), X, Y, w))
    # Before these the largest weight and sum_i w_i.
    assert found == [("all-reduce", False)] * 3 + [("all-reduce", True)]


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_data_parallel_adds_a_stack_up_once(keep, weighted):
    params, X, Y, w = some([16, *[32] * 7, 8])
    w[8:16] = 0  # all examples of one device
    w = w if weighted else None
    stacked = dp.stack(params, keep)

    def once(mesh):
        backward = dp.data_parallel(mesh)

        def run(params, X, Y, w=None):
            _, cache = dp.forward(params, X)
            return dp.cost(cache, Y, w), backward(cache, Y, w)

        return run

    arrays = (X, Y) if w is None else (X, Y, w)
    args = placed(8, 1, stacked, *arrays)
    # With weights J has their largest first; the backward pass has not.
    assert kinds(once(dp.mesh(data=8)), *args) == [("all-reduce", False)] * (1 + weighted)
    _, found = jax.jit(once(dp.mesh(data=8)))(*args)
    assert worst_error(dp.unstack(found), exactly(params, X, Y, w)) < 1e-13
    _, found = jax.jit(once(dp.mesh(data=4, model=2)))(*placed(4, 2, stacked, *arrays))
    assert worst_error(dp.unstack(found), exactly(params, X, Y, w)) < 1e-13


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_data_parallel_of_narrow_parameters_and_of_no_weight_at_all(total):
    """Added up in float32: bfloat16's 8 bits would round each of 8 sums."""
    params, X, Y, w = some([16, *[32] * 3, 8], dtype=np.float32)
    params, X, Y = jax.tree.map(lambda P: P.astype(jnp.bfloat16), (params, X, Y))
    w = (w * total).astype(np.float32)
    mesh = dp.mesh(data=8)
    run = jax.jit(lambda p, X, Y, w: dp.data_parallel(mesh)(dp.forward(p, X)[1], Y, w))
    found = run(*placed(8, 1, params, X, Y, w))
    one = jax.jit(by_hand)(params, X, Y, w)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = (np.asarray(P, np.float32) for P in (a, b))
        # Each device's mean and the whole are rounded once to 8 bits.
        np.testing.assert_allclose(a, b, rtol=2**-8, atol=2**-8 * np.abs(b).max())


def test_model_parallel_stacks_gather_A_twice_and_reduce_dA_once_a_layer():
    """A above the layer, and for dW below it, as each device keeps its rows of A alone; and dA."""
    params, X, Y, _ = some([16, *[32] * 7, 8], dtype=np.float32)
    found = kinds(cost_and_gradient, *placed(1, 8, dp.stack(params), X, Y))
    assert [kind for kind, looped in found if looped] == ["all-gather", "all-gather", "all-reduce"]


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_of_fit_exchanges_the_gradient_alone(weighted):
    """Minibatches are gathered where their examples lie."""
    params, X, Y, w = some(m=128, dtype=np.float32)
    params, X, Y, w = placed(8, 1, params, X, Y, w)
    optimizer = optax.sgd(0.1)
    program = train_epoch.lower(
        params, optimizer.init(params), jax.random.key(0), 1, X.T, Y.T, w if weighted else None,
        optimizer=optimizer, batch_size=48, shards=8,
    ).compile()  # fmt: skip
    lines = [line for line in program.as_text().splitlines() if re.search(r"= .* all-\w+\(", line)]
    steps = [
        line for line in lines if "pred[]" not in line
    ]  # whether the shuffle is done: one bool
    assert len(steps) == 1, lines
    assert "all-reduce" in steps[0]
    assert "while/body" in steps[0]
    assert len(lines) == 2


# fit.


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
@pytest.mark.parametrize(  # 48: the last minibatch is filled up
    ("data", "model", "batch_size"),
    [thorough(8, 1, 32), (8, 1, 48), thorough(1, 8, 48), (4, 2, 48), (2, 4, 32)],
)
def test_fit_goes_the_way_of_one_device(data, model, batch_size):
    params, X, Y, w = some(m=128)
    options = {"epochs": 3, "batch_size": batch_size, "key": jax.random.key(1)}
    one = dp.fit(params, optax.adam(0.01), X, Y, weights=w, shards=data, **options)
    params, X, Y, w = placed(data, model, params, X, Y, w)
    before, optimizer = train_epoch._cache_size(), optax.adam(0.01)
    many = dp.fit(params, optimizer, X, Y, weights=w, **options)
    assert train_epoch._cache_size() == before + 1  # what an epoch gives lies as it did before it
    np.testing.assert_allclose(many.history["cost"], one.history["cost"], rtol=1e-12)
    assert worst_error(many.params, one.params) < 1e-11
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(many.params), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
@pytest.mark.parametrize("kind", ["in_backward", thorough("stacks"), "batches", "replicated"])
def test_other_ways_to_train_go_the_way_of_one_device(kind):
    params, X, Y, _ = some([16, *[32] * 4, 8], m=128)
    params = params if kind == "replicated" else dp.stack(params, 2)
    optimizer = dp.in_backward(optax.adam(0.01)) if kind == "in_backward" else optax.adam(0.01)

    def run(params, X, Y, shards):
        if kind == "batches":
            return dp.fit_batches(params, optimizer, [(X, Y)] * 3, epochs=2)
        options = {"epochs": 2, "batch_size": 32, "key": jax.random.key(1)}
        return dp.fit(params, optimizer, X, Y, shards=shards, **options)

    one = run(params, X, Y, 1 if kind == "replicated" else 4)
    if kind == "replicated":  # every device has all examples: the order is that of one device
        mesh = dp.mesh(data=4, model=2)
        X, Y = (jax.device_put(P, NamedSharding(mesh, PartitionSpec())) for P in (X, Y))
        many = run(dp.place(params, mesh), X, Y, None)
    else:
        before = train_epoch._cache_size()
        many = run(*placed(4, 2, params, X, Y), None)
        assert train_epoch._cache_size() == before + (kind != "batches")
    np.testing.assert_allclose(many.history["cost"], one.history["cost"], rtol=1e-12)
    assert worst_error(many.params, one.params) < 1e-11


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path):
    params, X, Y, _ = some(m=128)
    options = {"batch_size": 32, "key": jax.random.key(1), "shards": 8}
    straight = dp.fit(params, optax.adam(0.01), X, Y, epochs=4, **options)
    for epochs, (data, model) in ((1, (8, 1)), (2, (2, 4))):
        part = dp.fit(
            *_then(placed(data, model, params, X, Y), optax.adam(0.01)),
            epochs=epochs, checkpoint=tmp_path, **options,
        )  # fmt: skip
        assert len(part.history["cost"]) == epochs
    last = dp.fit(params, optax.adam(0.01), X, Y, epochs=4, checkpoint=tmp_path, **options)
    np.testing.assert_allclose(last.history["cost"], straight.history["cost"], rtol=1e-12)
    assert worst_error(last.params, straight.params) < 1e-11


@pytest.mark.thorough
@pytest.mark.usefixtures("x64", "optax_types")
def test_a_state_of_one_mesh_goes_on_on_another():
    params, X, Y, _ = some(m=128)
    options = {"epochs": 1, "batch_size": 32, "key": jax.random.key(1), "shards": 8}
    optimizer = optax.adam(0.01)

    def gone_on(first, second):
        part = dp.fit(*_then(first(params), optimizer), **options)
        on_host = jax.tree.map(np.asarray, part.params)
        return dp.fit(*_then(second(on_host), optimizer), state=part.state, **options)

    one = gone_on(lambda p: (p, X, Y), lambda p: (p, X, Y))
    many = gone_on(lambda p: placed(8, 1, p, X, Y), lambda p: placed(2, 2, p, X, Y))
    assert worst_error(many.params, one.params) < 1e-11


def _then(arrays, optimizer):
    params, *examples = arrays
    return params, optimizer, *examples


def test_every_shard_is_shuffled_apart_and_gives_its_share():
    index, counted = minibatches(jax.random.key(0), 40, 12, shards=4)
    assert index.shape == (4, 4, 3)  # steps, shards, examples
    X = jnp.arange(40)[:, None]
    seen = [np.asarray(gathered(X, i)[c, 0]) for i, c in zip(index, counted, strict=True)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(40))
    for step in seen[:-1]:
        assert np.bincount(step // 10).tolist() == [3, 3, 3, 3]
    orders = {tuple((index[:, s].ravel()[:10]).tolist()) for s in range(4)}
    assert len(orders) == 4


# Bad input.


def test_bad_input_is_named():
    params, X, Y, _ = some(dtype=np.float32)
    mesh, explicit = dp.mesh(data=4, model=2), jax.make_mesh((8,), ("data",))
    key = jax.random.key(0)
    for f, message in (
        (lambda: dp.mesh(data=3, model=3), "at most the 8 devices that there are, got data 3 times model 3"),
        (lambda: dp.mesh(model=3), "model must divide the 8 devices where data is None, got 3"),
        (lambda: dp.mesh(model=0), "model must be above 0, got 0"),
        (lambda: dp.fit(dp.place(params, mesh), optax.sgd(0.1), jax.device_put(X, jax.devices()[0]), Y, epochs=1, batch_size=8, key=key), "X must be on the 8 devices that params are on"),
        (lambda: dp.place(params, jax.make_mesh((8,), ("x",))), r"axis \"model\", got \('x',\)"),
        (lambda: dp.place_examples(explicit, X), "AxisType.Auto, as deepprop.mesh makes them"),
        (lambda: dp.place_examples(mesh, X[:, :6]), r"arrays\[0\] must have a multiple of 4 examples.* got shape \(16, 6\)"),
        (lambda: dp.place_examples(mesh, X, 3.0), r"arrays\[1\] must have a multiple of 4"),
        (lambda: dp.place(dp.init_params(key, [16, 31, 8]), mesh), r"W\[1\] must have a multiple of 2 units"),
        (lambda: dp.fit(params, optax.sgd(0.1), X, Y, epochs=1, batch_size=6, key=key, shards=4), "batch_size must be a multiple of the 4 shards, got 6"),
        (lambda: dp.fit(params, optax.sgd(0.1), X, Y, epochs=1, batch_size=6, key=key, shards=3), "the examples must be a multiple of the 3 shards, got 64"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            f()
    for f in (lambda: dp.place(params, 8), lambda: dp.place_examples("data", X)):
        with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh, got"):
            f()
