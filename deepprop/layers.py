"""What a network is made of: layers, and the cache that a forward pass returns."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array

from deepprop._arithmetic import Types, has_range_of_float32, wide
from deepprop._renamed import renamed_field
from deepprop.activations import ACTIVATIONS, Activation, activation
from deepprop.costs import Output
from deepprop.outputs import output


@jax.tree_util.register_dataclass
@renamed_field("products", "compute_dtype")
@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: W (n_l, n_{l-1}), b (n_l, 1) and, as static data, its activation.

    A stack of K equal hidden layers is one `Layer` with W (K, n, n) and b (K, n, 1): see
    `deepprop.stack`. The last layer of a network is never a stack, so the leading axis of several
    networks or of per-example gradients can't be mistaken for one.

    Attributes:
        W: the weights.
        b: the biases.
        activation: of a hidden layer, an `Activation`; of the last layer an `Output`, which also
            holds the cost. A name works, too, except for the outputs "sigmoid" and "identity",
            which share their name with an activation: write `dp.output("sigmoid")`.
        residual: whether the layer adds its input: A[l] = A[l-1] + g(Z[l]).
        normalize: "layer" or "rms" to normalise what enters the layer; None to leave it alone.
        dropout: the probability with which an entry of what enters the layer is dropped, in a
            forward pass with a key.
        keep: for a stack: the cache stores A of every `keep`-th layer and of the last one; the
            backward pass computes those in between again. 1 stores all Z and A.
        compute_dtype: the dtype to which the factors of matrix products are rounded, and in which
            hidden Z and A are stored; None for that of W. See `deepprop.with_compute_dtype`.
    """

    W: Array
    b: Array
    activation: Activation | Output = field(metadata={"static": True})
    residual: bool = field(default=False, metadata={"static": True})
    keep: int = field(default=1, metadata={"static": True})
    compute_dtype: np.dtype | None = field(default=None, metadata={"static": True})
    normalize: str | None = field(default=None, metadata={"static": True})
    dropout: float = field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        """Turn a name into an activation, or into an output if no activation has that name."""
        if isinstance(self.activation, str):
            named = activation if _name_of_activation(self.activation) else output
            object.__setattr__(self, "activation", named(self.activation))


def _name_of_activation(name: str) -> bool:
    return name.strip().partition("(")[0] in ACTIVATIONS and "+" not in name


Params = tuple[Layer, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Cache:
    """What the backward pass reads: a pytree, so it may cross the boundary of a `jit`.

    The backward pass reads W, A[l-1], and Z[l] or A[l] for g'; it never reads b. If both passes run
    in one `jit`, XLA stores only what the g' of this network read.

    Attributes:
        params: the layers, 1 to L: `params[l - 1]` is layer l.
        Z: Z[1], ..., Z[L], each (n_l, m).
        A: A[0] = X, A[1], ..., A[L], each (n_l, m): `A[l]` is A[l].
        kept: what dropout kept of the entries that enter each layer: a random key, or a mask
            (n_{l-1}, m), or None for all; empty if nothing was dropped.

    A stack of K layers has one entry in Z and in A, (K, n, m). If the stack stores less (`keep`),
    its entry in Z is None, and that in A holds the stored A alone.
    """

    params: Params
    Z: tuple[Array, ...]
    A: tuple[Array, ...]
    kept: tuple[Array | None, ...] = ()


def is_stack(layer: Layer) -> bool:
    """Return whether the layer is a stack of layers, with a leading axis."""
    return layer.W.ndim == 3


def depth(layer: Layer) -> int:
    """Return the number of layers: K for a stack, otherwise 1."""
    return int(layer.W.shape[0]) if is_stack(layer) else 1


def number_of_layers(params: Params) -> int:
    """Return L, counting every layer of a stack."""
    return sum(map(depth, params))


def units(params: Params) -> tuple[int, ...]:
    """Return n_0, n_1, ..., n_L."""
    above = (layer.W.shape[-2] for layer in params for _ in range(depth(layer)))
    return params[0].W.shape[-1], *above


def activations(params: Params) -> tuple[Activation | Output, ...]:
    """Return the activations of layers 1 to L; the last is the output."""
    return tuple(layer.activation for layer in params for _ in range(depth(layer)))


def like(params: Params, tree: Any) -> Params:
    """Return the arrays of `tree` as layers with the static data of `params`."""
    layers: Params = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(tree))
    return layers


def top(A: Array) -> Array:
    """Return A of the topmost layer from a cache's entry for a layer or a stack.

    It is cut out of the rows, which is how a stack's A lies in memory (see _loops.py).
    """
    return A.mT[-1].mT if A.ndim == 3 else A


def type_of_A(layer: Layer) -> np.dtype:
    """Return the dtype of Z and A: float32 or wider for the output, from which J is computed."""
    dtype = layer.W.dtype if layer.compute_dtype is None else layer.compute_dtype
    return wide(dtype) if isinstance(layer.activation, Output) else np.dtype(dtype)


def type_of_dZ(layer: Layer) -> np.dtype:
    """Return the dtype of dZ and dA: wider than float16, whose range deep networks leave."""
    if layer.compute_dtype is None or has_range_of_float32(layer.compute_dtype):
        return np.dtype(layer.W.dtype if layer.compute_dtype is None else layer.compute_dtype)
    return wide(layer.compute_dtype)


def types_of_A(layer: Layer) -> Types:
    """Return the dtypes in which Z[l] is computed."""
    return Types(type_of_A(layer), layer.compute_dtype)


def types_of_dZ(layer: Layer) -> Types:
    """Return the dtypes in which dA[l-1] is computed."""
    return Types(type_of_dZ(layer), layer.compute_dtype)


def types_of_sums(layer: Layer) -> Types:
    """Return the dtypes in which examples are summed."""
    return Types(wide(layer.W.dtype), layer.compute_dtype)
