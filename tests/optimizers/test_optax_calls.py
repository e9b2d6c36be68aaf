"""Every optimizer of optax through `fit`: it works, or one line says what to use instead."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training.epoch import one_epoch
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
S = optax.sgd(0.01)

GIVEN = {
    "learning_rate": 0.01, "base_optimizer": S, "optimizer": S, "inner": S, "opt": S, "tx": S, "adv_optimizer": S,
    "max_delta": 0.1, "max_norm": 1.0, "threshold": 1.0, "clipping": 0.1, "key": jax.random.key(0), "seed": 0,
    "eta": 0.1, "gamma": 0.1, "step_size": 0.01, "decay": 0.9, "step_size_fn": lambda count: 0.01,
    "l2_norm_clip": 1.0, "noise_multiplier": 1.0, "max_consecutive_errors": 2, "every_k_schedule": 2, "mask": True,
    "total_steps": 10, "max_linesearch_steps": 5, "max_backtracking_steps": 5, "fast_optimizer": S, "sync_period": 5,
    "slow_step_size": 0.5, "transforms": {"a": S}, "param_labels": "a", "f": lambda updates, params=None: updates,
    "should_transform_fn": lambda *args, **extra: True, "measures": {}, "measure_name": "m", "measure": lambda *args, **extra: 0.0,
    "weight_decay": 0.1, "params": None,
}  # fmt: skip
LINE_SEARCH = (
    r"a line search evaluates the cost again.*use optax\.lbfgs\(learning_rate, linesearch=None\)"
)
PER_EXAMPLE = r"one gradient per example: use fit\(\.\.\., privacy=dp\.Privacy"
HESSIAN = r"differentiates the cost.*use dp\.kfac\(\)"
REFUSED = {
    "lbfgs": LINE_SEARCH, "scale_by_zoom_linesearch": LINE_SEARCH, "scale_by_backtracking_linesearch": LINE_SEARCH,
    "lookahead": "optax.lookahead needs params in pairs.*use its fast optimizer alone",
    "MultiSteps": r"must be an optax.GradientTransformation, got .*MultiSteps.*: pass its \.gradient_transformation\(\)",
    "dpsgd": PER_EXAMPLE, "differentially_private_aggregate": PER_EXAMPLE,
    "sophia": HESSIAN, "hutchinson_estimator_diag_hessian": HESSIAN,
    "measure_with_ema": "optimizer must return updates like params from its update, got a ",
    "scale_by_muon": "optimizer failed in its update, which receives updates, state, params, value, cache, Y, weights: ",
}  # fmt: skip


def all_of_optax():
    """What optax and optax.contrib export and build from simple arguments."""
    made = {}
    for module in (optax, optax.contrib):
        for name in sorted(n for n in dir(module) if not n.startswith("_")):
            f = getattr(module, name)
            if not callable(f) or name.endswith(("State", "Transformation", "ExtraArgs")):
                continue
            try:
                parameters = inspect.signature(f).parameters.values()
                needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]  # fmt: skip
                optimizer = f(**{n: GIVEN[n] for n in needed})
            except Exception:  # not an optimizer, or one with arguments of its own
                continue
            if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
                made[name] = optimizer
    return made


def fit(optimizer):
    params, X, Y, _ = problem(1, [3, 4, 1], 8, output="identity", dtype=np.float32)
    return dp.fit(params, optimizer, 0.1 * X, Y, epochs=1, batch_size=4, key=jax.random.key(1))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of optax, about arguments that it will ask for
def test_all_of_optax_works_or_says_what_to_use_instead():
    """In one test, as which there are depends on the version; some raise ranks."""
    with jax.numpy_rank_promotion("allow"):
        try_all(all_of_optax())


def try_all(made):
    assert len(made) > 80
    assert {"adam", "lbfgs", "lookahead", "sam", "MultiSteps", "muon", "sophia"} <= set(made)
    for name, optimizer in made.items():
        if name in REFUSED:
            with pytest.raises((ValueError, TypeError), match=REFUSED[name]) as caught:
                fit(optimizer)
            assert "\n" not in str(caught.value)
        else:
            traced(optimizer)


def traced(optimizer):
    """An epoch of fit, not compiled."""
    params, X, Y, _ = problem(1, [3, 4, 1], 8, output="identity", dtype=np.float32)
    key, epoch = jax.random.key(1), partial(one_epoch, optimizer=optimizer, batch_size=4)
    jax.eval_shape(lambda p, X, Y: epoch(p, optimizer.init(p), key, 1, X, Y), params, X.T, Y.T)


OTHERS = {
    "lbfgs without a line search": lambda: optax.lbfgs(0.01, linesearch=None),
    "sam by itself": lambda: optax.contrib.sam(S, S, opaque_mode=False),
    "a MultiSteps that was turned": lambda: optax.MultiSteps(S, 2).gradient_transformation(),
    "reduce_on_plateau": lambda: optax.chain(S, optax.contrib.reduce_on_plateau()),
    "polyak_sgd": optax.polyak_sgd,
    "apply_if_finite": lambda: optax.apply_if_finite(S, 3),
    "schedule_free": lambda: optax.contrib.schedule_free(S, 0.01),
    "a frozen layer, as advised": lambda: optax.chain(dp.kfac(0.1), optax.masked(optax.set_to_zero(), (True, False))),
}  # fmt: skip


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_advised_works(name):
    before = problem(1, [3, 4, 1], 8, output="identity", dtype=np.float32)[0]
    after = fit(OTHERS[name]()).params
    assert not np.array_equal(after[1].W, before[1].W)
    if name.startswith("a frozen"):
        assert np.array_equal(after[0].W, before[0].W)


def state_that_grows():
    init = lambda params: (jnp.zeros(1),)  # noqa: E731
    return optax.GradientTransformation(init, lambda g, s, p=None: (g, (jnp.zeros(2),)))


def state_that_changes():
    init = lambda params: (jnp.zeros(1),)  # noqa: E731
    return optax.GradientTransformation(init, lambda g, s, p=None: (g, [*s, *s]))


def broken(where):
    def fails(*args):
        raise KeyError("m")

    init = fails if where == "init" else lambda params: ()
    return optax.GradientTransformation(init, fails)


KFAC = r"needs every layer, so it can't be inside of optax.masked, multi_transform or partition"
MADE = {
    "lbfgs": (optax.lbfgs, LINE_SEARCH),
    "lookahead": (lambda: optax.lookahead(S, 5, 0.5), "needs params in pairs"),
    "sam, opaque": (lambda: optax.contrib.sam(S, S, opaque_mode=True), "opaque mode computes gradients again"),
    "sam in a chain": (lambda: optax.chain(optax.contrib.sam(S, S, opaque_mode=False)), "use it by itself instead of in a chain"),
    "MultiSteps": (lambda: optax.MultiSteps(S, 2), r"pass its \.gradient_transformation\(\)"),
    "kfac in multi_transform": (lambda: optax.multi_transform({"t": dp.kfac(0.1), "f": optax.set_to_zero()}, ("f", "t")), KFAC),
    "kfac in masked": (lambda: optax.masked(dp.kfac(0.1), dp.weight_mask), KFAC),
    "kfac in partition": (lambda: optax.partition({True: dp.kfac(), False: S}, dp.weight_mask), KFAC),
    "by_quadratic_model in masked": (lambda: optax.masked(dp.by_quadratic_model(S), (True, False)), KFAC),
    "a shape that changes": (state_that_grows, r"must keep the structure and dtypes of its state in its update, got float32 of shape \(2,\) from float32 of shape \(1,\) at state\[0\]"),
    "a structure that changes": (state_that_changes, "must keep the structure and dtypes of its state"),
    "init that fails": (lambda: broken("init"), "failed in its init, which receives params: KeyError: 'm'"),
    "update that fails": (lambda: broken("update"), "failed in its update, which receives updates, state, params, value, cache, Y, weights: KeyError: 'm'"),
}  # fmt: skip


def doors(optimizer):
    params, X, Y, _ = problem(1, [3, 4, 1], 8, output="identity", dtype=np.float32)
    common = {"epochs": 1, "batch_size": 4, "key": jax.random.key(1)}

    def step():
        started = optimizer.init(params)
        return dp.train_step(optimizer)(params, started, X, Y)

    return {
        "fit": lambda: dp.fit(params, optimizer, X, Y, **common),
        "fit with privacy": lambda: dp.fit(params, optimizer, X, Y, privacy=dp.Privacy(1.0, 1e-3, noise_multiplier=1.0), **common),
        "fit_batches": lambda: dp.fit_batches(params, optimizer, [(X, Y)] * 2, epochs=1),
        "fit_ensemble": lambda: dp.fit_ensemble(params, lambda learning_rate: optimizer, X, Y, sweep={"learning_rate": [0.1]}, **common),
        "train_step": step,
        "in_backward": lambda: dp.in_backward(optimizer).init(params),
    }  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_fit_refuses_in_one_line(name):
    make, message = MADE[name]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        doors(make())["fit"]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("door", ["fit with privacy", "fit_batches", "fit_ensemble", "train_step", "in_backward"])  # fmt: skip
@pytest.mark.parametrize("name", ["lbfgs", "MultiSteps", "kfac in multi_transform", "update that fails"])  # fmt: skip
def test_each_door_refuses_in_one_line(door, name):
    make, message = MADE[name]
    if door in ("fit with privacy", "in_backward"):
        message = message.split(", which receives")[0].replace("update", "")
    if name == "kfac in multi_transform" and door in ("train_step", "in_backward"):
        message = f"{KFAC}|must be"
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        doors(make())[door]()
    assert "\n" not in str(caught.value)


def test_deepprops_own_errors_keep_their_text():
    private = doors(dp.kfac())["fit with privacy"]
    with pytest.raises(ValueError, match=r"^by_quadratic_model \(and so dp\.kfac without"):
        private()
    with pytest.raises(ValueError, match=r"^kfac needs factors="):
        doors(dp.kfac(0.1))["fit with privacy"]()
