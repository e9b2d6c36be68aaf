"""Models in files: a NumPy archive of arrays and names, from which no code can run."""

import os
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from deepprop.activations import Activation, activation
from deepprop.costs import Output, output
from deepprop.files import atomic_write, read_npz
from deepprop.layers import Layer, Params, check_params

FORMAT = "deepprop model 1"


def save(path: str | os.PathLike[str], params: Params, **extra: np.ndarray) -> None:
    """Write a network to a .npz file, whole or not at all.

    The file holds W and b of each layer, and the names of the activations and of the output.

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
        ValueError: an extra array has the name of one of the network's, or holds objects.
        OSError: the file can't be written; what was there before is still there.
    """
    check_params(params)
    dtype = params[0].W.dtype
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "dtype": np.array(str(dtype)),
        "activations": np.array([layer.activation.name for layer in params]),
    }
    stored = dtype if dtype.kind == "f" else np.dtype(np.float32)  # bfloat16 is none of NumPy's
    for l, layer in enumerate(params, start=1):
        arrays[f"W{l}"] = np.asarray(layer.W).astype(stored)
        arrays[f"b{l}"] = np.asarray(layer.b).astype(stored)
    for name, value in extra.items():
        if name in arrays or np.asarray(value).dtype.hasobject:
            raise ValueError(f"extra {name!r} must have a name of its own and hold no objects")
    with atomic_write(path) as file:
        np.savez(file, **arrays, **extra)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], own: Iterable[Activation | Output] = ()) -> Params:
    """Read a network that `save` wrote. No code runs from the file, whoever wrote it.

    Args:
        path: the file.
        own: the activations and outputs of your own that the network has; the file names them.

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
    parts = {"format", "dtype", "activations"}.union(
        *({f"W{l + 1}", f"b{l + 1}"} for l in range(L))
    )
    return {name: value for name, value in arrays.items() if name not in parts}


def _network(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    own: Mapping[str, Activation | Output],
) -> Params:
    if str(arrays.get("format")) != FORMAT:
        raise ValueError(f"{path}: not a model that deepprop saved")
    names = [str(name) for name in np.atleast_1d(arrays.get("activations", ()))]
    try:
        dtype = jnp.dtype(str(arrays["dtype"]))
        params = []
        for l, name in enumerate(names, start=1):
            W, b = (jnp.asarray(arrays[f"{part}{l}"], dtype) for part in "Wb")
            resolve = output if l == len(names) else activation
            params.append(Layer(W, b, own.get(name) or resolve(name)))
        check_params(tuple(params))
    except KeyError as error:
        raise ValueError(f"{path}: the model lacks {error}") from None
    except (TypeError, ValueError) as error:
        hint = "" if own or "must be one of" not in str(error) else "; one of your own goes in own="
        raise ValueError(f"{path}: {error}{hint}") from None
    return tuple(params)
