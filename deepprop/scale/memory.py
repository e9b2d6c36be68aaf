"""What a training step takes of memory, added up before it runs, without compiling it.

What is alive changes on the way down a network: Z and A of a layer are freed when it is passed, and
its gradient is there from then on. So a plan is of one moment: the one at which most is alive.
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
    """What `memory_plan` added up, in bytes; `print` shows a table in MB (1e6 bytes).

    Attributes:
        parameters: W and b of all layers.
        state: the optimizer's.
        data: X and Y, as they are given.
        gradients: those that are alive when most is; of the gradient alone, all.
        activations: A[0] in rows (`rows`), and Z and A that are kept for the backward pass, with
            the room in which a stack's are computed again.
        working: the rest: dA and dZ, and what is made of one layer at a time.
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
        kept = self.parameters + self.state + self.data
        return kept + self.gradients + self.activations + self.working

    def __str__(self) -> str:
        """The table, a line an entry."""
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
    """The bytes of one layer or stack: kept from the forward pass, needed when it is passed."""

    kept: int
    room: int
    working: int
    gradient: int


def memory_plan(
    params: Params, batch_size: int, optimizer: optax.GradientTransformation | None = None
) -> MemoryPlan:
    """The memory of one training step: max_l (A[0] + sum_{i<=l} kept_i + sum_{i>=l} dW_i + work_l).

    The plan of a step is of the compiled `train_step`, in the terms of XLA's `memory_analysis()`:
    parameters, state and data are the arguments, into whose memory the step writes what it returns;
    gradients, activations and working memory are the temporary bytes. Of the gradient alone, which
    is `jit` of `forward` and `manual_backward`, the gradients are the output.

    It is within 10 % of XLA's on a CPU, the temporary bytes and the total, where stacks of float32
    have most of the numbers: of tens of layers, with any `keep`, and an optimizer that goes from
    number to number. Elsewhere it is an estimate:

    - Layers one by one: XLA may keep more of relu (Z and A, twice the plan) and of gelu (four
      arrays), update a layer as soon as its gradient is there, or compute in the output's memory.
    - A g of several steps, as gelu, holds up to five arrays (n, m) more of one layer.
    - An optimizer that looks at all layers at once, as a clip by the global norm, may need the
      updates beside the gradients; one that computes much, as `dp.kfac`, what it computes.
    - J holds up to three arrays (n_L, m) more, which a wide output makes felt.
    - bfloat16 on a CPU, where some releases of XLA copy all that is kept into float32.

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
        params: the layers; arrays, or shapes and types alone, as `jax.eval_shape` gives them.
        batch_size: m, the examples of a step.
        optimizer: an optax transformation, also `in_backward(...)`, which needs no gradients of all
            layers; None for the gradient alone.

    Returns:
        The plan; `print` shows it as a table.

    Raises:
        ValueError: `batch_size` is below 1, or params do not fit one another.
        TypeError: `batch_size` is no whole number, `params` is no tuple of layers, or `optimizer`
            is no optax transformation.
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
        """Gradients, activations and working memory while layer or stack l is passed."""
        alive = needs if optimizer is None else needs[l:]  # an output has its memory throughout
        gradients = 0 if in_place else sum(n.gradient for n in alive)
        kept = A_0 + sum(n.kept for n in needs[: l + 1]) + needs[l].room
        return gradients, kept, needs[l].working

    return MemoryPlan(
        _bytes(params),
        _bytes(state),
        (first.W.shape[-1] + last.W.shape[-2]) * m * first.W.dtype.itemsize,
        *max((moment(l) for l in range(len(params))), key=sum),
    )


def _needs(layer: Layer, m: int, state: Any) -> _Needs:
    """Of one layer or stack; `state` is the optimizer's where it is updated on the way down."""
    *_, n, n_below = layer.W.shape
    K, k, number = depth(layer), layer.keep, type_of_A(layer).itemsize
    A, dZ = n * m * number, n * m * type_of_dZ(layer).itemsize
    Z_and_A = A + (A if _reads_z(layer) else 0)
    dW = (layer.W.size + layer.b.size) // K * wide(layer.W.dtype).itemsize
    if not is_stack(layer):
        dA_below = n_below * m * type_of_dZ(layer).itemsize
        return _Needs(Z_and_A, 0, dZ + dA_below + (0 if state is None else dW), _bytes(layer))
    # dA[l], dZ[l] and A[l-1]; W[l], taken out of the stack, and dW[l]; the new state of one layer.
    working = 2 * dZ + A + _bytes(layer) // K + dW + _bytes(state) // K
    if k == 1:
        return _Needs(K * Z_and_A, 0, working, _bytes(layer))
    below = A  # the segment's, out of those that are kept
    return _Needs(-(-K // k) * A, k * Z_and_A, working + below, _bytes(layer))


def _reads_z(layer: Layer) -> bool:
    """Whether g' of a layer depends on Z, which is then kept: read off the jaxpr of g'."""
    if isinstance(layer.activation, Output):
        return False
    P = jax.eval_shape(lambda: jnp.zeros((1, 1), type_of_A(layer)))
    jaxpr = jax.make_jaxpr(lambda Z, A: slope(layer, Z, A))(P, P).jaxpr
    (of,) = depend(jaxpr, [{0}, {1}])
    return 0 in of


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
