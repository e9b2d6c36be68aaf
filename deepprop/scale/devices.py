"""Many devices: place the arrays, and XLA divides the work and inserts the exchanges.

The passes themselves know nothing of devices. Data parallel: the examples are divided over the axis
"data", and each device computes the gradient of its own examples. Model parallel: the units are
divided over the axis "model", in W[1] by rows, in W[2] by columns, and so on. Z[1] and A[1] then
need no exchange, because each device has the rows of its units, and Z[2] is a sum over devices. Two
layers take one exchange on the way up and one on the way down (Shoeybi et al. 2019, Megatron-LM,
arXiv:1909.08053).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from deepprop._arguments import check_params
from deepprop._arithmetic import wide
from deepprop._checks import (
    dense_array,
    example_weights,
    is_known,
    plain_weights,
    whole_number,
)
from deepprop.backprop import Backward, manual_backward
from deepprop.layers import Cache, Layer, Params, is_stack
from deepprop.walk import masks

AXES = ("data", "model")
WHOLE: tuple[str | None, ...] = (None, None)
ROWS, COLUMNS = ("model", None), (None, "model")


def mesh(*, data: int | None = None, model: int = 1) -> Mesh:
    """Make a mesh with the axes "data" and "model", of all devices or of the first ones.

    >>> import deepprop as dp
    >>> dict(dp.mesh(data=1).shape)
    {'data': 1, 'model': 1}

    Args:
        data: the number of devices over which the examples are divided; None uses all devices of
            all processes.
        model: the number of devices over which the units are divided.

    Returns:
        A `jax.sharding.Mesh` with axes of the type Auto.

    Raises:
        ValueError: there are fewer than data times model devices; or `data` is None and the number
            of devices is not a multiple of `model`.
        TypeError: an argument is not a whole number.
    """
    count = len(jax.devices())
    model = whole_number("model", model)
    if data is None and count % model:
        raise ValueError(f"model must divide the {count} devices where data is None, got {model}")
    data = count // model if data is None else data
    data = whole_number("data", data)
    if data * model > count:
        raise ValueError(
            f"mesh must have at most the {count} devices that there are, got data {data} times"
            f" model {model}"
        )
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def place(params: Params, mesh: Mesh) -> Params:
    """Place the parameters on a mesh: replicated, or divided if its axis "model" is larger than 1.

    W[1] is then divided by rows and W[2] by columns, and so on in pairs; a last layer without a
    pair is replicated. All layers of a stack are divided by rows, and the layer above it by
    columns.

    >>> import jax, deepprop as dp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> place(params, dp.mesh(data=1))[0].W.sharding.spec  # whole
    P()

    Args:
        params: the layers; equal in every process.
        mesh: a mesh with an axis "model" and axes of the type Auto, such as that of `mesh`.

    Returns:
        The layers, on the devices of the mesh.

    Raises:
        ValueError: the mesh has no such axes, or a layer's units are not a multiple of "model".
        TypeError: `mesh` is not a jax.sharding.Mesh, or `params` is not a tuple of layers.
    """
    check_params(params)
    check_mesh(mesh, "model")
    placed: list[Layer] = []
    axes: tuple[str | None, ...]
    by_rows = True
    for l, layer in enumerate(params, start=1):
        if is_stack(layer):
            axes, by_rows = ROWS, False
        elif by_rows and l == len(params):
            axes = WHOLE
        else:
            axes, by_rows = (ROWS if by_rows else COLUMNS), not by_rows
        placed.append(_placed(l, layer, axes, mesh))
    return tuple(placed)


def place_examples(mesh: Mesh, *arrays: ArrayLike) -> tuple[Array, ...]:
    """Divide X (n_0, m), Y (n_L, m) or weights (m,) over "data": m / data examples per device.

    With several processes, each brings its own examples, the same number in each, and need not have
    read those of the others.

    >>> import jax.numpy as jnp, deepprop as dp
    >>> X, w = place_examples(dp.mesh(data=1), jnp.ones((3, 8)), jnp.ones(8))
    >>> X.sharding.spec, w.sharding.spec
    (P(None, 'data'), P('data',))

    Args:
        mesh: a mesh with an axis "data" and axes of the type Auto, such as that of `mesh`.
        arrays: arrays with the examples on their last axis; in each process its own.

    Returns:
        The arrays, with the examples of all processes.

    Raises:
        ValueError: the mesh has no such axis, or the number of examples is not a multiple of its
            devices.
        TypeError: `mesh` is not a jax.sharding.Mesh.
    """
    check_mesh(mesh, "data")
    here = mesh.local_mesh.shape["data"]
    placed = []
    for i, array in enumerate(arrays):
        array = dense_array(f"arrays[{i}]", array)
        ndim, m = array.ndim, array.shape[-1:]
        if not ndim or m[0] % here or not m[0]:
            raise ValueError(
                f"arrays[{i}] must have a multiple of {here} examples, the devices of this process"
                f' on the axis "data", got shape {array.shape}; fill up with examples of weight 0'
            )
        placed.append(_of_processes(NamedSharding(mesh, _over_data(ndim)), array))
    return tuple(placed)


def _over_data(ndim: int) -> PartitionSpec:
    """Divide the last axis, that of the examples, over "data"."""
    spec: PartitionSpec = PartitionSpec(*[None] * (ndim - 1), "data")  # type: ignore[no-untyped-call]
    return spec


def _of_processes(sharding: NamedSharding, own: Any) -> Array:
    """Return the examples of all processes, given those of this one."""
    placed: Array
    if jax.process_count() == 1:
        placed = jax.device_put(own, sharding)
    else:
        placed = jax.make_array_from_process_local_data(sharding, np.asarray(own))  # type: ignore[no-untyped-call]
    return placed


def data_parallel(mesh: Mesh, backward: Backward = manual_backward) -> Backward:
    """Return a backward pass that sums the whole gradient over devices in one exchange.

    By itself, XLA sums a stack's gradient layer by layer, as soon as each layer's is computed. If
    every exchange has a high latency, one exchange for all layers is faster. For layers that are
    not in a stack XLA makes one exchange anyway. Each device computes the mean over its own
    examples; these means are averaged with the sums of their weights: sum_d w_d g_d / sum_d w_d.

    >>> import jax, optax, deepprop as dp, jax.numpy as jnp
    >>> mesh = dp.mesh(data=1)
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 8, 1], hidden="tanh", output="identity",
    ...                         stack=True)
    >>> X, = dp.place_examples(mesh, jnp.linspace(-1, 1, 64).reshape(1, 64))
    >>> fit = dp.fit(dp.place(params, mesh), optax.sgd(0.3), X, X**2, epochs=100, batch_size=16,
    ...              key=jax.random.key(1), backward=data_parallel(mesh))
    >>> bool(fit.history["cost"][-1] < 0.01)
    True

    Args:
        mesh: a mesh with an axis "data", over which the examples are divided (`place_examples`).
        backward: a function of (cache, Y, weights) that returns a mean of gradients over examples.

    Returns:
        That mean over all examples, as a function for `fit(..., backward=)`.

    Raises:
        ValueError: the mesh has no such axis.
        TypeError: `mesh` is not a jax.sharding.Mesh.
    """
    check_mesh(mesh, "data")

    def averaged(params: Params, of_examples: Any) -> Params:
        *of_cache, Y, w = of_examples
        own = jnp.sum(w)
        gradient = backward(Cache(params, *of_cache), Y, w)
        scaled = jax.tree.map(lambda leaf: leaf.astype(own.dtype) * own, gradient)
        total, whole = jax.lax.psum((scaled, own), "data")  # type: ignore[no-untyped-call]
        m = jnp.where(whole > 0, whole, 1)  # like sum_of_weights: the gradient is 0 if all w are
        mean: Params = jax.tree.map(lambda leaf, of: (leaf / m).astype(of.dtype), total, gradient)
        return mean

    def of_all(cache: Cache, Y: Array, weights: Array | None = None) -> Params:
        dtype = wide(cache.params[0].W.dtype)
        m = Y.shape[-1]
        if weights is None:
            w = jnp.ones(m, dtype)
        elif is_known(weights):
            w = example_weights(weights, m, dtype)
        else:  # dividing by the largest would take one more exchange
            w = plain_weights("weights", weights, m, dtype)
        of_examples = cache.Z, cache.A, masks(cache), Y, w
        by_example = jax.tree.map(lambda leaf: _over_data(leaf.ndim), of_examples)
        by_device = jax.shard_map(
            averaged, mesh=mesh, in_specs=(PartitionSpec(), by_example), out_specs=PartitionSpec(),  # type: ignore[no-untyped-call]
            axis_names={"data"}, check_vma=False,
        )  # fmt: skip
        # Outside of jit, jax 0.10.0 refuses a mesh with a second axis.
        mean: Params = jax.jit(by_device)(cache.params, of_examples)
        return mean

    return of_all


def shard_like(params: Params, state: Any) -> Any:
    """Place the optimizer's state like params: leaves with the shape of a parameter like it.

    All other leaves are replicated. Otherwise Adam's step count would change its sharding after the
    first epoch, from one device to all, and the second epoch would compile again.
    """
    W = params[0].W
    if not getattr(W, "committed", False):
        return state
    of = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
    whole = W.sharding
    if isinstance(whole, NamedSharding):
        whole = NamedSharding(whole.mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def put(leaf: Any) -> Any:
        there = getattr(leaf, "committed", False) and leaf.devices() == W.devices()
        return leaf if there else jax.device_put(leaf, of.get(jnp.shape(leaf), whole))

    return jax.tree.map(put, state)


def shards_of(X: Any) -> int:
    """Return the number of devices over which the examples of X (n_0, m) are divided."""
    sharding = getattr(X, "sharding", None)
    if sharding is None or not X.ndim:
        return 1
    return int(X.shape[-1] // sharding.shard_shape(X.shape)[-1])


def check_together(params: Params, arrays: Mapping[str, Any]) -> None:
    """Raise if an array is committed to other devices than params.

    Raises:
        ValueError: one is; the message names it.
    """
    W = params[0].W
    for name, array in arrays.items():
        bound = [isinstance(P, jax.Array) and getattr(P, "committed", False) for P in (W, array)]
        if all(bound) and array.devices() != W.devices():
            raise ValueError(
                f"{name} must be on the {len(W.devices())} devices that params are on, see"
                f" deepprop.place_examples, got one on {len(array.devices())}"
            )


def check_mesh(mesh: Any, axis: str) -> None:
    """Raise unless it is a mesh with that axis, and all its axes are of the type Auto.

    Raises:
        ValueError: it has no such axis, or one of another type.
        TypeError: it is not a mesh.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    if axis not in mesh.axis_names:
        raise ValueError(f'mesh must have an axis "{axis}", got {mesh.axis_names}')
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh must have axes of the type AxisType.Auto, as deepprop.mesh makes them, got"
            f" {mesh.axis_types}"
        )


def _placed(l: int, layer: Layer, axes: Sequence[str | None], mesh: Mesh) -> Layer:
    count = mesh.shape["model"]
    split = axes.index("model") - 2 if "model" in axes and count > 1 else None
    if split is None:
        axes = WHOLE
    elif layer.W.shape[split] % count:
        raise ValueError(
            f'W[{l}] must have a multiple of {count} units for the axis "model", got shape'
            f" {layer.W.shape}"
        )
    before = [None] * is_stack(layer)

    def put(leaf: Array, *own: str | None) -> Array:
        # Without trailing None, as XLA writes it: jit would compile again for another spelling.
        spec: list[str | None] = [*before, *own]
        while spec and spec[-1] is None:
            spec.pop()
        sharding = NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]
        there: Array = jax.device_put(leaf, sharding)
        return there

    return replace(layer, W=put(layer.W, *axes), b=put(layer.b, axes[0]))
