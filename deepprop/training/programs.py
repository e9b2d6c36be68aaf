"""Compiled programs: shared by calls with the same functions, and released with those functions.

`jax.jit` keeps its static arguments, and the programs compiled for them, alive as long as the
jitted function. For a function at module level that means until the process ends: every optimizer,
metric or backward pass ever used would leak some megabytes.

So each combination of static arguments gets a jitted function of its own, in a table with only weak
references to the arguments: when one is garbage collected, its entry goes, and the programs with
it. The jitted function must not have them in its closure either. It reads them from a context
variable while it is traced, which is the only time it needs them.
"""

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MethodType
from typing import Any

import jax

STRONG = 16  # entries per `Programs` with a callable that does not support weak references

# The static arguments of the current call, which the jitted function reads while it is traced.
_static_arguments: ContextVar[Mapping[str, Any]] = ContextVar("static_arguments")


class Programs:
    """`jax.jit(function)`, but it does not keep its static arguments alive.

    >>> import jax.numpy as jnp
    >>> apply = Programs(lambda x, *, g: g(x), static=("g",))
    >>> double = lambda x: 2 * x
    >>> float(apply(jnp.ones(()), g=double)), len(apply)
    (2.0, 1)
    >>> del double
    >>> len(apply)
    0
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        static: tuple[str, ...],
        donate_argnums: tuple[int, ...] = (),
    ) -> None:
        """Take the function and the names of its static arguments, which are passed by keyword.

        Args:
            function: a function as `jax.jit` takes it.
            static: the names of its static arguments. Callables are compared by identity, tuples
                item by item; anything else must be hashable, and is compared by value.
            donate_argnums: as for `jax.jit`.
        """
        self._function, self._names, self._donated = function, static, donate_argnums
        self._table: dict[Hashable, tuple[Any, list[Any]]] = {}
        self._strong: deque[Hashable] = deque()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program for these static arguments; the first call compiles it."""
        with self._program(kwargs) as program:
            return program(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Lower the program, as `jax.jit(function).lower` does."""
        with self._program(kwargs) as program:
            return program.lower(*args, **kwargs)

    def __len__(self) -> int:
        """Return the number of combinations of static arguments that have a jitted function."""
        return len(self._table)

    def _cache_size(self) -> int:
        """Return the number of compiled programs."""
        return sum(program._cache_size() for program, _ in list(self._table.values()))

    @contextmanager
    def _program(self, kwargs: dict[str, Any]) -> Iterator[Any]:
        """Yield the jitted function for the static arguments, which are removed from `kwargs`."""
        static = {name: kwargs.pop(name) for name in self._names if name in kwargs}
        callables: list[Any] = []
        key = tuple((name, _key(value, callables)) for name, value in static.items())
        entry = self._table.get(key)
        if entry is None:  # if another thread was faster, both use its entry
            entry = self._table.setdefault(key, self._new(key, callables))
        token = _static_arguments.set(static)
        try:
            yield entry[0]
        finally:
            _static_arguments.reset(token)

    def _new(self, key: Hashable, callables: list[Any]) -> tuple[Any, list[Any]]:
        """Return a jitted function, and weak references that remove it when a callable dies."""
        function, table = self._function, self._table

        @wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs, **_static_arguments.get())

        def remove(_: Any) -> None:
            table.pop(key, None)

        references: list[Any] = []
        for part in callables:
            try:
                references.append(weakref.ref(part, remove))
            except TypeError:  # no weak references, such as operator.itemgetter: alive while recent
                references.append(part)
                self._strong.append(key)
        while len(self._strong) > STRONG:
            table.pop(self._strong.popleft(), None)
        return jax.jit(traced, donate_argnums=self._donated), references


def _key(value: Any, callables: list[Any]) -> Hashable:
    """Return the key of a static argument in the table; append the callables in it to the list.

    Two kinds are taken apart, because a weak reference to them would be of no use: a bound method
    is a new object at each access, and an optax transformation is a tuple, which has no weak
    references. Their parts live as long as they do.
    """
    if isinstance(value, MethodType):
        return MethodType, _key(value.__func__, callables), _object(value.__self__, callables)
    if isinstance(value, tuple):
        return type(value), *(_key(item, callables) for item in value)
    return _object(value, callables) if callable(value) else (type(value), value)


def _object(value: Any, objects: list[Any]) -> int:
    """Append an object to the list, and return its id, which is its key."""
    objects.append(value)
    return id(value)
