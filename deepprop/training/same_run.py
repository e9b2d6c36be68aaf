"""What identifies a run, as text, for a checkpoint to store and to compare.

A checkpoint must only resume its own run: otherwise the result would silently be a mixture of two.
Compared are the network, the structure of the optimizer's state, checksums of the data and the key,
the batch size, and the names and hashes of functions. If an entry differs, the run is refused with
an error that names it.

Hyperparameters of the optimizer are not compared, because lowering the learning rate is a common
reason to resume a run.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepprop.layers import Layer
from deepprop.training.identity import PYTHON, hash_of, name_of
from deepprop.training.loop import Progress

# Prefixes of entries that 0.1.0 did not write. They are compared only if both runs have them.
NEW = ("backward", "function of ", "code of ", "validation ", "metric ")
# What other entries were in a run whose checkpoint lacks them.
ABSENT = {"first_epoch": "1", "patience": "False"}


def setting_of(at: Progress, identity: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies a run, as text: the network, the optimizer's state, and the rest.

    Args:
        at: the progress at the start of the run.
        identity: the rest, by name: arrays, functions, or anything with a text.
    """
    functions = {name: value for name, value in identity.items() if callable(value)}
    first, last = at.params[0], at.params[-1]
    networks = last.W.shape[:-2]  # (K,) for an ensemble, else (): the last layer is never a stack
    layers = [_description(layer, len(networks)) for layer in at.params]
    return {
        "network": " - ".join([str(first.W.shape[-1]), *layers]) + f", {first.W.dtype}",
        "number of networks": str(networks),
        "optimizer": str(jax.tree.structure(at.state, is_leaf=_is_params)),
        **{name: _text(value) for name, value in identity.items()},
        **{f"code of {name} ({PYTHON})": hash_of(value) for name, value in functions.items()},
    }


def _description(layer: Layer, skip: int) -> str:
    """Describe a layer in words; the first `skip` axes of W are those of an ensemble."""
    *stack, n, _ = layer.W.shape[skip:]
    words = [f"{n} {layer.activation.name}", *(f"{K} times" for K in stack)]
    words += ["residual"] if layer.residual else []
    words += [f"normalize {layer.normalize}"] if layer.normalize else []
    words += [f"dropout {layer.dropout}"] if layer.dropout else []
    words += [str(layer.compute_dtype)] if layer.compute_dtype else []
    return " ".join(words)


def check_same_run(where: str, stored: Mapping[str, str], setting: Mapping[str, str]) -> None:
    """Raise unless a checkpoint's stored setting is that of the run.

    Raises:
        ValueError: an entry differs; the message names it, after `where`.
    """
    for name in {**setting, **stored}:
        if name.startswith(NEW) and not (name in stored and name in setting):
            continue
        before, now = (texts.get(name, ABSENT.get(name)) for texts in (stored, setting))
        if before != now:
            raise ValueError(
                f"{where} has another {name}: {before}, and now it is {now};"
                " use another folder to start again"
            )


def _text(value: Any) -> str:
    """Return a text that identifies a value: a function's name, or an array's checksum."""
    if callable(value):
        return name_of(value)
    if not isinstance(value, jax.Array):
        return str(value)
    low, high = jax.device_get(_checksums(without_keys(value)))
    return f"{value.dtype}{list(value.shape)} {high:08x}{low:08x}"


@jax.jit
def _checksums(P: Array) -> list[Array]:
    """Compute a 64-bit checksum of an array, as two 32-bit numbers.

    An array may be divided over devices and processes, none of which has all of it, so its bytes
    can't be hashed in order. Instead each value is mixed with its position, by the finaliser of
    MurmurHash3 (Appleby), and the results are added as integers, in any order.
    """
    size = jnp.dtype(P.dtype).itemsize
    if jnp.issubdtype(P.dtype, jnp.floating):
        P = jax.lax.bitcast_convert_type(P, jnp.uint16 if size == 2 else jnp.uint32)
    position = jax.lax.iota(jnp.uint32, P.size).reshape(P.shape)

    def mixed(factor: int) -> Array:
        h = P.astype(jnp.uint32) ^ (position * jnp.uint32(factor))
        for shift, times in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(times)
        return jnp.sum(h ^ (h >> jnp.uint32(16)), dtype=jnp.uint32)

    return [mixed(0x9E3779B9), mixed(0x7FEB352D)]


def without_keys(leaf: Array) -> Array:
    """Return a random key as an array of its data; return other arrays unchanged."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: Array) -> bool:
    """Return whether it is a random key."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _is_params(node: Any) -> bool:
    return isinstance(node, tuple) and bool(node) and isinstance(node[0], Layer)
