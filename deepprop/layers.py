"""What a network is made of: layers, and the cache that a forward pass leaves."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array

from deepprop._arithmetic import Types, has_range_of_float32, wide
from deepprop._renamed import renamed_field
from deepprop.activations import ACTIVATIONS, Activation, activation
from deepprop.costs import Output, output


@jax.tree_util.register_dataclass
@renamed_field("products", "compute_dtype")
@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: W (n_l, n_{l-1}), b (n_l, 1) and, as static data, its activation.

    Or a stack of K equal hidden layers: W (K, n, n) and b (K, n, 1), see `deepprop.stack`.

    Attributes:
        W: the weights.
        b: the biases.
        activation: of a hidden layer; the last has an `Output`, its activation and the cost. A name
            will do, but for the outputs "sigmoid" and "identity", which have the name of an
            activation too: write `dp.output("sigmoid")`.
        residual: whether the layer adds its input: A[l] = A[l-1] + g(Z[l]).
        keep: of a stack: the forward pass keeps A of every `keep`-th layer, and of the last; what
            is between is computed again on the way back. With 1 it keeps all Z and A.
        compute_dtype: the dtype to which the factors of matrix products are rounded, and in which
            hidden Z and A are stored; None for that of W. See `deepprop.with_compute_dtype`.
    """

    W: Array
    b: Array
    activation: Activation | Output = field(metadata={"static": True})
    residual: bool = field(default=False, metadata={"static": True})
    keep: int = field(default=1, metadata={"static": True})
    compute_dtype: np.dtype | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        """Take the name of an activation, or of an output where no activation has it."""
        if isinstance(self.activation, str):
            named = activation if _name_of_activation(self.activation) else output
            object.__setattr__(self, "activation", named(self.activation))


def _name_of_activation(name: str) -> bool:
    return name.strip().partition("(")[0] in ACTIVATIONS and "+" not in name


Params = tuple[Layer, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Cache:
    """What the forward pass leaves for the backward pass: a pytree that may cross a `jit` boundary.

    Each line of the backward pass reads W, A[l-1], and Z[l] or A[l] for g'; b is never read. Under
    one `jit`, what the network's own g' do not read is not kept.

    Attributes:
        params: the layers, 1 to L: `params[l - 1]` is layer l.
        Z: Z[1], ..., Z[L], each (n_l, m).
        A: A[0] = X, A[1], ..., A[L], each (n_l, m): `A[l]` is A[l].

    Where `params` has a stack of K layers, Z and A have one entry for it, (K, n, m); if it keeps
    less, Z has None there, and A the A that are kept.
    """

    params: Params
    Z: tuple[Array, ...]
    A: tuple[Array, ...]


def is_stack(layer: Layer) -> bool:
    """Whether it is a stack of layers, with a leading axis."""
    return layer.W.ndim == 3


def depth(layer: Layer) -> int:
    """How many layers it is: K for a stack, else 1."""
    return int(layer.W.shape[0]) if is_stack(layer) else 1


def number_of_layers(params: Params) -> int:
    """L, with every layer of a stack counted."""
    return sum(map(depth, params))


def units(params: Params) -> tuple[int, ...]:
    """n_0, n_1, ..., n_L."""
    above = (layer.W.shape[-2] for layer in params for _ in range(depth(layer)))
    return params[0].W.shape[-1], *above


def activations(params: Params) -> tuple[Activation | Output, ...]:
    """Of layers 1 to L; the last is the output."""
    return tuple(layer.activation for layer in params for _ in range(depth(layer)))


def like(params: Params, tree: Any) -> Params:
    """The arrays of `tree` as layers with the static data of `params`."""
    layers: Params = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(tree))
    return layers


def top(A: Array) -> Array:
    """A of the topmost layer, from a cache's entry for a layer or a stack."""
    return A[-1] if A.ndim == 3 else A


def type_of_A(layer: Layer) -> np.dtype:
    """The type of a layer's Z and A: the output's, from which J comes, is wide."""
    dtype = layer.W.dtype if layer.compute_dtype is None else layer.compute_dtype
    return wide(dtype) if isinstance(layer.activation, Output) else np.dtype(dtype)


def type_of_dZ(layer: Layer) -> np.dtype:
    """The type of a layer's dZ and dA, which must reach far down."""
    if layer.compute_dtype is None or has_range_of_float32(layer.compute_dtype):
        return np.dtype(layer.W.dtype if layer.compute_dtype is None else layer.compute_dtype)
    return wide(layer.compute_dtype)


def types_of_A(layer: Layer) -> Types:
    """The types in which Z[l] is computed."""
    return Types(type_of_A(layer), layer.compute_dtype)


def types_of_dZ(layer: Layer) -> Types:
    """The types in which dA[l-1] is computed."""
    return Types(type_of_dZ(layer), layer.compute_dtype)


def types_of_sums(layer: Layer) -> Types:
    """The types in which examples are added up."""
    return Types(wide(layer.W.dtype), layer.compute_dtype)
