"""`in_backward`: the optimizer's own parameters, without the memory of a gradient of all layers."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import by_hand, problem, public_cost

pytestmark = pytest.mark.usefixtures("optax_types")  # optax raises a float to an integer's power

SIZES = [4, *[6] * 4, 3]
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.01),
    "adamw with a schedule": lambda: optax.adamw(
        optax.cosine_decay_schedule(0.01, 4), mask=lambda p: jax.tree.map(lambda leaf: leaf.shape[-1] > 1, p)
    ),
    "lamb": lambda: optax.lamb(0.01),  # by the norms of each W and b
    "clip": lambda: optax.chain(optax.clip(0.01), optax.sgd(0.1)),
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
    "every second step": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
}  # fmt: skip
NETWORKS = {
    "layers one by one": lambda p: p,
    "a stack": dp.stack,
    "a stack that keeps every third": lambda p: dp.stack(p, 3),
    "residual": lambda p: tuple(replace(q, residual=q.W.shape == (6, 6)) for q in p),
    "a residual stack": lambda p: dp.stack(NETWORKS["residual"](p), 2),
}


def network(kind="layers one by one", dtype=np.float64, weighted=False):
    params, X, Y, w = problem(3, SIZES, 22, "tanh", "softmax", weighted, dtype)
    return NETWORKS[kind](params), X, Y, w


def close(found, expected, rtol=1e-10):
    """Leaf by leaf, stacks taken apart; to the largest number, in float64 unless told."""
    pairs = zip(*(jax.tree.leaves(dp.unstack(p)) for p in (found, expected)), strict=True)
    for f, e in pairs:
        np.testing.assert_allclose(f, e, rtol=0, atol=rtol * abs(np.asarray(e)).max())


def fit(params, optimizer, dtype=np.float64, weighted=False, **options):
    _, X, Y, w = network(dtype=dtype, weighted=weighted)
    options = {"epochs": 2, "batch_size": 8, "key": jax.random.key(5), "weights": w, **options}
    return dp.fit(params, optimizer, X, Y, **options)


# The parameters.


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "a residual stack") for name in OPTIMIZERS] + [("adam", kind) for kind in NETWORKS],
)
def test_steps_are_those_of_the_optimizer_by_itself(name, kind):
    """Three weighted steps, against a loop of the gradient and the update, layer by layer."""
    params, X, Y, w = network(kind, weighted=True)
    optimizer, expected = OPTIMIZERS[name](), dp.unstack(params)
    state, costs = optimizer.init(expected), []

    @jax.jit
    def reference(params, state):
        J, grads = public_cost(params, X, Y, w), by_hand(params, X, Y, w)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, J

    for _ in range(3):
        expected, state, J = reference(expected, state)
        costs.append(float(J))
    inside = dp.in_backward(optimizer)
    step, got, state = dp.train_step(inside), jax.tree.map(jnp.copy, params), inside.init(params)
    for J_expected in costs:
        got, state, J = step(got, state, X, Y, w)
        assert float(J) == pytest.approx(J_expected, rel=1e-10)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    close(got, expected)
    assert abs(np.asarray(got[1].W - params[1].W)).max() > 1e-5


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["layers one by one", "a stack that keeps every third"])
def test_by_itself_it_is_the_same_optimizer(kind):
    """As an optax transformation in a loop of one's own, alone or in a chain."""
    params, X, Y, w = network(kind, weighted=True)
    expected = dp.unstack(params)

    def steps(optimizer, params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(by_hand(params, X, Y, w), state, params)
            params = optax.apply_updates(params, updates)
        return params

    lamb, inside = optax.lamb(0.01), dp.in_backward(optax.lamb(0.01))
    got, expected = jax.jit(lambda p, e: ((steps(inside, p), steps(optax.chain(inside), p)), steps(lamb, e)))(params, expected)  # fmt: skip
    close(got[0], expected)
    close(got[1], expected)
    half = dp.in_backward(optax.sgd(0.5))
    updates, _ = half.update(params, half.init(params))
    close(updates, jax.tree.map(lambda leaf: -0.5 * leaf, params))  # without params


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "weighted"), [("layers one by one", False), ("a residual stack", True)]
)
def test_fit_and_fit_batches_come_to_the_same_parameters(kind, weighted):
    params, X, Y, w = network(kind, weighted=weighted)
    optimizer = optax.adamw(optax.linear_schedule(0.02, 0.001, 6))
    options = {"weighted": weighted, "validation": (X, Y)}
    inside = dp.in_backward(optimizer)
    expected, got = fit(params, optimizer, **options), fit(params, inside, **options)
    close(got.params, expected.params)
    for name, column in expected.history.items():
        np.testing.assert_allclose(got.history[name], column, rtol=1e-9, atol=1e-12)
    parts = [tuple(P[..., i : i + 8] for P in (X, Y, w) if P is not None) for i in (0, 8, 16)]
    got, expected = (dp.fit_batches(params, o, parts, epochs=2) for o in (inside, optimizer))
    close(got.params, expected.params)
    np.testing.assert_allclose(got.history["cost"], expected.history["cost"], rtol=1e-10)
    goes_on = fit(got.params, inside, state=got.state, **options)
    close(goes_on.params, fit(expected.params, optimizer, state=expected.state, **options).params)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_fit_ensemble_with_a_sweep():
    params, X, Y, _ = network("a stack")
    sweep = {"learning_rate": np.array([0.001, 0.03]), "weight_decay": np.array([0.1, 0.0])}

    def adamw(learning_rate, weight_decay):
        return optax.adamw(learning_rate, weight_decay=weight_decay)

    def run(make, sweep):
        return dp.fit_ensemble(
            params, make, X, Y, epochs=2, batch_size=8, key=jax.random.key(1), sweep=sweep
        )

    got = run(lambda **entries: dp.in_backward(adamw(**entries)), sweep)
    expected = run(adamw, sweep)
    for f, e in zip(*(jax.tree.leaves(one.params) for one in (got, expected)), strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="must treat each layer on its own"):
        run(lambda max_norm: dp.in_backward(optax.clip_by_global_norm(max_norm)), {"max_norm": [1.0, 2.0]})  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["layers one by one", "a stack"])
def test_a_run_goes_on_from_its_checkpoint(kind, tmp_path):
    params, *_ = network(kind, np.float32)
    optimizer = dp.in_backward(optax.adam(0.01))
    whole = fit(params, optimizer, np.float32, epochs=3)
    fit(params, optimizer, np.float32, epochs=2, checkpoint=tmp_path)
    resumed = fit(params, optimizer, np.float32, epochs=3, checkpoint=tmp_path)
    for a, b in zip(*(jax.tree.leaves((f.params, f.state)) for f in (whole, resumed)), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(whole.history["cost"], resumed.history["cost"])
    with pytest.raises(ValueError, match="has another optimizer"):
        fit(params, optax.adam(0.01), np.float32, epochs=3, checkpoint=tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["layers one by one", "a stack"])
def test_an_optimizer_is_given_the_cost(kind):
    """reduce_on_plateau looks at J, and halves its scale where that no longer falls."""
    params, *_ = network(kind, np.float32)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optimizer = optax.chain(optax.sgd(0.0), plateau)
    got = fit(params, dp.in_backward(optimizer), np.float32, batch_size=22, epochs=7)
    expected = fit(params, optimizer, np.float32, batch_size=22, epochs=7)
    scale = float(expected.state[1].scale)
    assert scale < 1  # the cost stays what it is
    scales = [np.asarray(state[1].scale) for state in got.state]
    assert all((s == scale).all() for s in scales)
    best = expected.history["cost"].min()
    assert all(np.allclose(state[1].best_value, best, rtol=1e-6) for state in got.state)
    assert [s.shape for s in scales] == ([(), (3,), ()] if kind == "a stack" else [()] * 5)


def test_a_step_gives_its_buffers_away_and_compiles_once():
    params, X, Y, _ = network("a stack", np.float32)
    optimizer = dp.in_backward(optax.adam(0.01))
    step, state = dp.train_step(optimizer), optimizer.init(params)
    first, first_state = params, state
    for _ in range(3):
        params, state, _ = step(params, state, X, Y)
    assert step._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first, first_state)))


# What is refused.


def by_layer(params):
    return tuple("first" if i == 0 else "other" for i in range(len(params)))


ACROSS = "must treat each layer alone to be applied in the backward pass.*depends on other layers"
ALIKE = "must treat all layers alike.*updates two equal layers differently"
REFUSED = {
    "clip_by_global_norm": (lambda: optax.clip_by_global_norm(1.0), ACROSS),
    "in a chain": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), ACROSS),
    "at the end of a chain": (lambda: optax.chain(optax.adam(0.1), optax.clip_by_global_norm(1.0)), ACROSS),
    "in a chain in a chain": (lambda: optax.chain(optax.sgd(0.1), optax.chain(optax.clip_by_global_norm(1.0))), ACROSS),
    "normalize_by_update_norm": (optax.normalize_by_update_norm, ACROSS),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.sgd(0.1), 3), ACROSS),
    "prodigy": (optax.contrib.prodigy, ACROSS),  # by its state, one step later
    "dadapt_adamw": (optax.contrib.dadapt_adamw, ACROSS),
    "dog": (optax.contrib.dog, ACROSS),
    "mechanize": (lambda: optax.contrib.mechanize(optax.adam(0.1)), ACROSS),
    "add_noise": (lambda: optax.add_noise(0.1, 0.5, jax.random.key(0)), "must not draw random numbers"),
    "noise in a chain": (lambda: optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, jax.random.key(0))), "must not draw random numbers"),
    "kfac": (dp.kfac, "must be one for each layer alone: .*dp.kfac without a learning rate"),
    "kfac with a rate": (lambda: dp.kfac(0.1), "must be one for each layer alone: kfac needs factors"),
    "lbfgs": (optax.lbfgs, "must be one for each layer alone"),
    "labels by layer": (lambda: optax.multi_transform({"first": optax.sgd(0.1), "other": optax.sgd(0.3)}, by_layer), ALIKE),
    "a mask by layer": (lambda: optax.masked(optax.scale(0.1), lambda p: tuple(i > 0 for i in range(len(p)))), ALIKE),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_looks_at_several_layers_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"optimizer {message}"):
        dp.in_backward(make())


def test_what_is_no_optimizer_is_refused():
    for given in ("adam", optax.adam, None, 0.1):
        with pytest.raises(
            TypeError, match=r"optimizer must be an optax.GradientTransformation, got"
        ):
            dp.in_backward(given)


def test_another_backward_pass_is_refused():
    params, X, Y, _ = network(dtype=np.float32)
    optimizer = dp.in_backward(optax.sgd(0.1))
    clipped = lambda cache, Y, w: dp.clipped_backward(cache, Y, 1.0, weights=w)  # noqa: E731
    common = {"epochs": 1, "batch_size": 8, "key": jax.random.key(0), "backward": clipped}
    for run in (
        lambda: dp.train_step(optimizer, clipped),
        lambda: dp.fit(params, optimizer, X, Y, **common),
        lambda: dp.fit_batches(params, optimizer, [(X, Y)], epochs=1, backward=clipped),
        lambda: dp.fit_ensemble(
            params, lambda learning_rate: optimizer, X, Y, sweep={"learning_rate": [0.1]}, **common
        ),
    ):
        with pytest.raises(ValueError, match="backward must be left out with in_backward"):
            run()


# The memory.

K, N = 64, 128
STACK = K * (N * N + N) * 4  # bytes of the stack's gradient, and of the stack


def compiled(optimizer, keep):
    make = lambda: dp.init_params(jax.random.key(0), [16, *[N] * (K + 1), 4], hidden="tanh")  # noqa: E731
    params = jax.eval_shape(lambda: dp.stack(make(), keep))
    X, Y = (jax.ShapeDtypeStruct((n, 32), jnp.float32) for n in (16, 4))
    state = jax.eval_shape(optimizer.init, params)
    return dp.train_step(optimizer).lower(params, state, X, Y).compile()


def copies_of_the_stack(program):
    """Instructions that write the whole of W anew, wherever they stand: in a loop's body too."""
    text = program.as_text()
    assert re.search(rf"f32\[{K},{N},{N}\]\S* dynamic-update-slice\(|while\(", text)
    return re.findall(rf"= f32\[{K},{N},{N}\]\S* copy(?:-start)?\(", text)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("keep", [1, "sqrt"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_gradient_of_the_stack_is_never_there(name, keep):
    """By XLA's count. Adam's share: a layer's own moments, two times 1/64 of it, as they are new."""
    optimizer = OPTIMIZERS[name]()
    ordinary, inside = (compiled(o, keep) for o in (optimizer, dp.in_backward(optimizer)))
    temporary, temporary_inside = (
        p.memory_analysis().temp_size_in_bytes for p in (ordinary, inside)
    )
    assert temporary >= STACK
    assert temporary - temporary_inside >= 0.95 * STACK
    assert inside.memory_analysis().alias_size_in_bytes >= STACK * (3 if name == "adam" else 1)
    assert not copies_of_the_stack(inside)


def test_no_jaxpr_holds_a_custom_rule():
    params, X, Y, w = network("a stack that keeps every third", np.float32, weighted=True)
    optimizer = dp.in_backward(optax.sgd(0.1))
    text = str(jax.make_jaxpr(dp.train_step(optimizer))(params, optimizer.init(params), X, Y, w))
    assert "dot_general" in text
    assert not re.search("custom_|jvp|vjp", text)
