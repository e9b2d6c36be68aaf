"""Programs are shared by calls with the same functions, and released with those functions."""

import gc
import operator
import threading
import weakref
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from deepprop.training import batches, ensemble, epoch, measure, private
from deepprop.training.programs import STRONG, Programs
from tests.problems import grouped, problem, thorough

pytestmark = pytest.mark.usefixtures("optax_types")
PARAMS, X, Y, _ = problem(0, [4, 8, 3], 24, "relu", dtype=np.float32)
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
KEY = jax.random.key(1)
SGD = optax.sgd(0.1)


def fit(optimizer=SGD, **options):
    return dp.fit(PARAMS, optimizer, X, Y, epochs=2, batch_size=8, key=KEY, **grouped(**options))


def with_metric(metric):
    return fit(validation=(X, Y), metrics={"m": metric})


def private_epoch(optimizer):
    private.private_epoch(
        PARAMS, optimizer.init(PARAMS), KEY, 1, X.T, Y.T, 2.0, optimizer=optimizer,
        privacy=dp.Privacy(max_norm=1.0, delta=1e-4, noise_multiplier=2.0), batch_size=8,
    )  # fmt: skip


def fit_ensemble(optimizer=SGD, **options):
    return dp.fit_ensemble(
        SEVERAL, optimizer, X, Y, epochs=2, batch_size=8, key=KEY, **grouped(**options)
    )


def fit_batches(optimizer=SGD, **options):
    return dp.fit_batches(PARAMS, optimizer, [(X, Y)], epochs=2, **options)


def new_backward():
    return lambda cache, Y, weights: dp.manual_backward(cache, Y, weights)


def halved(cache, Y, weights, factor):
    return jax.tree.map(lambda g: factor * g, dp.manual_backward(cache, Y, weights))


def new_metric():
    return lambda A, Y: jnp.mean(A - Y)


def new_record():
    return lambda cache, dZ, updates: jnp.mean(dZ[0])


class Rule:
    """An optimizer whose functions are bound methods, like those of optax.MultiSteps."""

    def init(self, params):
        return ()

    def update(self, grads, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, grads), state

    def transformation(self):
        return optax.GradientTransformation(self.init, self.update)


class Mean:
    def __call__(self, A, Y):
        return jnp.mean(A)


@pytest.fixture(scope="module", autouse=True)
def _few_objects():
    """gc.collect goes through everything that the tests before have left."""
    jax.clear_caches()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# What makes the object, what trains with it, what in it must die, and where its programs were.
OBJECTS = {
    "optimizer": (lambda: optax.adam(0.1), fit, lambda o: o.update, epoch.train_epoch),
    "chain": (lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)), fit, lambda o: o.update, epoch.train_epoch),
    "in_backward": (lambda: dp.in_backward(optax.sgd(0.1)), fit, lambda o: o.update, epoch.train_epoch),
    "bound methods": (Rule, lambda rule: fit(rule.transformation()), lambda rule: rule, epoch.train_epoch),
    "backward": (new_backward, lambda f: fit(backward=f), lambda f: f, epoch.train_epoch),
    "partial": (lambda: partial(halved, factor=0.5), lambda f: fit(backward=f), lambda f: f, epoch.train_epoch),
    "record": (new_record, lambda f: fit(record=f), lambda f: f, epoch.train_epoch),
    "metric": (new_metric, with_metric, lambda f: f, measure._measured),
    "jitted metric": (lambda: jax.jit(new_metric()), with_metric, lambda f: f, measure._measured),
    "callable object": (Mean, with_metric, lambda f: f, measure._measured),
    "privacy": (lambda: optax.adam(0.1), private_epoch, lambda o: o.update, private.private_epoch),
    "fit_batches": (lambda: optax.adam(0.1), fit_batches, lambda o: o.update, batches._train_minibatch),
    "fit_batches, backward": (new_backward, lambda f: fit_batches(backward=f), lambda f: f, batches._train_minibatch),
    "fit_ensemble": (lambda: optax.adam(0.1), fit_ensemble, lambda o: o.update, ensemble._train_epoch),
    "fit_ensemble, metric": (new_metric, lambda f: fit_ensemble(validation=(X, Y), metrics={"m": f}), lambda f: f, measure._measured),
    "sweep": (lambda: lambda rate: optax.sgd(rate), lambda f: fit_ensemble(f, sweep={"rate": [0.1, 0.2]}), lambda f: f, ensemble._train_epoch),
}  # fmt: skip


LONG = {
    "chain", "partial", "record", "jitted metric", "fit_batches, backward", "fit_ensemble",
    "fit_ensemble, metric",
}  # fmt: skip


@pytest.mark.ordinary(4)
@pytest.mark.parametrize("kind", [thorough(k) if k in LONG else k for k in OBJECTS])
def test_a_second_call_compiles_nothing_and_programs_are_released_with_the_object(kind):
    make, train, part, programs = OBJECTS[kind]
    gc.collect()
    before = len(programs)
    made = make()
    train(made)
    compiled, entries = programs._cache_size(), len(programs)
    assert entries == before + 1
    train(made)
    assert (programs._cache_size(), len(programs)) == (compiled, entries)
    alive = weakref.ref(part(made))
    del made
    gc.collect()  # an object that is in a cycle of references
    assert alive() is None
    assert len(programs) == before


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("train", ["fit", "fit_ensemble"])
def test_a_few_examples_more_or_fewer_run_the_same_program(train):
    """Such as the folds of a cross-validation; with weights as well as without."""
    optimizer, programs = (
        optax.adam(0.1),
        {"fit": epoch.train_epoch, "fit_ensemble": ensemble._train_epoch},
    )
    params, X, Y, w = problem(0, [3, 4, 2], 17, weighted=True, dtype=np.float32)
    options = {"epochs": 2, "batch_size": 5, "key": jax.random.key(0)}
    if train == "fit_ensemble":
        options["key"] = jax.random.split(options["key"], 2)
    for weights in (None, w):
        compiled = []
        for m in (16, 17, 19):
            i = np.arange(m) % 17
            of_m = None if weights is None else weights[i]
            getattr(dp, train)(params, optimizer, X[:, i], Y[:, i], weights=of_m, **options)
            compiled.append(programs[train]._cache_size())
        assert compiled[0] == compiled[1] == compiled[2]


def test_an_optimizer_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        optimizer = optax.adam(0.1)
        fit(optimizer)
        alive = weakref.ref(optimizer.update)
        before = len(epoch.train_epoch)
        del optimizer
        assert alive() is None
        assert len(epoch.train_epoch) == before - 1
    finally:
        gc.enable()


def applied():
    return Programs(lambda x, *, g, n=1: g(x) * n, static=("g", "n"))


def test_settings_are_compared_by_value_and_callables_by_identity():
    apply, double, ONE = applied(), lambda x: 2 * x, jnp.ones(())
    for n in (1, 1.0, True, 3, 3):
        assert apply(ONE, g=double, n=n) == 2 * n
    assert len(apply) == 4  # 1 is not 1.0, whose product has another type
    apply(ONE, g=lambda x: 2 * x)
    assert len(apply) == 4  # the lambda is gone

    @dataclass(frozen=True)
    class Setting:
        factor: int

        def __rmul__(self, x):
            return x * self.factor

    for _ in range(2):
        assert apply(ONE, g=double, n=Setting(5)) == 10  # equal ones share


def test_callables_without_weak_references_are_kept_while_recent():
    apply, getter = applied(), operator.itemgetter(0)
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(getter)
    for i in range(STRONG + 3):
        assert apply(jnp.arange(50.0), g=operator.itemgetter(i)) == i
    assert len(apply) == STRONG


def test_nested_calls_have_separate_static_arguments():
    apply = applied()
    outer = lambda x: apply(x, g=inner, n=3) + x  # noqa: E731
    inner = lambda x: x * 10  # noqa: E731
    assert apply(jnp.ones(()), g=outer, n=2) == 2 * 31


def test_an_error_while_tracing_is_raised_and_the_next_call_works():
    apply, calls = applied(), []

    def fails_first(x):
        calls.append(x)
        if len(calls) == 1:
            raise RuntimeError("no")
        return x

    with pytest.raises(RuntimeError, match="no"):
        apply(jnp.ones(()), g=fails_first)
    assert apply(jnp.ones(()), g=fails_first) == 1


def test_threads_share_a_program_without_mixing_up_functions():
    apply, start, got = applied(), threading.Barrier(8), {}
    functions = [lambda x, i=i: x * i for i in range(4)]

    def work(k):
        start.wait(30)
        got[k] = [float(apply(jnp.ones(()), g=functions[(k + i) % 4])) for i in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {k: [float((k + i) % 4) for i in range(20)] for k in range(8)}
    assert (len(apply), apply._cache_size()) == (4, 4)
    functions.clear()
    assert len(apply) == 0
