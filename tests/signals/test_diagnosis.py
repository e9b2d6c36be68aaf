"""The health of layers: planted faults are found, healthy networks pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.command.data import load_data
from tests.problems import HIDDEN, thorough

pytestmark = pytest.mark.usefixtures("optax_types")
DATA = load_data(None, held_out=0.2, seed=0, standardize=False, output=None)
X, Y = DATA.X[:, :256], DATA.Y[:, :256]


@jax.jit
def diagnosed(params, X, updates=None):
    _, cache = dp.forward(params, X)
    return dp.diagnose(cache, dp.error_signals(cache, Y[:, : X.shape[1]]), updates)


def findings(params, X=X, updates=None):
    return dp.findings(diagnosed(params, X, updates))


def new(hidden, sizes=(64, 64, 64, 64, 10), **how):
    return dp.init_params(jax.random.key(0), sizes, hidden=hidden, **how)


def replaced(params, l, **parts):
    layer = params[l - 1]
    layer = dp.Layer(parts.get("W", layer.W), parts.get("b", layer.b), layer.activation)
    return (*params[: l - 1], layer, *params[l:])


USUAL = "tanh", "relu", "gelu"


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("hidden", [h if h in USUAL else thorough(h) for h in HIDDEN])
def test_a_new_network_of_usual_initialisation_is_healthy(hidden):
    assert findings(new(hidden)) == []


@pytest.mark.thorough
def test_a_deep_relu_network_of_he_initialisation_is_healthy():
    assert findings(new("relu", [64, *[128] * 20, 10])) == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hidden", "optimizer"),
    [
        ("relu", optax.adam(1e-3)),
        ("tanh", optax.sgd(0.1, momentum=0.9)),
        ("gelu", optax.adam(1e-3)),
    ],
)
def test_a_network_that_learns_well_stays_healthy(hidden, optimizer):
    fit = dp.fit(
        new(hidden), optimizer, DATA.X, DATA.Y, epochs=15, batch_size=64, key=jax.random.key(1),
        record=dp.Record(dp.diagnose, 10),
    )  # fmt: skip
    assert fit.history["cost"][-1] < 0.1
    entries = fit.history["A"].shape[0] * fit.history["A"].shape[1]
    for entry in range(entries):
        assert dp.findings(dp.diagnosis_of(fit.history, fit.params, entry)) == []


def test_dead_units_are_found():
    params = replaced(new("relu"), 2, b=jnp.full((64, 1), -50.0))
    (found,) = findings(params)  # layer 3 gets b = 0 from it
    assert found.startswith("layers 2 and 3: 100% of units are dead")


def test_a_saturated_stack_is_found():
    params = new("sigmoid", [64, *[64] * 10, 10])
    params = tuple(dp.Layer(30 * p.W, p.b, p.activation) for p in params)
    found = findings(params)
    assert any("sigmoid saturates" in f and "try relu" in f for f in found)


def test_a_vanishing_gradient_is_found_where_it_vanishes():
    found = findings(new("sigmoid", [64, *[64] * 10, 10]))
    (vanishes,) = (f for f in found if "vanishes" in f)
    assert vanishes.startswith("layers 1 to ")
    assert "of layer 11's" in vanishes


def test_an_exploding_initialisation_is_found():
    params = new("relu", [64, *[64] * 8, 10])
    params = tuple(dp.Layer(6 * p.W, p.b, p.activation) for p in params)
    found = findings(params)
    assert any("the signal grows to" in f for f in found)
    assert any("the gradient explodes" in f for f in found)


def test_a_decaying_signal_is_found():
    params = new("tanh", [64, *[64] * 8, 10])
    params = tuple(dp.Layer(p.W / 6, p.b, p.activation) for p in params)
    assert any("the signal decays to" in f for f in findings(params))


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (255 * np.ones((64, 1)), "inputs: their size is up to"),
        (1e-4 * np.ones((64, 1)), "inputs: their size is up to"),
        (np.where(np.arange(64) == 20, 15, 1)[:, None] * 0.05, "times the median one"),
        (np.zeros((64, 1)), "inputs: all are 0"),
    ],
)
def test_unscaled_inputs_are_found(factor, expected):
    params = new("tanh")
    x = np.random.default_rng(0).standard_normal((64, 256)) * factor
    if "median" in expected:
        x[20] *= 20
    found = findings(params, x.astype(np.float32))
    assert any(expected in f for f in found)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", [optax.adam(1.0), optax.sgd(30.0)])
def test_a_learning_rate_that_is_too_high_is_found(optimizer):
    params = new("relu")
    try:
        history = dp.fit(
            params, optimizer, DATA.X, DATA.Y, epochs=1, batch_size=64, key=jax.random.key(1),
            record=dp.Record(dp.diagnose, 5),
        ).history  # fmt: skip
    except dp.TrainingError as error:  # so high that the cost ends as nan
        history = error.history
    found = dp.findings(dp.diagnosis_of(history, params, 0))
    assert any("an update is" in f and "smaller learning rate" in f for f in found)


@pytest.mark.thorough
def test_a_learning_rate_that_is_too_low_is_found():
    fit = dp.fit(
        new("relu"), optax.adam(1e-8), DATA.X, DATA.Y, epochs=1, batch_size=64,
        key=jax.random.key(1), record=dp.Record(dp.diagnose, 5),
    )  # fmt: skip
    (found,) = dp.findings(dp.diagnosis_of(fit.history, fit.params))
    assert found.startswith("all layers: updates are at most")


def test_unscaled_targets_are_found():
    params = new("relu", [64, 32, 1], output="identity")
    _, cache = jax.jit(dp.forward)(params, X)
    dZ = jax.jit(dp.error_signals)(cache, 1e4 * X[20:21])
    found = dp.findings(jax.jit(dp.diagnose)(cache, dZ))
    assert any(f.startswith("targets: dZ[L] = A[L] - Y has size") for f in found)


@pytest.mark.thorough
def test_an_output_that_begins_at_zero_is_healthy():
    params = replaced(new("relu"), 4, W=jnp.zeros((10, 64)))
    fit = dp.fit(
        params, optax.adam(1e-3), DATA.X, DATA.Y, epochs=3, batch_size=64,
        key=jax.random.key(1), record=dp.diagnose,
    )  # fmt: skip
    for entry in range(3 * 23):
        assert dp.findings(dp.diagnosis_of(fit.history, fit.params, entry)) == []


def test_a_single_example_says_nothing_of_dead_units():
    assert findings(new("relu"), X[:, :1]) == []


@pytest.mark.thorough
def test_a_run_that_fails_tells_the_epoch_that_failed():
    with pytest.raises(dp.TrainingError) as caught:
        dp.fit(
            new("relu"), optax.sgd(1e30), DATA.X, DATA.Y, epochs=2, batch_size=64,
            key=jax.random.key(1), record=dp.diagnose,
        )  # fmt: skip
    assert caught.value.fit.history["cost"].size == 0
    history = caught.value.history
    assert history["cost"].size == 1
    assert "not finite" in str(dp.diagnosis_of(history, new("relu")))


def test_what_is_not_finite_is_found():
    params = replaced(new("relu"), 2, W=jnp.full((64, 64), jnp.inf))
    assert findings(params)[0].startswith("layers 1 to 4: not finite")


def test_the_table_and_the_picture(tmp_path):
    fit = dp.fit(
        new("relu"), optax.adam(1e-3), DATA.X, DATA.Y, epochs=2, batch_size=64,
        key=jax.random.key(1), record=dp.Record(dp.diagnose, 10),
    )  # fmt: skip
    lines = str(dp.diagnosis_of(fit.history, fit.params)).splitlines()
    assert lines[0].split() == [
        "layer",
        "units",
        "activation",
        "A",
        "dZ",
        "W",
        "dW",
        "update/W",
        "dead",
        "flat",
    ]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["1", "64", "relu"], ["2", "64", "relu"], ["3", "64", "relu"], ["4", "10", "softmax"],
    ]  # fmt: skip
    assert lines[-1] == "nothing stands out"
    dp.plot_layers(tmp_path / "layers.png", fit.history, "a price in $ and $")
    assert (tmp_path / "layers.png").read_bytes()[1:4] == b"PNG"


def test_layers_are_named_as_people_say_them():
    from deepprop.signals.diagnosis import _layers

    said = [_layers(which) for which in ([3], [1, 2], [1, 2, 3, 4], [1, 3, 4])]
    assert said == ["layer 3", "layers 1 and 2", "layers 1 to 4", "layers 1, 3 and 4"]
