"""Strict types and ranks for every test, and which tests are ordinary.

`pytest` runs the ordinary tests, in under four minutes on two cores. `pytest --thorough` runs all of
them, and `pytest --rest` those that `pytest` leaves out. It leaves out two kinds: tests marked
`thorough` and doctests, and combinations: of a test with several parameters the
ordinary run takes as many cases as are needed for each value of each parameter to occur. Of a test
marked `ordinary(n)` it takes n cases, evenly spread.
"""

import os
from collections import defaultdict

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # of which all tests but those of devices use the first

UNOPTIMISED = "--xla_backend_optimization_level=0"

common = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("ordinary", max_examples=8, derandomize=True, **common)
settings.register_profile("thorough", max_examples=40, **common)
settings.register_profile(
    "thousands", max_examples=3000, **common
)  # --hypothesis-profile=thousands
settings.load_profile("ordinary")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run every test")
    parser.addoption("--rest", action="store_true", help="run what the ordinary run leaves out")
    parser.addoption(
        "--optimised", action="store_true", help="compile as without pytest; a third slower"
    )
    parser.addoption(
        "--kills", type=int, default=1, help="of a training process (default %(default)s)"
    )


def pytest_configure(config):
    """Leave LLVM's optimiser out: XLA's program is the same, what it counts too, only slower."""
    config.addinivalue_line("markers", "thorough: long by itself; not in the ordinary run")
    config.addinivalue_line("markers", "ordinary(n): the ordinary run takes n of its cases")
    if not config.getoption("--optimised"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}".strip()
    all_or_rest = config.getoption("--thorough") or config.getoption("--rest")
    if all_or_rest and config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("thorough")


def pytest_collection_modifyitems(config, items):
    """Choose the tests of this run; pytest's last line counts those left out."""
    if config.getoption("--thorough"):
        return
    ordinary = _ordinary(items)
    rest = config.getoption("--rest")
    left_out = [item for item in items if (item.nodeid in ordinary) == rest]
    items[:] = [item for item in items if (item.nodeid in ordinary) != rest]
    config.hook.pytest_deselected(items=left_out)


def _ordinary(items):
    """The ids of the tests of the ordinary run."""
    cases, chosen = defaultdict(list), set()
    for item in items:
        if item.get_closest_marker("thorough") or isinstance(item, pytest.DoctestItem):
            continue
        if hasattr(item, "callspec"):
            cases[item.nodeid.partition("[")[0]].append(item)
        else:
            chosen.add(item.nodeid)
    for group in cases.values():
        mark = group[0].get_closest_marker("ordinary")
        chosen |= _covering(group) if mark is None else _spread(group, mark.args[0])
    return chosen


def _spread(group, n):
    """Ids of n cases, the first and the last and others between them."""
    places = [0] if n == 1 else [round(i * (len(group) - 1) / (n - 1)) for i in range(n)]
    return {group[place].nodeid for place in places}


def _covering(group):
    """Ids of few cases in which each value of each parameter occurs, chosen greedily."""
    values = {item.nodeid: set(_values(item)) for item in group}
    unseen, chosen = set().union(*values.values()), set()
    while unseen:
        best = max(values, key=lambda case: len(values[case] & unseen))
        chosen.add(best)
        unseen -= values[best]
    return chosen


def _values(item):
    """The parameters of a case and their values; those that are not plain, by their number."""
    for name, value in item.callspec.params.items():
        plain = isinstance(value, str | int | float | bool | tuple | type(None))
        yield name, repr(value) if plain else item.callspec.indices[name]


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one worker, or a process that it starts, has compiled, the others read from a folder."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    options = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """The programs of a file: each takes memory maps, of which Linux gives a process 65530."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optax_types():
    """optax raises a float to the power of an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield
