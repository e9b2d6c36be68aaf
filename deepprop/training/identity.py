"""The identity of functions: a name and a hash that are the same in every process.

A run must not resume with another metric, record function or backward pass. A function object can't
be compared with one of an earlier process, and its name doesn't say what it does: a lambda has
none, and a user may edit a function between two runs. So we hash what determines the result:
bytecode, constants, defaults, closure, and the plain values and functions among the globals that
the code names. The hash leaves out the module, because a script is __main__ in one process and may
be imported in the next. Bytecode differs between versions of Python, so hashes are compared only
within one version.
"""

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

# Functions of these are compared by name alone; we trust releases not to change what they mean.
LIBRARIES = ("deepprop", "jax", "jaxlib", "optax", "numpy", "builtins")
PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array, FunctionType)
PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"  # which determines the bytecode


def name_of(function: Any) -> str:
    """Return the name of a function, or of the type of another callable.

    A library's name includes its module. A user's doesn't, because it may be __main__ next time.

    >>> import jax.numpy as jnp, deepprop as dp
    >>> name_of(partial(dp.clipped_backward, max_norm=1.0))
    'partial of deepprop.signals.clipping.clipped_backward'
    """
    if isinstance(function, partial):
        return f"partial of {name_of(function.func)}"
    what = function if hasattr(function, "__qualname__") else type(function)
    return f"{what.__module__}.{what.__qualname__}" if _is_of_library(what) else str(what.__name__)


def hash_of(function: Any) -> str:
    """Return a hash of what a function does, the same in every process: see above.

    Functions of a library are hashed by name. Of the globals that the code names, only numbers,
    text, arrays and functions are hashed.
    """
    return _hashed(function, {})


def _hashed(value: Any, seen: dict[int, tuple[Any, str]]) -> str:
    """Return a hash of any value; `seen` has the values visited so far, so that cycles end."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) not in seen:
        seen[id(value)] = value, "a cycle"  # with the value, so that its id is not reused
        text = f"{type(value).__qualname__} {_inside(value, partial(_hashed, seen=seen))}"
        seen[id(value)] = value, hashlib.sha256(text.encode()).hexdigest()[:16]
    return seen[id(value)][1]


def _inside(value: Any, hashed: Any) -> Any:
    """Return what distinguishes the value from others of its type, in a form with a stable str."""
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
            flags = value.co_flags & ~CO_NESTED  # whether it is nested does not change what it does
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
    if hasattr(value, "__wrapped__"):  # such as a function under jax.jit
        return hashed(value.__wrapped__)
    return _of_object(value, hashed)


def _globals(code: CodeType, all_globals: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values and functions among the globals that the code names."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    read = {name: all_globals[name] for name in code.co_names if name in all_globals}
    read = {name: value for name, value in read.items() if isinstance(value, PLAIN)}
    for other in inner:
        read |= _globals(other, all_globals)
    return read


def _of_object(value: Any, hashed: Any) -> Any:
    """Return the type's name, the object's state as pickle sees it, and the type's methods."""
    try:
        state = hashed(value.__reduce_ex__(2))
    except Exception:  # it can't be pickled, for instance because it has a lock
        state = ""
    kinds = [kind for kind in type(value).__mro__ if not _is_of_library(kind)]
    methods = [f for kind in kinds for f in vars(kind).values() if isinstance(f, FunctionType)]
    return name_of(value), state, sorted(map(hashed, methods))


def _of_array(value: Any, hashed: Any) -> Any:
    """Return dtype, shape and contents; no contents if they are not in this process."""
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
    """Return the hash of what a cell of a closure holds."""
    try:
        contents: str = hashed(cell.cell_contents)
    except ValueError:  # it is empty
        return "empty"
    return contents


def _is_of_library(what: Any) -> bool:
    return str(what.__module__).partition(".")[0] in LIBRARIES
