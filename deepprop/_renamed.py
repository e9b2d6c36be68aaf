"""Names of an earlier release that were changed: they work for one more release, and warn."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now `new`, at the line of whoever called the caller."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_argument(old: str, new: str) -> Callable[[F], F]:
    """Decorate a function with an argument `new` to accept it under its former name `old`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def accepting(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                warn_renamed(f"the argument {old}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return accepting  # type: ignore[return-value]

    return decorate


def renamed_field(old: str, new: str) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass with a field `new` to accept and show it under the name `old`."""

    def read(self: Any) -> Any:
        warn_renamed(f"the attribute {old}", new)
        return getattr(self, new)

    def decorate(cls: type[T]) -> type[T]:
        cls.__init__ = renamed_argument(old, new)(cls.__init__)  # type: ignore[method-assign]
        setattr(cls, old, property(read, doc=f"The former name of `{new}`."))
        return cls

    return decorate
