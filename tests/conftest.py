"""Strict types and ranks for every test; hypothesis profiles: pytest --hypothesis-profile=thorough."""

import os

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # of which all but test_devices.py uses the first

UNOPTIMISED = "--xla_backend_optimization_level=0"

common = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("ordinary", max_examples=15, derandomize=True, **common)
settings.register_profile("thorough", max_examples=3000, **common)
settings.load_profile("ordinary")


def pytest_addoption(parser):
    parser.addoption(
        "--optimised", action="store_true", help="compile as without pytest; a third slower"
    )
    parser.addoption(
        "--kills", type=int, default=1, help="of a training process (default %(default)s)"
    )


def pytest_configure(config):
    """Leave LLVM's optimiser out: XLA's program is the same, what it counts too, only slower."""
    if not config.getoption("--optimised"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}".strip()


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
