"""Models in files: a NumPy archive of arrays and names, from which no code can run."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepprop.activations import Activation, activation
from deepprop.costs import Cost, Output, output
from deepprop.files import atomic_write, read_npz
from deepprop.layers import Layer, Params, check_params, is_stack
from deepprop.network import with_products

FORMAT = "deepprop model 1"
FORMAT_2 = "deepprop model 2"  # with what an earlier deepprop would pass over


def save(path: str | os.PathLike[str], params: Params, **extra: np.ndarray) -> None:
    """Write a network to a .npz file, whole or not at all.

    The file holds W and b of each layer or stack, the names of the activations and of the output,
    which layers are residual, and the type of products.

    >>> import jax, tempfile, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.save(f"{folder}/model.npz", params)
    ...     again = dp.load(f"{folder}/model.npz")
    >>> again[0].activation.name, bool((again[0].W == params[0].W).all())
    ('relu', True)

    Args:
        path: the file; one that is there is replaced.
        params: the layers.
        extra: further arrays of numbers or text to keep beside them: see `load_extra`.

    Raises:
        ValueError: an extra array has the name of one of the network's, or holds objects; or an
            activation of your own has the name of one that ships.
        OSError: the file can't be written; what was there before is still there.
    """
    check_params(params)
    dtype = params[0].W.dtype
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "dtype": np.array(str(dtype)),
        "activations": np.array([layer.activation.name for layer in params]),
    }
    if any(is_stack(layer) or layer.residual or layer.products for layer in params):
        arrays["format"] = np.array(FORMAT_2)
        arrays["residual"] = np.array([layer.residual for layer in params])
        arrays["keep"] = np.array([layer.keep for layer in params])
        arrays["products"] = np.array(str(params[0].products or ""))
    stored = dtype if dtype.kind == "f" else np.dtype(np.float32)  # bfloat16 is none of NumPy's
    for l, layer in enumerate(params, start=1):
        arrays[f"W{l}"] = np.asarray(layer.W).astype(stored)
        arrays[f"b{l}"] = np.asarray(layer.b).astype(stored)
    for name, value in extra.items():
        taken = name in arrays or name in ("file", "allow_pickle")  # the latter are np.savez's own
        if taken or np.asarray(value).dtype.hasobject:
            raise ValueError(f"extra {name!r} must have a name of its own and hold no objects")
    for layer in params:
        _check_name(layer)
    with atomic_write(path) as file:
        np.savez(file, **arrays, **extra)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], own: Iterable[Activation | Cost | Output] = ()) -> Params:
    """Read a network that `save` wrote. No code runs from the file, whoever wrote it.

    Args:
        path: the file.
        own: the activations, costs and outputs of your own that the network has; the file names
            them.

    Returns:
        The layers.

    Raises:
        ValueError: the file is no model, or an activation in it is neither deepprop's nor in `own`.
        OSError: the file can't be read.
    """
    return _network(path, read_npz(path), {entry.name: entry for entry in own})


def load_extra(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The further arrays that `save` wrote beside a network.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        ValueError: the file is no NumPy archive.
        OSError: the file can't be read.
    """
    arrays = read_npz(path)
    L = np.size(arrays.get("activations", ()))
    parts = {"format", "dtype", "activations", "residual", "keep", "products"}.union(
        *({f"W{l + 1}", f"b{l + 1}"} for l in range(L))
    )
    return {name: value for name, value in arrays.items() if name not in parts}


def _network(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    own: Mapping[str, Any],
) -> Params:
    if str(arrays.get("format")) not in (FORMAT, FORMAT_2):
        raise ValueError(f"{path}: not a model that deepprop saved")
    names = [str(name) for name in np.ravel(arrays.get("activations", ()))]
    if not names:
        raise ValueError(f"{path}: the model has no layer")
    try:
        dtype = jnp.dtype(str(arrays["dtype"]))
        products = str(arrays.get("products", "")) or None
        residual = np.ravel(arrays.get("residual", [False] * len(names)))
        keep = np.ravel(arrays.get("keep", [1] * len(names)))
        params = []
        for l, name in enumerate(names, start=1):
            W, b = (arrays[f"{part}{l}"] for part in "Wb")
            if W.dtype.kind != "f" or b.dtype.kind != "f":
                raise ValueError(
                    f"W{l} and b{l} must hold floating numbers, got {W.dtype}, {b.dtype}"
                )
            layer = _output(name, own) if l == len(names) else activation(own.get(name, name))
            of_file = jnp.asarray(W, dtype), jnp.asarray(b, dtype)
            params.append(Layer(*of_file, layer, bool(residual[l - 1]), int(keep[l - 1])))
        network = with_products(tuple(params), products)
    except KeyError as error:
        raise ValueError(f"{path}: the model lacks {error}") from None
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        hint = "" if own or "must be one of" not in str(error) else "; one of your own goes in own="
        raise ValueError(f"{path}: {error}{hint}") from None
    return network


def _output(name: str, own: Mapping[str, Any]) -> Output:
    """The output of that name, whole or as activation+cost, where each may be of one's own."""
    if name in own:
        return output(own[name])
    for i, sign in enumerate(name):
        g, cost = name[:i], name[i + 1 :]
        if sign == "+" and (g in own or cost in own):
            return output((own.get(g, g), own.get(cost, cost)))
    return output(name)


def _check_name(layer: Layer) -> None:
    """Raise where a file would name another activation than the layer has."""
    resolve: Any = output if isinstance(layer.activation, Output) else activation
    try:
        shipped = resolve(layer.activation.name)
    except (ValueError, TypeError):
        return
    if shipped != layer.activation:
        raise ValueError(
            f"the activation or cost {layer.activation.name!r} has the name of another that ships;"
            " give yours a name of its own"
        )
