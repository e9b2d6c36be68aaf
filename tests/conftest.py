"""Strict types and ranks for every test; hypothesis profiles: pytest --hypothesis-profile=thorough."""

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

common = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("ordinary", max_examples=25, derandomize=True, **common)
settings.register_profile("thorough", max_examples=3000, **common)
settings.load_profile("ordinary")


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=2, help="of a training process (default %(default)s)"
    )


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
