"""Whether a function is the one of an earlier process: its name, and a hash of what it does."""

import hashlib
import sys
from collections.abc import Mapping
from functools import partial
from inspect import CO_NESTED
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Told apart by name: what their functions do is for their releases to keep.
LIBRARIES = ("deepprop", "jax", "jaxlib", "optax", "numpy", "builtins")
PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array, FunctionType)
PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"  # which fixes what code compiles to


def name_of(function: Any) -> str:
    """The name of a function, or of the type of a callable object; of a library, with its module.

    The module of a user's function may be another in the next process, such as __main__.

    >>> import jax.numpy as jnp, deepprop as dp
    >>> name_of(partial(dp.clipped_backward, max_norm=1.0))
    'partial of deepprop.signals.clipping.clipped_backward'
    """
    if isinstance(function, partial):
        return f"partial of {name_of(function.func)}"
    what = function if hasattr(function, "__qualname__") else type(function)
    return f"{what.__module__}.{what.__qualname__}" if _is_of_library(what) else str(what.__name__)


def hash_of(function: Any) -> str:
    """A hash of the code, constants, defaults and closure of a function, the same in each process.

    Within one version of Python alone, as others compile to other code. Functions of a library
    count by their names. Of the globals that the code names, numbers, text, arrays and functions
    count by what they are, others not at all.
    """
    return _hashed(function, {})


def _hashed(value: Any, seen: dict[int, tuple[Any, str]]) -> str:
    """A hash of any value; `seen` has those that were met, so that cycles end."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) not in seen:
        seen[id(value)] = value, "a cycle"  # with the value, so that its id stays its own
        text = f"{type(value).__qualname__} {_inside(value, partial(_hashed, seen=seen))}"
        seen[id(value)] = value, hashlib.sha256(text.encode()).hexdigest()[:16]
    return seen[id(value)][1]


def _inside(value: Any, hashed: Any) -> Any:
    """What tells the value from others of its type, as something that has a text."""
    match value:
        case tuple() | list():
            return [hashed(item) for item in value]
        case set() | frozenset():
            return sorted(map(hashed, value))
        case Mapping():
            return sorted((hashed(key), hashed(item)) for key, item in value.items())
        case np.ndarray() | np.generic() | jax.Array():
            return _of_array(value, hashed)
        case CodeType():
            flags = value.co_flags & ~CO_NESTED  # which says where it stands, not what it does
            counts = value.co_argcount, value.co_kwonlyargcount, flags
            return counts, value.co_code, value.co_names, hashed(value.co_consts)
        case FunctionType():
            code = None if _is_of_library(value) else value.__code__
            cells = [_content(cell, hashed) for cell in value.__closure__ or ()]
            settings = value.__defaults__, value.__kwdefaults__
            read = {} if code is None else _globals(code, value.__globals__)
            return name_of(value), hashed(code), hashed(settings), cells, hashed(read)
        case MethodType():
            return hashed(value.__func__), hashed(value.__self__)
        case partial():
            return hashed(value.func), hashed(value.args), hashed(value.keywords)
        case ModuleType():
            return value.__name__
        case type() | BuiltinFunctionType():
            return name_of(value)
    if hasattr(value, "__wrapped__"):  # by jax.jit
        return hashed(value.__wrapped__)
    return _of_object(value, hashed)


def _globals(code: CodeType, all_globals: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values and functions among the globals that the code, or code within it, names."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    read = {name: all_globals[name] for name in code.co_names if name in all_globals}
    read = {name: value for name, value in read.items() if isinstance(value, PLAIN)}
    for other in inner:
        read |= _globals(other, all_globals)
    return read


def _of_object(value: Any, hashed: Any) -> Any:
    """Its attributes, as they would be pickled; and the methods of its type."""
    try:
        state = hashed(value.__reduce_ex__(2))
    except Exception:  # whatever can't be pickled, such as a lock
        state = ""
    kinds = [kind for kind in type(value).__mro__ if not _is_of_library(kind)]
    methods = [f for kind in kinds for f in vars(kind).values() if isinstance(f, FunctionType)]
    return name_of(value), state, sorted(map(hashed, methods))


def _of_array(value: Any, hashed: Any) -> Any:
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        if value.is_deleted() or not value.is_fully_addressable:
            return str(value.dtype), value.shape
    array = np.asarray(value)
    if array.dtype.hasobject:
        return hashed(array.tolist())
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def _content(cell: Any, hashed: Any) -> str:
    try:
        contents: str = hashed(cell.cell_contents)
    except ValueError:  # it is empty
        return "empty"
    return contents


def _is_of_library(what: Any) -> bool:
    return str(what.__module__).partition(".")[0] in LIBRARIES
