"""The exceptions of the package: their messages, and that they can be pickled and copied."""

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.gradient_check import GradientError, GradientReport
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, _ = problem(0, [4, 8, 1], 32, "relu", "identity", dtype=np.float32)
KEY = jax.random.key(1)
REPORT = GradientReport(0.5, "W[1][0, 0]", 1.0, 2.0, 3, 4, 1, 1e-5)


def training_error(X=X, params=PARAMS, optimizer=None):
    optimizer = optax.sgd(1e30) if optimizer is None else optimizer
    with jax.numpy_dtype_promotion("standard"), pytest.raises(dp.TrainingError) as caught:
        dp.fit(params, optimizer, X, Y, epochs=3, batch_size=8, key=KEY)
    return caught.value


EXAMPLES = {"TrainingError": training_error, "GradientError": lambda: GradientError(REPORT)}


def test_every_exception_has_an_example_here():
    names = [module.name for module in pkgutil.walk_packages(dp.__path__, "deepprop.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    found = {
        name
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
        if kind.__module__.startswith("deepprop") and not name.startswith("_")
    }
    assert found == set(EXAMPLES)


WAYS = {
    **{f"pickle {n}": lambda e, n=n: pickle.loads(pickle.dumps(e, n)) for n in range(2, 6)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_copies_are_complete(name, way):
    error = EXAMPLES[name]()
    error.add_note("of trial 7")
    again = WAYS[way](error)
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)
    assert again.__notes__ == ["of trial 7"]
    if name == "GradientError":
        assert again.report == error.report
        return
    np.testing.assert_array_equal(again.history["cost"], error.history["cost"])
    assert again.fit.stopped == "not finite"
    np.testing.assert_array_equal(again.fit.params[0].W, error.fit.params[0].W)
    assert jax.tree.structure(again.fit.params) == jax.tree.structure(error.fit.params)


def test_float64_params_can_be_unpickled_without_x64():
    with jax.enable_x64(True):
        params, *_ = problem(0, [4, 8, 1], 32, "relu", "identity")
        data = pickle.dumps(training_error(params=params, optimizer=optax.sgd(1e300)))
    assert pickle.loads(data).fit.params[0].W.dtype == jnp.float32


def work(rate):
    return dp.fit(
        PARAMS, optax.sgd(rate), X, Y, epochs=2, batch_size=8, key=jax.random.key(1)
    ).stopped


@pytest.mark.thorough
def test_a_process_pool_returns_the_error():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = [pool.apply_async(work, (rate,)) for rate in (1e30, 0.01)]
        with pytest.raises(dp.TrainingError, match="not finite in epoch 1") as caught:
            results[0].get(timeout=120)
        assert results[1].get(timeout=120) == "epochs"
    np.testing.assert_array_equal(caught.value.fit.params[0].W, PARAMS[0].W)


# The advice in a TrainingError.

LARGE = r"inputs: their size is up to .*; scale them to about 1; or try a smaller learning rate"
ADVICE = {
    "a large rate": (X, optax.sgd(1e30), "; try a smaller learning rate \\(the error's fit"),
    "large inputs": (X * 1e30, optax.sgd(0.1), LARGE),
    "unscaled inputs": (X * 1000, optax.sgd(0.1), LARGE),
    "one input among small ones": (X * np.float32([[1], [1], [1], [1e4]]), optax.sgd(0.1), LARGE),
    "without a rate": (X * 1e30, dp.kfac(), "scale them to about 1; or try larger minibatches"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_fits_the_cause(case):
    inputs, optimizer, message = ADVICE[case]
    assert re.search(message, str(training_error(inputs, optimizer=optimizer)))


SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
OTHERS = {
    "fit_batches": lambda X: dp.fit_batches(PARAMS, optax.sgd(0.1), [(X, Y)], epochs=2),
    "fit_ensemble": lambda X: dp.fit_ensemble(
        SEVERAL, optax.sgd(0.1), X, Y, epochs=2, batch_size=8, key=KEY
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_ways_of_training_give_the_advice_too(kind):
    with pytest.raises(dp.TrainingError, match=LARGE):
        OTHERS[kind](X * 1e30)
