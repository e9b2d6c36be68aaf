"""What another thread compiled on random numbers is not compiled again for the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.command.compiled_ahead import compile_ahead
from deepprop.command.words import METRICS
from deepprop.training.measure import measure_of

X, Y = np.ones((5, 12), np.float32), np.eye(4, 12, dtype=np.float32)
Y[0, 4:] = 1
VALIDATION = dp.Validation(X, Y, metrics=dict([METRICS["softmax"]]))


def network(dtype=None, **options):
    params = dp.init_params(jax.random.key(0), [5, 8, 8, 4], **options)
    return dp.with_compute_dtype(params, dtype)


def network_of(sizes):
    return dp.init_params(jax.random.key(0), sizes, residual=True, stack=True)


def measure(params):
    return measure_of(params, VALIDATION)(params)


def check(params):
    return dp.check_gradients(params, X, Y, sample=20)


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"residual": True, "stack": True}, {"dropout": 0.5, "normalize": "layer"}],
    ids=str,
)
def test_programs_that_were_compiled_ahead_are_found(dtype, options, caplog):
    jax.clear_caches()
    outline = jax.eval_shape(lambda: network(dtype, **options))
    compile_ahead(outline, measure, check).join()
    params = network(dtype, **options)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        found, report = measure(params), check(params)
        assert "Compiling" not in caplog.text
        dp.predict(params, X)
        assert "Compiling" in caplog.text
    assert report.ok
    assert np.isfinite(found["val_cost"])


def test_an_error_in_the_thread_is_left_to_the_caller():
    seen = []

    def fails(params):
        seen.append(params)
        raise ValueError("of the thread")

    compile_ahead(jax.eval_shape(network), fails).join()
    assert len(seen) == 1
    assert all(isinstance(leaf, jnp.ndarray) for leaf in jax.tree.leaves(seen[0]))


def test_numbers_stay_finite_in_a_deep_network():
    deep = jax.eval_shape(lambda: network_of([5, *[8] * 1000, 4]))
    costs = []
    compile_ahead(deep, lambda params: costs.append(measure(params)["val_cost"])).join()
    assert np.isfinite(costs[0])


def test_there_is_no_thread_without_a_use_or_for_a_large_network():
    assert compile_ahead(jax.eval_shape(network)) is None
    assert compile_ahead(jax.eval_shape(lambda: network_of([4000, 4000, 4])), check) is None
