from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import HIDDEN, OUTPUTS, exactly, problem, public_cost


@pytest.mark.ordinary(3)
@pytest.mark.parametrize("output", OUTPUTS)
def test_right_gradients_pass(output):
    params, X, Y, w = problem(0, [4, 6, 5, 3], 6, ["relu", "gelu"], output, True, np.float32)
    report = dp.check_gradients(params, X, Y, w)
    assert report.ok
    assert report.checked == report.parameters == 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    assert str(report).startswith("all 83 parameters agree with central differences; worst")


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_every_activation_passes(hidden):
    assert dp.check_gradients(*problem(1, [3, 5, 2], 4, hidden, dtype=np.float32)).at_kinks == 0


@pytest.mark.parametrize(
    ("layer", "part", "index"),
    [(1, "W", (2, 3)), (1, "b", (4, 0)), (2, "W", (0, 1)), (3, "W", (2, 4)), (3, "b", (0, 0))],
)
def test_one_wrong_number_is_found_where_it_is(layer, part, index):
    params, X, Y, _ = problem(2, [4, 6, 5, 3], 6, dtype=np.float32)

    def backward(cache, Y, weights):
        grads = list(dp.manual_backward(cache, Y, weights))
        arrays = {"W": grads[layer - 1].W, "b": grads[layer - 1].b}
        arrays[part] = arrays[part].at[index].multiply(1.001)
        grads[layer - 1] = dp.Layer(**arrays, activation=grads[layer - 1].activation)
        return tuple(grads)

    with pytest.raises(dp.GradientError, match="the gradient is wrong: at") as caught:
        dp.check_gradients(params, X, Y, backward=backward)
    report = caught.value.report
    assert report.where == f"{part}[{layer}][{index[0]}, {index[1]}]"
    assert report.by_hand == pytest.approx(1.001 * report.by_differences, rel=1e-6)
    assert report.worst == pytest.approx(0.001, rel=0.01)


def test_a_wrong_activation_and_a_wrong_cost_of_your_own():
    wrong = dp.Activation("wrong", g=jnp.sin, g_prime=lambda Z, A: jnp.cos(Z) * 1.0001)
    right = dp.Activation("right", g=jnp.sin, g_prime=lambda Z, A: jnp.cos(Z))
    loss = lambda A, Y: jnp.sum((A - Y) ** 4, axis=-2)  # noqa: E731
    wrong_cost = dp.Cost("wrong", loss, dA=lambda A, Y: 3 * (A - Y) ** 3)
    X, Y = problem(3, [3, 2], 5, output="identity", dtype=np.float32)[1:3]
    make = lambda g, output: dp.init_params(jax.random.key(0), [3, 6, 2], hidden=g, output=output)  # noqa: E731
    dp.check_gradients(make(right, "identity"), X, Y)
    with pytest.raises(dp.GradientError):
        dp.check_gradients(make(wrong, "identity"), X, Y)
    with pytest.raises(dp.GradientError):
        dp.check_gradients(make(right, ("tanh", wrong_cost)), X, Y)


def test_a_gradient_that_is_not_finite_is_wrong():
    params, X, Y, _ = problem(3, [3, 4, 2], 5, dtype=np.float32)
    broken = lambda *args: jax.tree.map(lambda g: g * np.nan, dp.manual_backward(*args))  # noqa: E731
    with pytest.raises(dp.GradientError, match="nan"):
        dp.check_gradients(params, X, Y, backward=broken)


def test_a_step_over_a_kink_is_no_error():
    """Z = 1e-7 sits nearer to the kink than the first step reaches, not than the next."""
    relu, output = dp.activation("relu"), dp.output("identity")
    params = (
        dp.Layer(jnp.ones((1, 1)), jnp.full((1, 1), 1e-7), relu),
        dp.Layer(jnp.ones((1, 1)), jnp.ones((1, 1)), output),
    )
    report = dp.check_gradients(params, jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    assert (report.ok, report.checked, report.at_kinks) == (True, 4, 0)


def test_a_unit_that_sits_on_its_kink_is_left_out_and_counted():
    """X = 0 and b = 0: the hidden Z are 0, and only what moves them is left out."""
    params = dp.init_params(jax.random.key(0), [3, 4, 2], output="identity")
    report = dp.check_gradients(params, jnp.zeros((3, 2)), jnp.ones((2, 2)))
    assert (report.ok, report.at_kinks, report.checked) == (True, 4, 12 + 8 + 2)
    assert "4 left out at a kink" in str(report)


def test_a_missing_kink_in_g_prime_is_an_error():
    """g has a kink that g' does not: not excused."""
    wrong = dp.Activation("wrong", g=jnp.abs, g_prime=lambda Z, A: jnp.ones_like(Z))
    params = dp.init_params(jax.random.key(0), [3, 8, 2], hidden=wrong)
    with pytest.raises(dp.GradientError):
        dp.check_gradients(params, *problem(3, [3, 8, 2], 5, dtype=np.float32)[1:3])


@pytest.mark.usefixtures("x64")
def test_a_step_made_in_Z_is_a_step_made_in_the_parameter():
    """The shortcut of the check against the plain thing: change one number, call forward and cost."""
    from deepprop.gradient_check import _differences, _parameters

    params, X, Y, w = problem(5, [3, 4, 2], 5, "gelu", weighted=True)
    _, cache = dp.forward(params, X)
    J_of = jax.jit(public_cost)
    places, _, steps = _parameters(cache, dp.manual_backward(cache, Y, w))
    slope, crossed = _differences(cache, jnp.asarray(Y), w, places, steps)
    assert not crossed.any()
    for (l, i, j), h, found in zip(places.tolist(), steps, slope, strict=True):

        def J(step, l=l, i=i, j=j):
            layer = params[l]
            if j < layer.W.shape[1]:
                layer = dp.Layer(layer.W.at[i, j].add(step), layer.b, layer.activation)
            else:
                layer = dp.Layer(layer.W, layer.b.at[i, 0].add(step), layer.activation)
            return float(J_of((*params[:l], layer, *params[l + 1 :]), X, Y, w))

        # A difference of J keeps about eps / h of it.
        assert found == pytest.approx((J(h) - J(-h)) / (2 * h), abs=20 * 2.2e-16 / h)
    expected = np.concatenate(
        [np.concatenate([g.W, g.b], axis=1).ravel() for g in exactly(params, X, Y, w)]
    )
    np.testing.assert_allclose(slope, expected, atol=1e-9)


def test_unscaled_inputs_take_smaller_steps():
    """Inputs of 1e9 with weights to match: a step of 6e-6 in W would move Z by thousands."""
    (first, last), X, Y, _ = problem(6, [3, 4, 2], 5, "tanh", dtype=np.float32)
    first = dp.Layer(first.W / 1e9, first.b, first.activation)
    assert dp.check_gradients((first, last), 1e9 * X, Y).at_kinks == 0


def test_a_sample_of_the_parameters():
    report = dp.check_gradients(*problem(6, [3, 4, 2], 5, dtype=np.float32), sample=7)
    assert (report.checked, report.parameters) == (7, 26)
    assert str(report).startswith("7 of 26 parameters agree")


@pytest.mark.parametrize("tolerance", [0, 1e-12, 1, -1e-5, np.nan])
def test_a_tolerance_that_would_pass_anything_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be from 1e-9 to below 1"):
        dp.check_gradients(*problem(6, [3, 4, 2], 5, dtype=np.float32), tolerance=tolerance)


@pytest.mark.parametrize("part", [slice(1), slice(1, None), slice(0)])
def test_a_backward_pass_that_leaves_layers_out_is_refused(part):
    backward = lambda *args: dp.manual_backward(*args)[part]  # noqa: E731
    with pytest.raises(ValueError, match="backward must return layers like params"):
        dp.check_gradients(*problem(6, [3, 4, 2], 5, dtype=np.float32), backward=backward)


def test_a_steep_activation_is_no_kink():
    """g = sin(3000 Z) without its inner derivative: wrong, not excused."""
    steep = dp.Activation("steep", lambda Z: jnp.sin(3e3 * Z), lambda Z, A: jnp.cos(3e3 * Z))
    params = dp.init_params(jax.random.key(0), [3, 4, 2], hidden=steep)
    with pytest.raises(dp.GradientError, match="the gradient is wrong"):
        dp.check_gradients(params, *problem(6, [3, 4, 2], 5, dtype=np.float32)[1:3])


def test_where_nothing_can_be_checked_it_is_not_ok():
    wild = dp.Output(
        "wild", lambda Z: Z, lambda Z, Y: jnp.sum(Z, -2), lambda Z, A, Y: jnp.sin(1e12 * Z)
    )
    params = dp.init_params(jax.random.key(0), [3, 2], output=wild)
    with pytest.raises(dp.GradientError, match="no gradient could be checked: all 8 parameters"):
        dp.check_gradients(params, *problem(6, [3, 2], 5, dtype=np.float32)[1:3])


def with_backward(change):
    """Return the report of a check whose backward pass changes the gradients."""
    params, X, Y, _ = problem(2, [4, 6, 5, 3], 8, dtype=np.float32)

    def backward(cache, Y, weights):
        return tuple(change(l, g) for l, g in enumerate(dp.manual_backward(cache, Y, weights), 1))

    with pytest.raises(dp.GradientError) as error:
        dp.check_gradients(params, X, Y, backward=backward)
    return error.value.report


@pytest.mark.ordinary(3)
@pytest.mark.parametrize(("change", "said"), [
    (lambda l, g: replace(g, W=8 * g.W, b=8 * g.b), "all gradients are 8 times too large, and m is 8"),
    (lambda l, g: replace(g, W=-g.W, b=-g.b), "all gradients are correct except for the sign"),
    (lambda l, g: replace(g, b=8 * g.b), "db[1], db[2] and db[3] are 8 times too large, and m is 8"),
    (lambda l, g: replace(g, W=g.W + float(l == 2)), "only dW[2] is wrong"),
    (lambda l, g: replace(g, W=g.W + float(l < 3), b=g.b + float(l < 3)), "only dW[1], dW[2], db[1] and db[2] are wrong"),
    (lambda l, g: replace(g, W=g.W + 1, b=g.b - 1), ""),
])  # fmt: skip
def test_what_wrong_gradients_have_in_common_is_said(change, said):
    report = with_backward(change)
    assert report.pattern == said
    assert str(report).endswith(f"; {said}" if said else "parameters checked")
