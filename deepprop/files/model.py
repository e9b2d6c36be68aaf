"""Models in files: a NumPy archive of arrays and names, from which no code can run.

An activation is stored by its name. `load` looks the name up among the built-in ones and those that
the caller passes; it never imports what a file names. Pickled objects are refused for the same
reason.

The file also lists its entries ("contents"), so that a lost entry is an error rather than a
different network. Earlier formats lack this list, and version 0.1.0 accepted extra arrays under
names that a later format uses. Which entries belong to the network therefore depends on the format.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from deepprop._arguments import check_params
from deepprop.activations import Activation, activation
from deepprop.costs import Cost, Output
from deepprop.files.archive import atomic_write, npz_names, read_npz
from deepprop.files.extras import checked_extras
from deepprop.layers import Layer, Params
from deepprop.mixed_precision import with_compute_dtype
from deepprop.outputs import output

BASE = ("format", "dtype", "activations")
STATIC = ("residual", "keep", "products")  # products is the former name of compute_dtype
ENTRY = ("normalize", "dropout")
ENTRIES = {  # of each format, besides W and b of each layer
    "deepprop model 1": BASE,
    "deepprop model 2": (*BASE, *STATIC),  # for stacks, residual layers and mixed precision
    "deepprop model 3": (*BASE, *STATIC, "contents"),  # the names of all entries of the file
    # The newest is written only where it is needed, so that earlier versions read the other files.
    "deepprop model 4": (*BASE, *STATIC, "contents", *ENTRY),  # for normalisation and dropout
}
WITH_CONTENTS = ("deepprop model 3", "deepprop model 4")
OF_NUMPY = ("file", "allow_pickle")  # arguments of np.savez
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
            has a 0; there are not n_L different classes; or your own activation, cost or output has
            the name of a built-in one.
        TypeError: an extra array is masked or sparse, or scaling is not a pair of real numbers.
        OSError: the file can't be written; an existing one is not changed.
    """
    check_params(params)
    for layer in params:
        _check_activation_name(layer)
    of_network = _arrays(params)
    for name in extra:
        _check_extra_name(name, str(of_network["format"]))
    arrays = {**of_network, **checked_extras(params, scaling, classes, extra)}
    arrays["contents"] = np.array(sorted([*arrays, "contents"]))
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], own: Iterable[Activation | Cost | Output] = ()) -> Params:
    """Read a network that `save` wrote. No code from the file runs, whoever wrote it.

    >>> import jax, tempfile, deepprop as dp, jax.numpy as jnp
    >>> sine = dp.Activation("sine", jnp.sin, lambda Z, A: jnp.cos(Z))
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], hidden=sine)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.save(f"{folder}/model.npz", params)
    ...     dp.load(f"{folder}/model.npz", own=[sine])[0].activation is sine
    True

    Args:
        path: the file.
        own: your own activations, costs and outputs in the network; the file has their names.

    Returns:
        The layers.

    Raises:
        ValueError: the file is not a model, or lacks an entry; or an activation in it is neither
            built-in nor in `own`.
        OSError: the file can't be read.
    """
    names = npz_names(path, HINT)
    form = str(read_npz(path, [name for name in names if name == "format"], HINT).get("format"))
    if form not in ENTRIES:
        raise ValueError(f"{path}: not a model that deepprop saved")
    arrays = read_npz(path, [name for name in names if _is_reserved(name, form)], HINT)
    _check_contents(path, names, arrays, form)
    return _network(path, arrays, form, {entry.name: entry for entry in own})


def load_extra(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the extra arrays that `save` wrote beside a network.

    >>> import jax, tempfile, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.save(f"{folder}/model.npz", params, scaling=([0, 0, 0], [1, 2, 4]), author="Ada")
    ...     extra = dp.load_extra(f"{folder}/model.npz")
    >>> extra["scale"].tolist(), str(extra["author"])
    ([1.0, 2.0, 4.0], 'Ada')

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
    if form in WITH_CONTENTS or ("contents" in names and form not in ENTRIES):
        form = form if form in ENTRIES else WITH_CONTENTS[0]
        _check_contents(path, names, arrays, form)
        return read_npz(path, [name for name in names if not _is_reserved(name, form)])
    L = np.size(arrays.get("activations", ()))
    # Version 0.1.0 accepted extras under any name except those of the network in its own format.
    taken = {*ENTRIES.get(form, ()), *(f"{part}{l + 1}" for l in range(L) for part in "Wb")}
    return read_npz(path, [name for name in names if name not in taken])


def _arrays(params: Params) -> dict[str, np.ndarray]:
    """Return the entries of the network: its arrays and its static data."""
    dtype = params[0].W.dtype
    plain = all(layer.normalize is None and not layer.dropout for layer in params)
    arrays = {
        "format": np.array(WITH_CONTENTS[0 if plain else 1]),
        "dtype": np.array(str(dtype)),
        "activations": np.array([layer.activation.name for layer in params]),
        "residual": np.array([layer.residual for layer in params]),
        "keep": np.array([layer.keep for layer in params]),
        "products": np.array(str(params[0].compute_dtype or "")),
    }
    if not plain:
        arrays["normalize"] = np.array([layer.normalize or "" for layer in params])
        arrays["dropout"] = np.array([layer.dropout for layer in params])
    stored = dtype if dtype.kind == "f" else np.dtype(np.float32)  # NumPy has no bfloat16
    for l, layer in enumerate(params, start=1):
        arrays[f"W{l}"] = np.asarray(layer.W).astype(stored)
        arrays[f"b{l}"] = np.asarray(layer.b).astype(stored)
    return arrays


def _is_reserved(name: str, form: str) -> bool:
    """Return whether the name is an entry of the network in that format, or np.savez's argument."""
    reserved = {*ENTRIES[WITH_CONTENTS[0]], *ENTRIES[form], *OF_NUMPY}
    return name in reserved or re.fullmatch(r"[Wb]\d+", name) is not None


def _check_contents(
    path: str | os.PathLike[str], names: Iterable[str], arrays: Mapping[str, np.ndarray], form: str
) -> None:
    """Raise if the file lacks an entry of its format, or one that its list of contents names."""
    contents = np.ravel(arrays.get("contents", ())) if form in WITH_CONTENTS else ()
    missing = [name for name in (*ENTRIES[form], *map(str, contents)) if name not in names]
    if missing:
        raise ValueError(f"{path}: the model lacks {', '.join(map(repr, missing))}")


def _network(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    form: str,
    own: Mapping[str, Any],
) -> Params:
    """Build the network from the entries of a file.

    Raises:
        ValueError: an entry is missing or has the wrong content; the message names the file.
    """
    names = [str(name) for name in np.ravel(arrays["activations"])]
    L = len(names)
    if not names:
        raise ValueError(f"{path}: the model has no layer")
    defaults = {"residual": np.zeros(L, bool), "keep": np.ones(L, int), "products": np.array("")}
    defaults |= {"normalize": np.array([""] * L), "dropout": np.zeros(L)}
    # Earlier formats lack these entries; an array with such a name is one of their extras.
    known = ENTRIES[form]
    static = {name: arrays[name] if name in known else defaults[name] for name in defaults}
    try:
        dtype, products = jnp.dtype(str(arrays["dtype"])), str(static["products"]) or None
        by_layer = [np.ravel(static[name]) for name in ("residual", "keep", *ENTRY)]
        if not all(values.size == L for values in by_layer):
            raise ValueError(f"residual, keep, normalize and dropout must have {L} entries each")
        of_layers = list(zip(*(values.tolist() for values in by_layer), strict=True))
        params = []
        for l, name in enumerate(names, start=1):
            W, b = (arrays[f"{part}{l}"] for part in "Wb")
            if W.dtype.kind != "f" or b.dtype.kind != "f":
                raise ValueError(
                    f"W{l} and b{l} must hold floating-point numbers, got {W.dtype}, {b.dtype}"
                )
            g = _output(name, own) if l == L else activation(own.get(name, name))
            arrays_of_l = jnp.asarray(W, dtype), jnp.asarray(b, dtype)
            residual, keep, normalize, dropout = of_layers[l - 1]
            params.append(
                Layer(
                    *arrays_of_l, g, bool(residual), int(keep),
                    normalize=normalize or None, dropout=float(dropout),
                )
            )  # fmt: skip
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


def _check_extra_name(name: str, form: str) -> None:
    """Raise if `save` can't write an extra array with this name."""
    # np.savez adds .npy to a name, and np.load removes it.
    if _is_reserved(name, form) or name.endswith(".npy"):
        raise ValueError(
            f"extra {name!r} must have another name: the entries of the file and the arguments"
            " of np.savez are reserved"
        )


def _check_activation_name(layer: Layer) -> None:
    """Raise if a built-in activation or output has this name: `load` would take that one."""
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
