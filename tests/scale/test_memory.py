"""The plan of a step's memory against XLA's own count of the compiled step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

import deepprop as dp
from tests.problems import by_hand

ADAM, SGD = optax.adam(1e-3), optax.sgd(0.1)
OPTIMIZERS = {
    "none": lambda: None,
    "sgd": lambda: SGD,
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: ADAM,
    "sgd in backward": lambda: dp.in_backward(SGD),
    "adam in backward": lambda: dp.in_backward(ADAM),
}


def network(sizes, hidden="tanh", keep=1, stack=True, **options):
    """The shapes and types of a network."""

    def make():
        params = dp.init_params(jax.random.key(0), sizes, hidden=hidden, **options)
        return dp.stack(params, keep) if stack else params

    return jax.eval_shape(make)


def data(params, m):
    shapes = (params[0].W.shape[-1], m), (params[-1].W.shape[0], m)
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def xla(params, m, optimizer):
    """XLA's temporary bytes, and those with arguments and outputs that are not aliased."""
    if optimizer is None:
        lowered = jax.jit(by_hand).lower(params, *data(params, m))
    else:
        state = jax.eval_shape(optimizer.init, params)
        of_dropout = None, jax.eval_shape(lambda: jax.random.key(0))
        lowered = dp.train_step(optimizer).lower(params, state, *data(params, m), *of_dropout)
    count = lowered.compile().memory_analysis()
    temporary = count.temp_size_in_bytes
    outside = count.argument_size_in_bytes + count.output_size_in_bytes
    return temporary, temporary + outside - count.alias_size_in_bytes


def planned(params, m, optimizer):
    plan = dp.memory_plan(params, m, optimizer)
    temporary = plan.activations + plan.working + (plan.gradients if optimizer is not None else 0)
    return temporary, plan.total


HUNDRED = [128] * 101 + [10]
CASES = [
    # sizes, m, what is not usual, optimizer
    (HUNDRED, 64, {}, "none"),
    (HUNDRED, 64, {"keep": 2}, "none"),
    (HUNDRED, 64, {"keep": 16, "residual": True}, "none"),
    (HUNDRED, 256, {"hidden": "elu"}, "none"),
    ([128] * 401 + [10], 64, {"hidden": "gelu", "keep": "sqrt"}, "none"),
    ([512] * 9 + [10], 512, {"hidden": "relu"}, "none"),
    ([64] * 51 + [10], 512, {"compute_dtype": "float16", "keep": 4}, "none"),
    ([64] * 100 + [10], 256, {"hidden": "relu"}, "adam"),
    ([64] * 1001 + [10], 32, {"keep": "sqrt"}, "adam"),
    ([784, *[64] * 51, 10], 32, {"hidden": "relu", "keep": 3}, "momentum"),
    ([64] * 51 + [256] * 51 + [10], 64, {}, "adam"),
    ([64] * 100 + [10], 256, {"hidden": "gelu", "residual": True, "keep": 2}, "sgd"),
    (HUNDRED, 64, {"hidden": "gelu"}, "sgd in backward"),
    (HUNDRED, 64, {"normalize": "layer", "keep": 4}, "adam"),
    (HUNDRED, 64, {"dropout": 0.2, "normalize": "rms", "residual": True}, "sgd"),
    (HUNDRED, 128, {"dropout": 0.2, "keep": 16}, "adam in backward"),
    (HUNDRED, 64, {"keep": "sqrt"}, "adam in backward"),
    ([512] * 17 + [10], 32, {"hidden": "relu", "keep": 4, "residual": True}, "adam in backward"),
]


@pytest.mark.ordinary(2)
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize(("sizes", "m", "options", "optimizer"), CASES)
def test_within_a_tenth_of_xla(sizes, m, options, optimizer):
    params, optimizer = network(sizes, **options), OPTIMIZERS[optimizer]()
    due, got = xla(params, m, optimizer), planned(params, m, optimizer)
    for what, g, d in zip(("temporary", "total"), got, due, strict=True):
        assert 0.9 <= g / d <= 1.1, f"{what}: {g} planned, {d} by XLA"


def test_arrays_and_their_shapes_have_the_same_plan():
    shapes = network([3, *[8] * 9, 2], keep=2)
    arrays = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    assert dp.memory_plan(arrays, 5, ADAM) == dp.memory_plan(shapes, 5, ADAM)


def test_of_a_network_that_no_machine_holds():
    plan = dp.memory_plan(network([2**16] * 1001 + [10]), 2**16, ADAM)
    assert plan.state == pytest.approx(2 * plan.parameters)
    assert plan.parameters == 4 * (1000 * (2**32 + 2**16) + 10 * (2**16 + 1))


@pytest.mark.parametrize(
    ("hidden", "residual", "arrays"),
    [
        ("identity", False, 1), ("sigmoid", False, 1), ("tanh", False, 1), ("relu", False, 1),
        ("leaky_relu(0.2)", False, 1), ("softplus", False, 1), ("elu", False, 2),
        ("silu", False, 2), ("gelu", False, 2), ("tanh", True, 2), ("identity", True, 1),
        (dp.Activation("sine", jnp.sin, lambda Z, A: jnp.cos(Z)), False, 2),
        (dp.Activation("root", jnp.sqrt, lambda Z, A: 0.5 / A), False, 1),
    ],
)  # fmt: skip
def test_z_is_counted_where_the_slope_reads_it(hidden, residual, arrays):
    params = network([8] * 22 + [3], hidden, residual=residual)
    one = 8 * 5 * 4
    assert dp.memory_plan(params, 5).activations == (1 + arrays * 21) * one


@pytest.mark.usefixtures("optax_types")
def test_gradients_are_alive_only_without_in_backward():
    params = network([784, *[64] * 51, 10])
    of = {name: dp.memory_plan(params, 32, o()) for name, o in OPTIMIZERS.items()}
    assert of["adam in backward"].gradients == of["sgd in backward"].gradients == 0
    assert of["none"].gradients == of["none"].parameters == of["sgd"].parameters
    assert of["adam"].gradients < of["none"].gradients  # layer 1's comes last
    assert of["sgd"].state == of["none"].state == 0


def test_products_in_a_narrow_type_keep_half():
    plans = [dp.memory_plan(network([64] * 51, compute_dtype=p), 64) for p in (None, "bfloat16")]
    ratio = plans[1].activations / plans[0].activations
    assert 0.5 <= ratio < 0.52
    assert plans[0].gradients == plans[1].gradients


def test_the_table():
    plan = dp.MemoryPlan(1_000_000, 2_000_000, 30_000, 1_000_000, 1_234_000_000, 7_000_000)
    lines = str(plan).splitlines()
    assert len(lines) == 7
    assert lines[0] == "parameters             1.00 MB"
    assert lines[4] == "Z and A            1,234.00 MB"
    assert lines[-1] == "total              1,245.03 MB"
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be above 0, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": True}, TypeError, "batch_size must be a whole number, got True"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be an optax.GradientTransformation"),
        ({"params": [1]}, TypeError, "params must be a tuple of dp.Layer"),
    ],
)
def test_bad_input(arguments, error, text):
    good = {"params": network([3, 4, 2]), "batch_size": 4, "optimizer": SGD}
    with pytest.raises(error, match=text):
        dp.memory_plan(**{**good, **arguments})


def test_params_that_do_not_fit():
    first, last = network([3, 4, 2])
    wrong = replace(last, W=jax.ShapeDtypeStruct((2, 5), jnp.float32))
    with pytest.raises(ValueError, match=r"W\[2\] must have shape"):
        dp.memory_plan((first, wrong), 4)
