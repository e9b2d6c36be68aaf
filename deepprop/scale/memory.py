"""The memory of a training step, computed before it runs and without compiling it.

What is alive changes on the way down the network: when the backward pass leaves a layer, its Z and
A are freed, and its gradient is alive from then on. The peak may therefore be at any layer. The
plan computes the sum for each of them and returns the largest.

What a layer needs, in bytes, is a `_Needs`: what the forward pass stores for it, the buffer in
which a stack computes its Z and A again, the working memory while the layer is passed, and its
gradient.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepprop._arguments import check_params
from deepprop._arithmetic import wide
from deepprop._checks import whole_number
from deepprop.costs import Output
from deepprop.equations import slope
from deepprop.layers import Layer, Params, depth, is_stack, type_of_A, type_of_dZ
from deepprop.optimizers.fused_update import InBackward, check_optimizer, depend
from deepprop.optimizers.optax_calls import started


@dataclass(frozen=True)
class MemoryPlan:
    """The result of `memory_plan`, in bytes; `print` shows a table in MB (1e6 bytes).

    Attributes:
        parameters: W and b of all layers.
        state: the optimizer's state.
        data: X and Y.
        gradients: the gradients alive at the peak; without an optimizer, all of them.
        activations: A[0], and the Z and A stored for the backward pass, with the buffer in which a
            stack computes its own again.
        working: the rest: dA and dZ, and what is computed for one layer at a time.
    """

    parameters: int
    state: int
    data: int
    gradients: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """The sum of all."""
        fixed = self.parameters + self.state + self.data
        return fixed + self.gradients + self.activations + self.working

    def __str__(self) -> str:
        """Return the table, one line per entry."""
        entries = {
            "parameters": self.parameters,
            "optimizer's state": self.state,
            "X and Y": self.data,
            "gradients": self.gradients,
            "Z and A": self.activations,
            "working memory": self.working,
            "total": self.total,
        }
        numbers = {name: f"{size / 1e6:,.2f}" for name, size in entries.items()}
        n, m = (max(map(len, column)) for column in (numbers, numbers.values()))
        return "\n".join(f"{name:{n}}  {number:>{m}} MB" for name, number in numbers.items())


@dataclass(frozen=True)
class _Needs:
    """The bytes that one layer or stack needs: see the module's text."""

    stored: int
    again: int
    working: int
    gradient: int


def memory_plan(
    params: Params, batch_size: int, optimizer: optax.GradientTransformation | None = None
) -> MemoryPlan:
    """Compute the memory of a step: max_l (A[0] + sum_{i<=l} stored_i + sum_{i>=l} dW_i + work_l).

    The plan describes the compiled `train_step` in the terms of XLA's `memory_analysis()`.
    Parameters, state and data are the arguments; the step writes its results into their memory.
    Gradients, activations and working memory are the temporary bytes. Without an optimizer it
    describes `jit` of `forward` and `manual_backward`, whose output is the gradients.

    For networks dominated by float32 stacks of tens of layers, with any `keep` and an elementwise
    optimizer, the temporary bytes and the total are within 10 % of XLA's on a CPU. Otherwise the
    plan is an estimate:

    - Single layers: XLA may store more for relu (Z and A, twice the plan) and for gelu (four
      arrays), update a layer as soon as its gradient is computed, or compute in the output's
      memory.
    - A g of several operations, such as gelu, may need up to five more arrays (n, m) for one layer.
    - An optimizer that uses all layers at once, such as a clip by the global norm, may need the
      updates beside the gradients; `dp.kfac` needs what it computes.
    - Layers that normalise or drop: XLA may store U and the masks, or compute them again.
    - J needs up to three more arrays (n_L, m), which matters for a wide output.
    - bfloat16 on a CPU: some releases of XLA copy all stored arrays to float32.

    >>> import jax, optax, deepprop as dp
    >>> def network(keep):
    ...     sizes = [64, *[256] * 101, 10]
    ...     return dp.stack(dp.init_params(jax.random.key(0), sizes, stack=True), keep)
    >>> def plan(keep):  # nothing is allocated
    ...     return dp.memory_plan(jax.eval_shape(lambda: network(keep)), 512, optax.adam(1e-3))
    >>> print(plan(1))
    parameters          26.39 MB
    optimizer's state   52.79 MB
    X and Y              0.15 MB
    gradients           26.33 MB
    Z and A             53.10 MB
    working memory       2.10 MB
    total              160.86 MB
    >>> [round(plan(keep).total / 1e6) for keep in (1, 4, 16, "sqrt")]
    [161, 124, 121, 119]

    Args:
        params: the layers, as arrays or as shapes and dtypes from `jax.eval_shape`.
        batch_size: m, examples per step.
        optimizer: an optax transformation, including `in_backward(...)`, which never needs all
            gradients at once; None for the gradient alone.

    Returns:
        The plan; `print` shows it as a table.

    Raises:
        ValueError: `batch_size` is below 1, or the layers do not fit one another.
        TypeError: `batch_size` is not a whole number, `params` is not a tuple of layers, or
            `optimizer` is not an optax transformation.
    """
    check_params(params)
    m = whole_number("batch_size", batch_size)
    if optimizer is not None:
        check_optimizer(optimizer)
    first, last = params[0], params[-1]
    state: Any = None if optimizer is None else jax.eval_shape(lambda: started(optimizer, params))
    in_place = isinstance(optimizer, InBackward)
    own = list(state) if in_place else [None] * len(params)
    needs = [_needs(layer, m, s) for layer, s in zip(params, own, strict=True)]
    A_0 = first.W.shape[-1] * m * type_of_A(first).itemsize
    if optimizer is not None:  # J reads Z[L], dZ[L] reads A[L]
        A_0 += last.W.shape[-2] * m * type_of_A(last).itemsize

    def moment(l: int) -> tuple[int, int, int]:
        """Return gradients, activations and working memory while entry l of params is passed."""
        alive = needs if optimizer is None else needs[l:]  # an output is allocated throughout
        gradients = 0 if in_place else sum(n.gradient for n in alive)
        activations = A_0 + sum(n.stored for n in needs[: l + 1]) + needs[l].again
        return gradients, activations, needs[l].working

    return MemoryPlan(
        _bytes(params),
        _bytes(state),
        (first.W.shape[-1] + last.W.shape[-2]) * m * first.W.dtype.itemsize,
        *max((moment(l) for l in range(len(params))), key=sum),
    )


def _needs(layer: Layer, m: int, state: Any) -> _Needs:
    """Return the needs of an entry of params; `state` is that of an update on the way down."""
    *_, n, n_below = layer.W.shape
    K, k, number = depth(layer), layer.keep, type_of_A(layer).itemsize
    A, dZ = n * m * number, n * m * type_of_dZ(layer).itemsize
    Z_and_A = A + (A if _reads_z(layer) else 0)
    dW = (layer.W.size + layer.b.size) // K * wide(layer.W.dtype).itemsize
    U = n_below * m * number
    arrays = 7 if layer.dropout else 3 if layer.normalize else 0  # of U's shape: counted in XLA's
    if not is_stack(layer):
        dA_below = n_below * m * type_of_dZ(layer).itemsize
        working = arrays * U + dZ + dA_below + (0 if state is None else dW)
        return _Needs(Z_and_A + U * (arrays > 0), 0, working, _bytes(layer))
    # dA[l], dZ[l] and A[l-1]; W[l], copied out of the stack, and dW[l]; one layer's new state.
    working = 2 * dZ + A + arrays * U + _bytes(layer) // K + dW + _bytes(state) // K
    if k == 1:
        return _Needs(K * Z_and_A, 0, working, _bytes(layer))
    below = A  # below the segment, copied out of the stored ones
    return _Needs(-(-K // k) * A, k * Z_and_A, working + below, _bytes(layer))


def _reads_z(layer: Layer) -> bool:
    """Return whether g' depends on Z, which must then be stored: read from the jaxpr of g'."""
    if isinstance(layer.activation, Output):
        return False
    P = jax.eval_shape(lambda: jnp.zeros((1, 1), type_of_A(layer)))
    jaxpr = jax.make_jaxpr(lambda Z, A: slope(layer, Z, A))(P, P).jaxpr
    (of,) = depend(jaxpr, [{0}, {1}])
    return 0 in of


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
