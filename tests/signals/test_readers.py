"""The table of readers is complete."""

import inspect

import deepprop as dp
from tests.readers import READERS


def test_every_function_that_reads_a_cache_is_in_the_table():
    functions = {name: getattr(dp, name) for name in dp.signals.__all__}
    readers = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and "cache" in inspect.signature(function).parameters
    }
    missing = readers - {name.partition(",")[0] for name in READERS}
    assert missing == {"sampled_targets"}, "add a line for each to tests/readers.py"
