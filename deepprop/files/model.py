"""Models in files: a NumPy archive of arrays and names, from which no code can run.

The names of all entries are stored in the file as well ("contents"), so that a lost entry is an
error rather than a different network. Earlier formats lack it, and 0.1.0 accepted extra arrays
under names that a later format uses; which entries belong to the network therefore depends on the
format.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from deepprop._arguments import check_params
from deepprop._checks import check_unmasked, real_array
from deepprop.activations import Activation, activation
from deepprop.costs import Cost, Output, output
from deepprop.files.archive import as_text, atomic_write, npz_names, read_npz
from deepprop.layers import Layer, Params
from deepprop.mixed_precision import with_compute_dtype

BASE = ("format", "dtype", "activations")
STATIC = ("residual", "keep", "products")  # products: the compute_dtype, by its former name
ENTRIES = {  # of each format, beside W and b of each layer
    "deepprop model 1": BASE,
    "deepprop model 2": (*BASE, *STATIC),  # for stacks, residual layers and mixed precision
    "deepprop model 3": (*BASE, *STATIC, "contents"),  # the names of all entries of the file
}
FORMAT = "deepprop model 3"
RESERVED = {*ENTRIES[FORMAT], "file", "allow_pickle"}  # the last two are arguments of np.savez
HINT = "a model is written by dp.save or deepprop train --save"


def save(
    path: str | os.PathLike[str],
    params: Params,
    *,
    scaling: tuple[ArrayLike, ArrayLike] | None = None,
    classes: ArrayLike | None = None,
    **extra: ArrayLike,
) -> None:
    """Write a network to a .npz file, completely or not at all.

    The file holds W and b of each layer or stack, the names of the activations and the output,
    which layers are residual, and the compute dtype. `deepprop predict` and `deepprop export` apply
    the scaling and the class labels.

    >>> import jax, tempfile, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.save(f"{folder}/model.npz", params, classes=["no", "yes"])
    ...     again = dp.load(f"{folder}/model.npz")
    ...     extra = dp.load_extra(f"{folder}/model.npz")
    >>> again[0].activation.name, bool((again[0].W == params[0].W).all()), extra["classes"].tolist()
    ('relu', True, ['no', 'yes'])

    Args:
        path: the file; an existing one is replaced.
        params: the layers.
        scaling: (shift, scale), each (n_0,), if the network was trained on (X - shift) / scale.
        classes: (n_L,), the label of each output unit: numbers or text, in any order.
        extra: more arrays of numbers or text to store. `load_extra` returns them, together with
            "shift" and "scale" of the scaling, and "classes". You may pass shift and scale here
            instead of `scaling`, both together.

    Raises:
        ValueError: an extra array has a reserved name (an entry of the file in any format: format,
            dtype, activations, residual, keep, products, contents, W1, b1, ...; or an argument of
            np.savez), or holds objects; shift or scale has another shape or is not finite, or scale
            has a 0; there are not n_L different classes; or your own activation has the name of a
            built-in one.
        TypeError: an extra array is masked or sparse, or scaling is not a pair of real numbers.
        OSError: the file can't be written; an existing one is not changed.
    """
    check_params(params)
    for layer in params:
        _check_name(layer)
    arrays = {**_arrays(params), **_extras(params, scaling, classes, extra)}
    arrays["contents"] = np.array(sorted([*arrays, "contents"]))
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], own: Iterable[Activation | Cost | Output] = ()) -> Params:
    """Read a network that `save` wrote. No code from the file is run, whoever wrote it.

    Args:
        path: the file.
        own: your own activations, costs and outputs in the network; the file has their names.

    Returns:
        The layers.

    Raises:
        ValueError: the file is not a model, or lacks an entry; or an activation in it is neither
            deepprop's nor in `own`.
        OSError: the file can't be read.
    """
    names = npz_names(path, HINT)
    arrays = read_npz(path, [name for name in names if _is_reserved(name)], HINT)
    form = str(arrays.get("format"))
    if form not in ENTRIES:
        raise ValueError(f"{path}: not a model that deepprop saved")
    _check_contents(path, names, arrays, form)
    return _network(path, arrays, form, {entry.name: entry for entry in own})


def load_extra(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the extra arrays that `save` wrote beside a network.

    Args:
        path: the file.

    Returns:
        The arrays by name; the scaling as "shift" and "scale".

    Raises:
        ValueError: the file is not a NumPy archive, or lacks an entry that `save` wrote.
        OSError: the file can't be read.
    """
    names = npz_names(path, HINT)
    known = [name for name in ("format", "activations", "contents") if name in names]
    arrays = read_npz(path, known, HINT)
    form = str(arrays.get("format"))
    if form == FORMAT or ("contents" in names and form not in ENTRIES):
        _check_contents(path, names, arrays, FORMAT)
        return read_npz(path, [name for name in names if not _is_reserved(name)])
    L = np.size(arrays.get("activations", ()))  # 0.1.0 accepted extras of any name except these
    parts = {*ENTRIES.get(form, ()), *(f"{part}{l + 1}" for l in range(L) for part in "Wb")}
    return read_npz(path, [name for name in names if name not in parts])


def checked_scaling(scaling: Any, n_0: int, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and scale, each (n_0,) in that dtype.

    Raises:
        ValueError: one has another shape or is not finite in that type, or scale has a 0.
        TypeError: it is not a pair of real numbers.
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
        TypeError: they are a masked array.
    """
    labels = as_text("classes", _plain("classes", classes))
    if labels.shape != (n_L,) or labels.dtype.kind not in "buifU":
        raise ValueError(
            f"classes must be {n_L} labels, numbers or text, one per output unit, got dtype"
            f" {labels.dtype} and shape {labels.shape}"
        )
    counts = Counter(labels.tolist())
    strange = [label for label, n in counts.items() if n > 1 or label != label]  # nan is not nan
    if strange:
        raise ValueError(f"classes must be {n_L} different labels, got {strange[0]!r}")
    return labels


def _arrays(params: Params) -> dict[str, np.ndarray]:
    """Return the file's entries of the network."""
    dtype = params[0].W.dtype
    arrays = {
        "format": np.array(FORMAT),
        "dtype": np.array(str(dtype)),
        "activations": np.array([layer.activation.name for layer in params]),
        "residual": np.array([layer.residual for layer in params]),
        "keep": np.array([layer.keep for layer in params]),
        "products": np.array(str(params[0].compute_dtype or "")),
    }
    stored = dtype if dtype.kind == "f" else np.dtype(np.float32)  # NumPy has no bfloat16
    for l, layer in enumerate(params, start=1):
        arrays[f"W{l}"] = np.asarray(layer.W).astype(stored)
        arrays[f"b{l}"] = np.asarray(layer.b).astype(stored)
    return arrays


def _extras(
    params: Params, scaling: Any, classes: Any, extra: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the other entries, checked: shift and scale, classes, and extra arrays."""
    n_0, n_L = params[0].W.shape[-1], params[-1].W.shape[-2]
    arrays = {name: _extra(name, value) for name, value in extra.items()}
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


def _extra(name: str, value: Any) -> np.ndarray:
    if _is_reserved(name) or name.endswith(".npy"):  # every name has that ending in the archive
        raise ValueError(
            f"extra {name!r} must have a name of its own: the entries of the file and the arguments"
            " of np.savez are reserved"
        )
    return _plain(f"extra {name!r}", value)


def _plain(name: str, value: Any) -> np.ndarray:
    """Return `value` as an array that an archive can hold without objects.

    Raises:
        TypeError: it is masked or sparse.
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


def _is_reserved(name: str) -> bool:
    """Return whether an entry of that name belongs to the network, in any format."""
    return name in RESERVED or re.fullmatch(r"[Wb]\d+", name) is not None


def _check_contents(
    path: str | os.PathLike[str], names: Iterable[str], arrays: Mapping[str, np.ndarray], form: str
) -> None:
    """Raise if the file lacks an entry of its format, or one of its own list."""
    contents = np.ravel(arrays.get("contents", ())) if form == FORMAT else ()
    lost = [name for name in (*ENTRIES[form], *map(str, contents)) if name not in names]
    if lost:
        raise ValueError(f"{path}: the model lacks {', '.join(map(repr, lost))}")


def _network(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    form: str,
    own: Mapping[str, Any],
) -> Params:
    names = [str(name) for name in np.ravel(arrays["activations"])]
    L = len(names)
    if not names:
        raise ValueError(f"{path}: the model has no layer")
    plain = {"residual": np.zeros(L, bool), "keep": np.ones(L, int), "products": np.array("")}
    # In format 1 these names are extras.
    static = {name: arrays[name] if name in ENTRIES[form] else plain[name] for name in STATIC}
    try:
        dtype, products = jnp.dtype(str(arrays["dtype"])), str(static["products"]) or None
        residual, keep = np.ravel(static["residual"]), np.ravel(static["keep"])
        if not residual.size == keep.size == L:
            raise ValueError(f"residual and keep must have {L} entries, one per layer")
        params = []
        for l, name in enumerate(names, start=1):
            W, b = (arrays[f"{part}{l}"] for part in "Wb")
            if W.dtype.kind != "f" or b.dtype.kind != "f":
                raise ValueError(
                    f"W{l} and b{l} must hold floating numbers, got {W.dtype}, {b.dtype}"
                )
            layer = _output(name, own) if l == L else activation(own.get(name, name))
            of_file = jnp.asarray(W, dtype), jnp.asarray(b, dtype)
            params.append(Layer(*of_file, layer, bool(residual[l - 1]), int(keep[l - 1])))
        return with_compute_dtype(tuple(params), products)
    except KeyError as error:
        raise ValueError(f"{path}: the model lacks {error}") from None
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        hint = "" if own or "must be one of" not in str(error) else "; one of your own goes in own="
        raise ValueError(f"{path}: {error}{hint}") from None


def _output(name: str, own: Mapping[str, Any]) -> Output:
    """Return the output of that name, or of activation+cost; each may be the user's own."""
    if name in own:
        return output(own[name])
    for i, sign in enumerate(name):
        g, cost = name[:i], name[i + 1 :]
        if sign == "+" and (g in own or cost in own):
            return output((own.get(g, g), own.get(cost, cost)))
    return output(name)


def _check_name(layer: Layer) -> None:
    """Raise if a file with this name would load another activation."""
    resolve: Any = output if isinstance(layer.activation, Output) else activation
    try:
        shipped = resolve(layer.activation.name)
    except (ValueError, TypeError):
        return
    if shipped != layer.activation:
        raise ValueError(
            f"the activation or cost {layer.activation.name!r} has the name of a built-in one;"
            " give yours another name"
        )
