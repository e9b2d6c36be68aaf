"""The identity of functions across processes."""

import operator
import subprocess
import sys
import threading
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.training.identity import hash_of, name_of


def scaled(A, Y, factor=1.0, *, shift=0.0):
    return jnp.mean(A - Y) * factor + shift


class Weighted:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, A, Y):
        return self.times(jnp.mean(A - Y))

    def times(self, x):
        return x * self.factor


class Sum(Weighted):
    def times(self, x):
        return x + self.factor


def made(inside):
    def metric(A, Y):
        return jnp.mean(A - Y) * inside

    return metric


def calls(f):
    @wraps(f)
    def wrapper(A, Y):
        return f(A, Y)

    return wrapper


def recursive(n):
    def f(x):
        return x if x <= n else f(x - 1)

    return f


def with_default(value):
    def f(A, Y, value=value):
        return value

    return f


# Each function is made twice, with equal hashes; different functions must have different hashes.
MAKERS = {
    "a function": lambda: lambda A, Y: jnp.mean(A),
    "another constant": lambda: lambda A, Y: jnp.mean(A) * 2,
    "another name in it": lambda: lambda A, Y: jnp.median(A),
    "another inner function": lambda: lambda A, Y: jnp.mean(A, where=(lambda: True)()),
    "a set of constants": lambda: lambda A, Y: A if "a" in {"a", "b", "c"} else Y,
    "another set of constants": lambda: lambda A, Y: A if "a" in {"a", "b", "d"} else Y,
    "a default": lambda: with_default(1.0),
    "another default": lambda: with_default(2.0),
    "a default that is a list": lambda: with_default([1, [2]]),
    "a closure over a number": lambda: made(1.0),
    "another number": lambda: made(2.0),
    "an integer": lambda: made(1),
    "a closure over an array": lambda: made(np.arange(3.0)),
    "another array": lambda: made(np.arange(3.0)[::-1]),
    "another shape": lambda: made(np.arange(3.0)[None]),
    "another dtype": lambda: made(np.arange(3.0, dtype=np.float32)),
    "a closure over a jax array": lambda: made(jnp.arange(4.0)),
    "a closure over a key": lambda: made(jax.random.key(0)),
    "another key": lambda: made(jax.random.key(1)),
    "a closure over a dict": lambda: made({"a": 1, "b": 2}),
    "another dict": lambda: made({"a": 2, "b": 1}),
    "a closure over a function": lambda: made(made(1.0)),
    "another function": lambda: made(made(2.0)),
    "a closure over layers": lambda: made(dp.init_params(jax.random.key(0), [2, 1])),
    "other layers": lambda: made(dp.init_params(jax.random.key(1), [2, 1])),
    "a recursive function": lambda: recursive(1),
    "another recursive one": lambda: recursive(2),
    "a module's function": lambda: scaled,
    "partial": lambda: partial(scaled, factor=2.0),
    "another partial": lambda: partial(scaled, factor=3.0),
    "partial, another keyword": lambda: partial(scaled, shift=2.0),
    "jitted": lambda: jax.jit(made(1.0)),
    "another jitted": lambda: jax.jit(made(2.0)),
    "wrapped": lambda: calls(made(1.0)),
    "another wrapped": lambda: calls(made(2.0)),
    "an object": lambda: Weighted(1.0),
    "another object": lambda: Weighted(2.0),
    "of another class": lambda: Sum(1.0),
    "a method": lambda: Weighted(1.0).times,
    "a method of another object": lambda: Weighted(2.0).times,
    "an object in C": lambda: operator.itemgetter(1),
    "another object in C": lambda: operator.itemgetter(2),
    "a library's": lambda: dp.manual_backward,
    "another of a library": lambda: dp.diagnose,
    "a built-in": lambda: max,
}  # fmt: skip


def test_hashes_are_distinct_and_repeatable():
    hashes = {kind: (hash_of(make()), hash_of(make())) for kind, make in MAKERS.items()}
    assert all(one == again for one, again in hashes.values())
    assert len({one for one, _ in hashes.values()}) == len(MAKERS)


@pytest.mark.thorough
def test_another_process_has_the_same_hashes():
    """The other process has another PYTHONHASHSEED, so its sets have another order."""
    code = "from tests.training.test_identity import *; print([hash_of(make()) for make in MAKERS.values()])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert run.stdout.strip() == str([hash_of(make()) for make in MAKERS.values()]), run.stderr


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (scaled, "scaled"),
        (partial(scaled, factor=2), "partial of scaled"),
        (jax.jit(scaled), "scaled"),
        (Weighted(1.0), "Weighted"),
        (Weighted(1.0).times, "times"),
        (made(1.0), "metric"),
    ],
)
def test_names(function, name):
    assert name_of(function) == name


def test_opaque_objects_are_hashed_by_type():
    def f(lock):
        return lambda A, Y: lock

    assert hash_of(f(threading.Lock())) == hash_of(f(threading.Lock()))


RATE = 0.5


def reads_a_global(A, Y):
    return RATE * helper(A)


def helper(A):
    return A + 1


def test_globals_that_a_function_reads_enter_the_hash(monkeypatch):
    before = hash_of(reads_a_global)
    assert hash_of(reads_a_global) == before
    monkeypatch.setitem(globals(), "RATE", 0.9)
    other_rate = hash_of(reads_a_global)
    monkeypatch.setitem(globals(), "helper", lambda A: A + 2)
    assert len({before, other_rate, hash_of(reads_a_global)}) == 3
