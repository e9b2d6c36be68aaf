"""What XLA makes of the passes: counted operations and bytes, and lowering for every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.activations import ACTIVATIONS
from tests.problems import autodiff, by_hand, problem

ARCHITECTURES = {
    "tiny": ([30, 16, 1], 32, "relu", "sigmoid"),
    "small": ([784, 32, 10], 32, "relu", "softmax"),
    "medium": ([784, 256, 128, 10], 128, "relu", "softmax"),
    "large": ([512, 512, 512, 512, 10], 256, "relu", "softmax"),
    "deep": ([64] * 24 + [10], 64, "tanh", "softmax"),
    "autoencoder": ([64, 32, 8, 32, 64], 128, "sigmoid", "sigmoid"),
    "regression": ([20, 64, 64, 1], 100, "gelu", "identity"),
    "counts": ([20, 64, 3], 100, "softplus", "exp"),
    "wide batch": ([32, 64, 8], 2048, "silu", "tanh+huber"),
    "linear": ([100, 10], 64, "relu", "softmax"),
    "elu": ([40, 50, 50, 10], 64, "elu", "softmax"),
}


def compiled(f, *args):
    """XLA's counts: arithmetic operations, transcendental functions, temporary bytes."""
    program = jax.jit(f).lower(*args).compile()
    cost = program.cost_analysis()
    return cost["flops"], cost["transcendentals"], program.memory_analysis().temp_size_in_bytes


# jax.grad of medium's relu keeps its slopes as bits and lets A[1] go early; in regression some
# releases of XLA hold on to a part of erfc, which the two passes share.
ONE_ARRAY_MORE = ("medium", "regression")


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_more_operations_and_bytes_than_jax_grad(name):
    """The gradient by hand, compiled, against jax.grad of the public cost, compiled.

    The page has 1/m in dW = 1/m dZ A^T, so that a column of dZ is one example's. Autodiff has it in
    the loss, at (n_L, m). So one division a parameter is counted beyond jax.grad's operations here,
    at most. And the exponential of softplus, elu and silu and the erfc of gelu may be recomputed
    for g', instead of storing another array: at most one evaluation of g.
    """
    sizes, m, hidden, _ = ARCHITECTURES[name]
    args = problem(0, *ARCHITECTURES[name], dtype=np.float32)[:3]
    flops, transcendentals, temporary = compiled(by_hand, *args)
    flops_autodiff, transcendentals_autodiff, temporary_autodiff = compiled(autodiff, *args)
    divisions = sum(leaf.size for leaf in jax.tree.leaves(args[0]))
    anew, anew_transcendentals = 0, 0
    if hidden in ("softplus", "gelu", "elu", "silu"):
        Z = jnp.zeros((sum(sizes[1:-1]), m))
        anew, anew_transcendentals, _ = compiled(dp.activation(hidden).g, Z)
    assert flops <= flops_autodiff + divisions + anew
    assert transcendentals <= transcendentals_autodiff + anew_transcendentals
    one_array = max(sizes[1:-1], default=0) * m * 4 if name in ONE_ARRAY_MORE else 0
    assert temporary <= temporary_autodiff + one_array


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("hidden", list(ACTIVATIONS))
def test_in_a_training_loop_no_matrix_is_turned_around(hidden):
    """Minibatches come as rows: from there on XLA copies none into another order (see `rows`)."""
    params, X, Y, _ = problem(0, [40, 50, 50, 10], 64, hidden, "softmax", dtype=np.float32)
    program = jax.jit(lambda params, X, Y: by_hand(params, X.T, Y.T)).lower(params, X.T, Y.T)
    text = program.compile().as_text()
    assert "f32[64,50]{1,0}" in text  # 64 examples of 50 units, an example a row
    assert "f32[50,64]{1,0}" not in text


def test_x_in_columns_is_turned_once():
    """Every product then has its examples in rows, the first layer's too."""
    params, X, Y, _ = problem(0, [40, 50, 10], 64, "relu", "softmax", dtype=np.float32)
    text = jax.jit(by_hand).lower(params, X, Y).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line and "[64,50]" in line]
    assert products
    assert "f32[64,40]{1,0}" in text  # X, of which no product takes the columns


def test_under_one_jit_z_is_not_kept_where_a_gives_the_slope():
    """tanh needs A alone: 20 layers keep 20 arrays of A, not 40 of Z and A."""
    args = problem(0, [64] * 20 + [64], 512, "tanh", "identity", dtype=np.float32)[:3]
    one = 64 * 512 * 4
    assert compiled(by_hand, *args)[2] <= (20 + 4) * one


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_lowers_for_every_platform(platform, dtype):
    args = problem(0, [20, 32, 16, 5], 8, "gelu", "softmax", weighted=True, dtype=dtype)

    def both_passes(params, X, Y, weights):
        A, cache = dp.forward(params, X)
        return A, dp.cost(cache, Y, weights), dp.manual_backward(cache, Y, weights)

    rows = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")  # of a CPU with bfloat16
    export = jax.export.export(jax.jit(both_passes), platforms=[platform], disabled_checks=[rows])
    exported = export(*args)
    assert exported.platforms == (platform,)
    assert "stablehlo.dot_general" in exported.mlir_module()


@pytest.mark.parametrize(("m", "stays"), [(6, True), (7, False)])
def test_W_stays_in_place_for_few_examples_on_a_cpu(m, stays, x64):
    params, X, _, _ = problem(0, [24, 32, 32], m, "tanh", "identity")
    A, Z = X, None
    for layer in params:
        Z = np.asarray(layer.W) @ A + np.asarray(layer.b)
        A = np.tanh(Z)
    np.testing.assert_allclose(jax.jit(dp.predict)(params, X), Z, rtol=1e-12, atol=1e-12)
    if jax.default_backend() != "cpu":
        pytest.skip("other devices choose their own layout")
    products = [
        eqn.invars[0].aval.shape
        for eqn in jax.make_jaxpr(lambda *args: dp.forward(*args)[0])(params, X).jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert products == ([(32, 24), (32, 32)] if stays else [(m, 24), (32, 32)])
