"""Checks of single arguments. Each error names the argument, what it was and what it should be."""

import re
from collections.abc import Mapping
from operator import index
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from deepprop._arithmetic import over_largest

Entry = TypeVar("Entry")
ONE_HOT = "; for class labels: jax.nn.one_hot(labels, n_L, axis=0)"  # ends a message about Y


def real_array(name: str, value: Any, dtype: DTypeLike | None = None) -> Array:
    """Return `value` as an array of real numbers, cast to `dtype` if one is given.

    Raises:
        TypeError: it holds anything but real numbers (text, objects, complex numbers), is sparse,
            or has a mask, which a cast would drop.
        ValueError: it holds finite values beyond the range of `dtype`.
    """
    value = dense_array(name, value)
    if dtype is not None:
        check_range(name, value, np.dtype(dtype))
    return jnp.asarray(value, dtype=dtype)


def dense_array(name: str, value: Any) -> Any:
    """Return `value` as an array of real numbers: a JAX array if it was one, else a NumPy array.

    Raises:
        TypeError: as `real_array`.
    """
    check_unmasked(name, value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        if hasattr(value, "toarray") or hasattr(value, "todense"):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a dense array, got a sparse {kind}: pass .toarray()")
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise TypeError(f"{name} must be an array of real numbers: {error}") from None
    kind = value.dtype
    if not (jnp.issubdtype(kind, jnp.bool_) or jnp.issubdtype(kind, jnp.integer)) and not (
        jnp.issubdtype(kind, jnp.floating)
    ):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {kind}")
    return value


def check_unmasked(name: str, value: Any) -> None:
    """Raise if `value` is a NumPy masked array, or a sequence that holds one.

    Raises:
        TypeError: it is; NumPy and JAX would use the values under the mask.
    """
    if np.ma.isMaskedArray(value):
        raise TypeError(f"{name} must not be a masked array: fill or drop the masked values")
    if isinstance(value, list | tuple):
        for i, part in enumerate(value):
            if isinstance(part, list | tuple | np.ma.MaskedArray):
                check_unmasked(f"{name}[{i}]", part)


def check_range(name: str, value: Any, dtype: np.dtype) -> None:
    """Raise if a finite value, where known, would be infinite in `dtype`."""
    if not jnp.issubdtype(dtype, jnp.floating) or not value.size or not is_known(value):
        return
    limit = _largest(dtype)
    if jnp.issubdtype(value.dtype, jnp.floating):
        holds_all = _largest(value.dtype) <= limit
    else:
        holds_all = limit > 2.0**64  # above every integer
    if holds_all:
        return
    numbers = np.asarray(value)
    largest = max(float(numbers.max()), -float(numbers.min()))
    if limit < largest < np.inf:
        raise ValueError(f"{name} must hold numbers up to {limit:.3g} ({dtype}), got {largest:.3g}")


def _largest(dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]


def check_finite(name: str, P: np.ndarray) -> None:
    """Raise unless all values of P (n, m) are finite.

    Raises:
        ValueError: one is not; the message says which.
    """
    strange = np.argwhere(~np.isfinite(P))
    if strange.size:
        i, j = strange[0]
        raise ValueError(f"{name} must hold finite numbers, got {name}[{i}, {j}] = {P[i, j]}")


def check_shape(
    name: str, shape: tuple[int, ...], rows: int, columns: int | None, *stack: int
) -> None:
    """Raise unless `shape` is (*stack, rows, columns); columns=None allows any number of examples.

    Raises:
        ValueError: the number of axes, rows or columns differs, or the array is empty.
    """
    due = f"({rows}, {'m' if columns is None else columns})"
    if stack:
        if shape != (*stack, rows, columns):
            raise ValueError(f"{name} must have shape {(*stack, rows, columns)}, got shape {shape}")
        return
    if len(shape) != 2:
        hint = ""
        if _short(name)[0] == "Y":
            hint = f"; pass {_short(name)}[None]" if rows == 1 else ONE_HOT
        raise ValueError(
            f"{name} must have shape {due}, one example per column, got shape {shape}{hint}"
        )
    if 0 in shape:
        raise ValueError(f"{name} must hold at least one example, got shape {shape}")
    if shape[0] != rows or columns not in (None, shape[1]):
        turned = shape[1] == rows and columns in (None, shape[0])
        hint = f"; the examples seem to be rows: pass {_short(name)}.T" if turned else ""
        raise ValueError(
            f"{name} must have shape {due}, one example per column, got shape {shape}{hint}"
        )


def _short(name: str) -> str:
    """Return the argument's own name, such as "X" of "validation X"."""
    return name.split()[-1]


def example_weights(weights: Any, m: int, dtype: DTypeLike, name: str = "weights") -> Array:
    """Check the weights (m,) and return them divided by a power of 2 close to the largest.

    J and its gradients are weighted means, so only the ratios of weights matter. Scaled to at most
    about 1, they can neither overflow nor all underflow. Under `jit`, where values are not known,
    only the shape and the dtype are checked.

    Raises:
        ValueError: the shape is not (m,), a weight is negative or non-finite, or all are zero.
        TypeError: the weights are not real numbers.
    """
    w = _checked_weights(name, weights, m)
    if is_known(w) and not np.asarray(w).any():
        raise ValueError(f"{name} must not all be zero: J is the mean over their sum")
    if isinstance(w, jax.Array) and (not is_known(w) or w.committed):
        return over_largest(w).astype(dtype)
    w = np.asarray(w, np.float64)  # in which subnormal float32 values are not flushed to 0
    return jnp.asarray(np.ldexp(w, -np.frexp(w.max())[1]), dtype)


def plain_weights(name: str, weights: Any, m: int, dtype: DTypeLike) -> Array:
    """Check the weights (m,), where their values are known, and cast them to `dtype`.

    Raises:
        ValueError: the shape is not (m,), or a weight is negative or non-finite.
        TypeError: the weights are not real numbers.
    """
    w = _checked_weights(name, weights, m)
    return real_array(name, w, dtype)


def _checked_weights(name: str, weights: Any, m: int) -> Any:
    """Return the checked weights (m,) as a JAX array, or as a NumPy array in float64."""
    w = dense_array(name, weights)
    if not isinstance(w, jax.Array):
        w = np.asarray(w, np.float64)
    elif not jnp.issubdtype(w.dtype, jnp.floating) or w.dtype.itemsize < 4:
        w = w.astype(jnp.float32)
    if w.shape != (m,):
        raise ValueError(f"{name} must have shape ({m},), one per example, got shape {w.shape}")
    if is_known(w):
        values = np.asarray(w)
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            raise ValueError(
                f"{name} must be finite and not negative, got {name.split(': ')[-1]}[{wrong[0]}] ="
                f" {values[wrong[0]]}"
            )
    return w


def is_known(value: Any) -> bool:
    """Return whether the values are known: not traced, and all in this process."""
    return not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)


def sum_of_weights(w: Array) -> Array:
    """Return sum_i w_i, which takes the place of m; 1 if all are 0, so that J and gradients are 0.

    Under `jit`, where values are not known, a negative weight can't raise an error: it makes the
    sum nan instead. On a mesh both sums over examples share one exchange between devices.
    """
    total, negative = jnp.sum(w), jnp.sum((w < 0).astype(w.dtype))
    positive = jnp.where(total > 0, total, 1)
    return jnp.where(negative > 0, jnp.nan, positive)


def check_key(key: Any) -> None:
    """Raise unless `key` is one JAX random key.

    Raises:
        TypeError: it is anything else, such as a seed.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and not (dtype == jnp.uint32 and shape == raw_key_shape()):
        raise TypeError(f"key must be one JAX random key, such as jax.random.key(0), got {key!r}")


def raw_key_shape() -> tuple[int, ...]:
    """Return the shape of jax.random.PRNGKey(0): (2,) for threefry2x32, (4,) for rbg."""
    shape: tuple[int, ...] = jax.eval_shape(lambda: jax.random.PRNGKey(0)).shape  # not cached
    return shape


def by_name(what: str, name: str, table: Mapping[str, Entry]) -> tuple[Entry, float | None]:
    """Return the entry of `table` that `name` or `name(number)` names, and the number or None.

    Raises:
        ValueError: the table lacks the entry, the entry takes no number, or the number is not
            finite and above 0.
        TypeError: `name` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name, got {name!r}")
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", name.strip())
    if match is None or match[1] not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    if match[2] is None:
        return table[match[1]], None
    if getattr(table[match[1]], "parameter", None) is None:
        raise ValueError(f"{what} {match[1]} takes no number, got {name!r}")
    try:
        number = float(match[2])
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ValueError(f"{what} takes a finite number above 0 in its brackets, got {name!r}")
    return table[match[1]], number


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """Return `value` as an `int` from 1 to `most`. It may be an integer of Python, NumPy or JAX.

    Raises:
        ValueError: it is out of that range.
        TypeError: it is not a whole number, or a bool.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < 1 or (most is not None and number > most):
        limit = "" if most is None else f" and at most the {most} examples"
        raise ValueError(f"{name} must be above 0{limit}, got {number}")
    return number


def check_above_zero(name: str, value: Any) -> None:
    """Raise unless `value` is finite and above 0, where it is known.

    Raises:
        ValueError: it is not.
        TypeError: it is not real numbers.
    """
    real_array(name, value)
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_scalar(name: str, value: Any) -> None:
    """Raise unless `value` is one number.

    Raises:
        ValueError: it has axes.
    """
    shape = getattr(value, "shape", np.shape(value))
    if shape != ():
        raise ValueError(f"{name} must be one number, got an array of shape {shape}")


def missing(what: str, package: str, extra: str) -> ImportError:
    """Return the error for an optional package that is not installed; it says what to install.

    >>> missing("a progress bar", "rich", "progress")
    ImportError('a progress bar needs rich: pip install rich (the extra "progress" has it)')
    """
    return ImportError(
        f'{what} needs {package}: pip install {package} (the extra "{extra}" has it)'
    )
