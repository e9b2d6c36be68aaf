"""Arguments of `fit` in 0.1.0 that are now in a group: they work for one release, and warn."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from deepprop._renamed import warn_renamed
from deepprop.training.checkpoint import checkpoint_of
from deepprop.training.measure import validation_of
from deepprop.training.record import record_of

F = TypeVar("F", bound=Callable[..., Any])
GroupOf = Callable[[Any], Any]
# By the name of the former argument: the argument that has the group, the field of the group, and
# the function that makes a group of the argument.
FORMER: dict[str, tuple[str, str, GroupOf]] = {
    "metrics": ("validation", "metrics", validation_of),
    "patience": ("validation", "patience", validation_of),
    "record_every": ("record", "every", record_of),
    "checkpoint_every": ("checkpoint", "every", checkpoint_of),
}


def takes_former_arguments(function: F) -> F:
    """Decorate `fit` or a sibling to accept the arguments of 0.1.0."""

    @functools.wraps(function)
    def accepting(*args: Any, **kwargs: Any) -> Any:
        for old in FORMER.keys() & kwargs.keys():
            _move(old, kwargs)
        return function(*args, **kwargs)

    return accepting  # type: ignore[return-value]


def _move(old: str, kwargs: dict[str, Any]) -> None:
    """Move the value of a former argument into its group.

    Raises:
        ValueError: `metrics` or `patience` without a validation set.
    """
    name, field, group_of = FORMER[old]
    value, group = kwargs.pop(old), group_of(kwargs.get(name))
    warn_renamed(f"the argument {old}", f"{field} of dp.{name.capitalize()}", stacklevel=4)
    if value is None:
        return
    if group is not None:
        kwargs[name] = replace(group, **{field: value})
    elif name == "validation":
        raise ValueError(f"a validation set is needed for {old}, got validation=None")
