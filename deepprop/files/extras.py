"""The arrays beside a network in a model file: scaling, class labels and extras, all checked.

They are checked when they are written and again when they are used, because a file can come from
anywhere. Objects are refused when they are written: NumPy would pickle them, and a pickle is not
read back.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from deepprop._checks import check_unmasked, real_array
from deepprop.files.archive import as_text
from deepprop.layers import Params


def checked_extras(
    params: Params, scaling: Any, classes: Any, extra: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the arrays that `save` writes beside the network: shift and scale, classes, extras.

    Raises:
        ValueError, TypeError: as `save`.
    """
    n_0, n_L = params[0].W.shape[-1], params[-1].W.shape[-2]
    arrays = {name: _plain(f"extra {name!r}", value) for name, value in extra.items()}
    pair = [name for name in ("shift", "scale") if name in arrays]
    if pair and scaling is not None:
        raise ValueError(f"extra {pair[0]!r} must not be given beside scaling")
    if len(pair) == 1:
        raise ValueError(f"shift and scale must be given together, got {pair[0]} alone")
    if pair:
        scaling = arrays["shift"], arrays["scale"]
    if scaling is not None:
        arrays["shift"], arrays["scale"] = checked_scaling(scaling, n_0, np.float64)
    if classes is not None:
        arrays["classes"] = checked_classes(classes, n_L)
    return arrays


def checked_scaling(scaling: Any, n_0: int, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and scale, each (n_0,), in that dtype.

    In a dtype with a smaller range a finite number can become infinite, and a small scale 0. Both
    are therefore checked after the cast.

    Raises:
        ValueError: one has another shape or is not finite in that dtype, or scale has a 0 in it.
        TypeError: `scaling` is not a pair of arrays of real numbers.
    """
    if not isinstance(scaling, tuple | list) or len(scaling) != 2:
        raise TypeError(f"scaling must be a pair (shift, scale), got {scaling!r}")
    with jax.enable_x64(True) if np.dtype(dtype) == np.float64 else nullcontext():
        parts = (real_array(f"scaling[{i}]", scaling[i], dtype) for i in (0, 1))
        shift, scale = map(np.asarray, parts)
    for i, array in enumerate((shift, scale)):
        if array.shape != (n_0,) or not np.isfinite(array).all():
            raise ValueError(
                f"scaling[{i}] must be {n_0} numbers, one per input, all finite in {array.dtype},"
                f" got {scaling[i]!r}"
            )
    if not scale.all():
        raise ValueError(f"scaling[1] must have no 0 in {scale.dtype}, got {scaling[1]!r}")
    return shift, scale


def checked_classes(classes: Any, n_L: int) -> np.ndarray:
    """Return the labels of n_L output units, numbers or text; bytes become text.

    Raises:
        ValueError: there are not n_L, two are equal, or they are neither numbers nor text.
        TypeError: they are a masked or sparse array.
    """
    labels = as_text("classes", _plain("classes", classes))
    if labels.shape != (n_L,) or labels.dtype.kind not in "buifU":
        raise ValueError(
            f"classes must be {n_L} labels, numbers or text, one per output unit, got dtype"
            f" {labels.dtype} and shape {labels.shape}"
        )
    counts = Counter(labels.tolist())
    # A nan does not equal itself, so that no example could have this label.
    unusable = [label for label, n in counts.items() if n > 1 or label != label]
    if unusable:
        raise ValueError(f"classes must be {n_L} different labels, got {unusable[0]!r}")
    return labels


def _plain(name: str, value: Any) -> np.ndarray:
    """Return `value` as an array that can be written, and read back, without pickle.

    Raises:
        TypeError: it is masked or sparse; NumPy would drop the mask, or pickle the matrix.
        ValueError: it would be an array of objects, or NumPy's files don't have its dtype.
    """
    check_unmasked(name, value)
    if hasattr(value, "toarray") or hasattr(value, "todense"):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a dense array, got a sparse {kind}: pass .toarray()")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be an array of numbers or text: {error}") from None
    if array.dtype.kind == "T":  # NumPy's text of any length
        array = array.astype(str)
    if array.dtype.hasobject:
        raise ValueError(
            f"{name} must hold no objects, got dtype {array.dtype}: pass .astype(str) for text,"
            " .astype(float) for numbers"
        )
    if array.dtype.isbuiltin == 2:  # such as bfloat16, which would be read as raw bytes
        raise ValueError(f"{name} must have one of NumPy's own dtypes, got {array.dtype}")
    return array
