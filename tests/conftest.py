"""Strict types and ranks for every test, and which tests are ordinary.

`pytest` runs the ordinary tests, in under four minutes on two cores. `pytest --thorough` runs all of
them, and `pytest --rest` those that `pytest` leaves out. It leaves out two kinds: tests marked
`thorough` and doctests, and combinations: of a test with several parameters the
ordinary run takes as many cases as are needed for each value of each parameter to occur. Of a test
marked `ordinary(n)` it takes n cases, evenly spread, or all where there are fewer.
"""

import gc
import os
import signal
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # of which all tests but those of devices use the first

# Compile without LLVM's optimizer and, where jaxlib has that flag, without MLIR: the results and the
# memory that XLA counts stay the same, and compiling, which is most of the time, takes half of it.
UNOPTIMISED = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith("0.10."):
    UNOPTIMISED.append("--xla_cpu_use_fusion_emitters=false")
LEFT_OUT = pytest.StashKey[int]()
MEMORY_MAPS = Path("/proc/self/maps")  # on Linux

common = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("ordinary", max_examples=5, derandomize=True, **common)
settings.register_profile("thorough", max_examples=12, **common)
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
    """Register the markers, and choose how programs are compiled."""
    config.addinivalue_line("markers", "thorough: long by itself; not in the ordinary run")
    config.addinivalue_line("markers", "ordinary(n): the ordinary run takes n of its cases")
    if not config.getoption("--optimised"):
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *UNOPTIMISED]).strip()
    gc.set_threshold(50_000)  # looking through all that tracing makes took a twentieth of the time
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)  # for tests of Ctrl-C
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(FromWorkers())
    all_or_rest = config.getoption("--thorough") or config.getoption("--rest")
    if all_or_rest and config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("thorough")


def pytest_collection_modifyitems(config, items):
    """Choose the tests of this run."""
    if config.getoption("--thorough"):
        return
    ordinary = _ordinary(items)
    rest = config.getoption("--rest")
    left_out = [item for item in items if (item.nodeid in ordinary) == rest]
    items[:] = [item for item in items if (item.nodeid in ordinary) != rest]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """A worker of xdist tells how many tests it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


class FromWorkers:
    """Where xdist collects in workers, whose deselected tests it does not count."""

    @staticmethod
    def pytest_testnodedown(node):
        node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    """Say how many tests were left out."""
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        other = "pytest" if config.getoption("--rest") else "pytest --rest"
        terminalreporter.write_line(f"{left_out} tests are left to {other}")


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
    n = min(n, len(group))
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
    """The parameters of a case and their values; values that are not plain count as objects."""
    for name, value in item.callspec.params.items():
        plain = isinstance(value, str | int | float | bool | tuple | type(None))
        yield name, repr(value) if plain else id(value)


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
    """Drop the compiled programs when they are many.

    Each takes memory, and maps of memory, of which Linux gives a process 65530. What the files
    share, such as sums of small arrays, stays until then.
    """
    yield
    if not MEMORY_MAPS.exists() or MEMORY_MAPS.read_bytes().count(b"\n") > 2_000:
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
