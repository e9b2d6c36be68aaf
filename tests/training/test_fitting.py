import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import sparse

import deepprop as dp
from deepprop.training.epoch import train_epoch
from tests.problems import grouped, problem

pytestmark = pytest.mark.usefixtures("optax_types")
ADAM = optax.adam(0.01)
KEY = jax.random.key(1)


def small(seed=0, m=24):
    params, X, Y, _ = problem(seed, [4, 8, 3], m, "relu", dtype=np.float32)
    return params, X, np.eye(3, dtype=np.float32)[:, Y.argmax(axis=0)]


def run(*data, **options):
    options = {"epochs": 3, "batch_size": 8, "key": jax.random.key(1), **options}
    return dp.fit(data[0], options.pop("optimizer", ADAM), *data[1:], **grouped(**options))


def leaves(fit):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(fit.params)]


def test_the_cost_falls_and_is_recorded():
    fit = run(*small(), epochs=40)
    assert fit.stopped == "epochs"
    assert list(fit.history) == ["cost"]
    assert fit.history["cost"].shape == (40,)
    assert fit.history["cost"][-1] < 0.7 * fit.history["cost"][0]


def test_a_run_is_reproducible_and_depends_on_the_key():
    a, b, c = run(*small()), run(*small()), run(*small(), key=jax.random.key(2))
    assert all(np.array_equal(p, q) for p, q in zip(leaves(a), leaves(b), strict=True))
    assert not all(np.array_equal(p, q) for p, q in zip(leaves(a), leaves(c), strict=True))


def test_later_epochs_and_calls_compile_nothing():
    optimizer = optax.adam(0.02)
    before = train_epoch._cache_size()
    run(*small(), optimizer=optimizer, epochs=4)
    once = train_epoch._cache_size()
    run(*small(1), optimizer=optimizer, epochs=2, key=jax.random.key(5))
    assert (once - before, train_epoch._cache_size() - once) == (1, 0)


def test_the_initial_params_are_not_changed():
    params, X, Y = small()
    before = [np.array(leaf) for leaf in jax.tree.leaves(params)]
    run(params, X, Y)
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(params), strict=True))


def test_examples_with_weight_0_do_not_count():
    """Half of the examples have weight 0, in one minibatch: the result is as without them."""
    params, X, Y = small()
    w = np.arange(24) % 2
    sgd = optax.sgd(0.1)
    weighted = run(params, X, Y, weights=w, batch_size=24, optimizer=sgd)
    without = run(params, X[:, w == 1], Y[:, w == 1], batch_size=12, optimizer=sgd)
    for a, b in zip(leaves(weighted), leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_minibatch_whose_weights_are_all_zero_changes_nothing():
    params, X, Y = small()
    w = np.zeros(24)
    w[3] = 1.0
    fit = run(params, X, Y, weights=w, batch_size=1, epochs=1, optimizer=optax.sgd(0.1))
    alone = run(params, X[:, 3:4], Y[:, 3:4], batch_size=1, epochs=1, optimizer=optax.sgd(0.1))
    for a, b in zip(leaves(fit), leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fit.history["cost"], alone.history["cost"], rtol=1e-4)


def test_balanced_weights_give_each_class_the_same_sum():
    Y = np.eye(3)[:, [0, 0, 0, 0, 1, 1, 2, 0]]
    w = np.asarray(dp.balanced_weights(Y))
    np.testing.assert_allclose(Y @ w, 8 / 3, rtol=1e-6)
    assert w.mean() == pytest.approx(1)
    np.testing.assert_allclose(
        dp.balanced_weights(Y[1:2]), dp.balanced_weights(np.concatenate([1 - Y[1:2], Y[1:2]]))
    )
    for wrong in (2 * Y, Y[1:2] * 0.5, Y[:2]):
        with pytest.raises(ValueError, match="Y must be one-hot"):
            dp.balanced_weights(wrong)


def test_validation_and_metrics_are_recorded():
    params, X, Y = small()
    right = lambda A, Y: jnp.mean(jnp.argmax(A, 0) == jnp.argmax(Y, 0))  # noqa: E731
    fit = run(params, X, Y, validation=(X[:, :9], Y[:, :9]), metrics={"accuracy": right})
    assert sorted(fit.history) == ["cost", "val_accuracy", "val_cost"]
    A, cache = dp.forward(fit.params, X[:, :9])
    assert fit.history["val_cost"][-1] == pytest.approx(float(dp.cost(cache, Y[:, :9])), rel=1e-5)
    assert fit.history["val_accuracy"][-1] == pytest.approx(float(right(A, Y[:, :9])))


def test_validation_weights_enter_val_cost_but_not_metrics():
    params, X, Y = small()
    w = np.arange(24) % 5
    mean = lambda A, Y: jnp.mean(A)  # noqa: E731
    fit = run(params, X, Y, validation=(X, Y, w), metrics={"mean": mean})
    A = np.asarray(dp.predict(fit.params, X), np.float64)
    losses = -np.sum(Y * np.log(A), axis=0)
    assert fit.history["val_cost"][-1] == pytest.approx(np.average(losses, weights=w), rel=1e-5)
    assert fit.history["val_mean"][-1] == pytest.approx(A.mean(), rel=1e-5)
    without = run(params, X, Y, validation=(X, Y, None)).history["val_cost"][-1]
    assert without == pytest.approx(losses.mean(), rel=1e-5)


def test_patience_uses_the_weighted_cost():
    """Half of the validation labels are wrong: the weights decide whether the cost falls."""
    params, X, Y = small(m=48)
    Y_wrong = np.where(np.arange(48) < 24, Y, np.roll(Y, 1, axis=0))
    options = {"epochs": 15, "patience": 3}
    right, wrong = (
        run(params, X, Y, validation=(X, Y_wrong, w), **options)
        for w in (np.arange(48) < 24, np.arange(48) >= 24)
    )
    assert (right.stopped, wrong.stopped) == ("epochs", "patience")


def test_lists_are_accepted():
    params, X, Y = small()
    lists = X.tolist(), Y.tolist(), [1.0] * 24
    fit = run(params, *lists[:2], weights=lists[2], validation=lists)
    same = run(params, X, Y, weights=np.ones(24), validation=(X, Y, np.ones(24)))
    np.testing.assert_array_equal(fit.params[0].W, same.params[0].W)
    np.testing.assert_array_equal(fit.history["val_cost"], same.history["val_cost"])


@pytest.mark.parametrize("guard", ["disallow", "log"])
@pytest.mark.parametrize("kind", ["fit", "fit_batches", "fit_ensemble"])
def test_under_a_transfer_guard(kind, guard):
    """A caller who passes data wants it on the device, whatever the guard says."""
    params, X, Y = small()
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    options = {"epochs": 2, "validation": (X, Y, np.ones(24))}
    train = {
        "fit": lambda: dp.fit(params, ADAM, X, Y, batch_size=8, key=KEY, **options),
        "fit_batches": lambda: dp.fit_batches(params, ADAM, [(X, Y)], **options),
        "fit_ensemble": lambda: dp.fit_ensemble(
            several, ADAM, X, Y, batch_size=8, key=KEY, **options
        ),
    }[kind]
    with jax.transfer_guard(guard):
        fit = train()
    for a, b in zip(jax.tree.leaves(fit.params), jax.tree.leaves(train().params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_patience_stops_and_returns_the_best_epoch():
    """The validation labels are wrong: their cost rises once training helps the other examples."""
    params, X, Y = small(m=48)
    seen = []
    fit = run(
        params, X, Y, epochs=200, validation=(X, np.roll(Y, 1, axis=0)), patience=5,
        callbacks=[lambda epoch, row, params: seen.append((row["val_cost"], params))],
    )  # fmt: skip
    best = int(np.argmin(fit.history["val_cost"]))
    assert fit.stopped == "patience"
    assert len(fit.history["cost"]) == best + 1 + 5
    assert all(
        np.array_equal(a, b)
        for a, b in zip(leaves(fit), jax.tree.leaves(seen[best][1]), strict=True)
    )


@pytest.mark.parametrize("kind", [bool, np.bool_, jnp.asarray])
def test_a_callback_can_stop_the_training(kind):
    fit = run(*small(), epochs=50, callbacks=[lambda epoch, row, params: kind(epoch == 4)])
    assert (fit.stopped, len(fit.history["cost"])) == ("callback", 4)


def test_continuing_with_the_state():
    """Two runs of 3 epochs differ if the second one gets a new state of Adam instead of the first's."""
    params, X, Y = small()
    first = run(params, X, Y)
    state = jax.tree.map(jnp.copy, first.state)
    on, anew = (run(first.params, X, Y, state=s) for s in (state, None))
    assert int(on.state[0].count) == 2 * int(anew.state[0].count) == 18
    assert not np.array_equal(on.params[0].W, anew.params[0].W)


@pytest.mark.parametrize("broken", ["cost", "params"])
def test_a_non_finite_cost_raises_with_the_last_good_parameters(broken):
    params, X, Y = small()

    def backward(cache, Y, weights):
        return jax.tree.map(
            lambda g: g * jnp.where(bad_now, jnp.nan, 1), dp.manual_backward(cache, Y)
        )

    if broken == "cost":
        optimizer, bad_now = optax.sgd(jnp.inf), False
    else:  # the last step of an epoch spoils the parameters; its cost was taken before
        optimizer, bad_now = optax.sgd(0.1), True
    with pytest.raises(
        dp.TrainingError, match=r"not finite in epoch 1.*smaller learning rate"
    ) as caught:
        run(params, X, Y, optimizer=optimizer, backward=backward, batch_size=24)
    fit = caught.value.fit
    assert all(
        np.array_equal(a, b) for a, b in zip(leaves(fit), jax.tree.leaves(params), strict=True)
    )
    assert len(fit.history["cost"]) == 0


def test_with_patience_an_error_has_the_best_epoch():
    params, X, Y = small()
    rates = lambda step: jnp.where(step < 12, 3.0, jnp.inf)  # noqa: E731
    with pytest.raises(dp.TrainingError) as caught:
        run(
            params, X, Y, optimizer=optax.sgd(rates), epochs=9, patience=9,
            validation=(X, np.roll(Y, 1, axis=0)),
        )  # fmt: skip
    fit = caught.value.fit
    _, cache = dp.forward(fit.params, X)
    J = float(dp.cost(cache, np.roll(Y, 1, axis=0)))
    assert pytest.approx(fit.history["val_cost"].min(), rel=1e-5) == J
    assert fit.history["val_cost"].argmin() < len(fit.history["val_cost"]) - 1


def test_ctrl_c_ends_after_the_epoch_and_returns_the_fit_so_far():
    before = signal.getsignal(signal.SIGINT)

    def interrupt(epoch, row, params):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    fit = run(*small(), epochs=50, callbacks=[interrupt])
    assert (fit.stopped, len(fit.history["cost"])) == ("interrupted", 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_at_once():
    def interrupt_twice(epoch, row, params):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell has none
    try:
        with pytest.raises(KeyboardInterrupt):
            run(*small(), callbacks=[interrupt_twice])
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_outside_the_main_thread():
    fits = []
    thread = threading.Thread(target=lambda: fits.append(run(*small())))
    with jax.numpy_dtype_promotion("standard"):
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        thread.start()
        thread.join(60)
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    assert fits[0].stopped == "epochs"


def test_a_progress_bar_shows_epochs_and_costs(capsys, monkeypatch):
    with dp.progress_bar(epochs=3) as bar:
        run(*small(), callbacks=[bar])
    out = capsys.readouterr().out
    assert "epoch 3/3" in out
    assert "cost 0." in out or "cost 1." in out
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with (
        pytest.raises(ImportError, match="pip install rich"),
        dp.progress_bar(3),
    ):
        pass


def test_schedules_and_clipping_are_optaxs():
    schedule = optax.cosine_decay_schedule(0.05, decay_steps=60)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    fit = run(*small(), epochs=20, optimizer=optimizer)
    assert fit.history["cost"][-1] < fit.history["cost"][0]


def test_float64_params_without_x64_are_refused_in_one_line():
    with jax.enable_x64(True):
        params, *_ = problem(0, [4, 8, 3], 24, "relu")
    with pytest.raises((TypeError, ValueError), match="float64") as caught:
        run(params, *small()[1:])
    assert "x64" in str(caught.value)
    assert "\n" not in str(caught.value)


PARAMS, X, Y = small()
BAD = {
    "batch_size of 0": ({"batch_size": 0}, ValueError, "batch_size must be above 0 and at most the 24 examples, got 0"),
    "batch_size above m": ({"batch_size": 25}, ValueError, "batch_size must be above 0 and at most the 24 examples, got 25"),
    "batch_size of 2.5": ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number, got 2.5"),
    "epochs of 0": ({"epochs": 0}, ValueError, "epochs must be above 0, got 0"),
    "an optimizer by name": ({"optimizer": "adam"}, TypeError, "optimizer must be an optax.GradientTransformation, got 'adam'"),
    "nan in X": ({"X": np.where(X > 1, np.nan, X)}, ValueError, "X must hold finite numbers"),
    "labels": ({"Y": Y.argmax(axis=0)}, ValueError, "Y must have shape .* for class labels: jax.nn.one_hot"),
    "not one-hot": ({"Y": 2 * Y}, ValueError, "Y must be one-hot, or probabilities that sum to 1"),
    "inf in Y": ({"Y": np.where(Y > 0, np.inf, Y)}, ValueError, "Y must hold finite numbers"),
    "examples as rows": ({"X": X.T}, ValueError, "X must have shape .* pass X.T"),
    "a seed": ({"key": 0}, TypeError, "key must be one JAX random key"),
    "negative weights": ({"weights": -np.ones(24)}, ValueError, "weights must be finite and not negative"),
    "a metric called cost": ({"metrics": {"cost": lambda A, Y: 0.0}, "validation": (X, Y)}, ValueError, 'metrics must not be called "cost"'),
    "a validation set of four": ({"validation": (X, Y, None, None)}, ValueError, r"validation must be \(X, Y\) or \(X, Y, weights\), or a dp.Validation, got a tuple of length 4"),
    "a validation set of one": ({"validation": [X]}, ValueError, r"validation must be .*, got a list of length 1"),
    "validation X alone": ({"validation": X}, TypeError, r"validation must be \(X, Y\) or \(X, Y, weights\), or a dp.Validation, got a ndarray"),
    "validation weights of another m": ({"validation": (X, Y, np.ones(5))}, ValueError, r"validation weights must have shape \(24,\).* got shape \(5,\)"),
    "negative validation weights": ({"validation": (X, Y, -np.ones(24))}, ValueError, "validation weights must be finite and not negative"),
    "validation weights of 0": ({"validation": (X, Y, np.zeros(24))}, ValueError, "validation weights must not all be zero"),
    "nan in validation X": ({"validation": (X * np.nan, Y)}, ValueError, "validation X must hold finite numbers"),
    "large validation X": ({"validation": (X * np.float64(1e39), Y)}, ValueError, r"validation X must hold numbers up to 3.4e\+38 \(float32\), got"),
    "large X": ({"X": X * np.float64(1e39)}, ValueError, r"^X must hold numbers up to 3.4e\+38 \(float32\), got"),
    "large Y": ({"Y": Y * np.float64(1e39)}, ValueError, r"^Y must hold numbers up to 3.4e\+38 \(float32\), got"),
    "sparse X": ({"X": sparse.csr_matrix(X)}, TypeError, "^X must be a dense array, got a sparse csr_matrix"),
    "sparse validation Y": ({"validation": (X, sparse.csr_matrix(Y))}, TypeError, "validation Y must be a dense array"),
    "a list of metrics": ({"metrics": [abs], "validation": (X, Y)}, TypeError, r"metrics must be a mapping of names to functions of \(A, Y\).* got a list"),
    "a metric by itself": ({"metrics": abs, "validation": (X, Y)}, TypeError, "metrics must be a mapping .* got a builtin_function_or_method"),
    "a metric without a function": ({"metrics": {"m": 0.5}, "validation": (X, Y)}, TypeError, "metrics must be a mapping .* got 0.5 under 'm'"),
    "a metric without a name": ({"metrics": {3: abs}, "validation": (X, Y)}, TypeError, "metrics must be a mapping .* got the name 3"),
    "another optimizer's state": ({"state": optax.sgd(0.1).init(PARAMS)}, ValueError, "state must be the state of this optimizer"),
    "another network's state": ({"state": ADAM.init(small()[0][:1])}, ValueError, "state must be the state of this optimizer"),
    "first_epoch of 0": ({"first_epoch": 0}, ValueError, "first_epoch must be above 0, got 0"),
    "one callback": ({"callbacks": print}, TypeError, "callbacks must be a sequence of functions"),
    "what is no callback": ({"callbacks": [print, 3]}, TypeError, "callbacks must be a sequence of functions"),
    "patience of 0": ({"patience": 0, "validation": (X, Y)}, ValueError, "patience must be above 0"),
    "a validation set of another kind": ({"validation": (X[:2], Y)}, ValueError, r"validation X must have shape \(4, m\)"),
    "validation targets of another m": ({"validation": (X, Y[:, :5])}, ValueError, r"validation Y must have shape \(3, 24\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_training(case):
    options, error, message = BAD[case]
    options = {"X": X, "Y": Y, **options}
    with pytest.raises(error, match=message):
        run(PARAMS, options.pop("X"), options.pop("Y"), **options)
