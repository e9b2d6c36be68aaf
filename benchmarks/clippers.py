"""One gradient of a batch, plain or with the gradient of every example clipped, by several libraries.

A contender makes, of (params, X, Y), a Running:

    call()          one gradient, forward pass and the wait for the device included
    arrays(result)  what call gave as NumPy arrays, W[1], b[1], W[2], ... in deepprop's order
    compiled        what XLA made of it; None where it did not

Where a library adds noise after clipping, its clipping alone is called, but in optax's aggregate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contenders import by_example, on_gpu, rows_loss, torch_model
from torch_clippers import (
    C,
    backpack_gradients,
    backpack_norms,
    backpack_squares,
    opacus,
    pytorch,
    torch_func,
)

import deepprop as dp

CLOSE, NEAR = 1e-4, 1e-3  # NEAR: PyTorch's float32 norm of 13 million numbers is off by some 4e-4


class Running(NamedTuple):
    call: Callable
    arrays: Callable
    compiled: Any


def compiled_by_jax(f, args, arrays):
    """Running, of a function of arrays."""
    args = jax.tree.map(jnp.asarray, args)
    compiled = jax.jit(f).lower(*args).compile()
    return Running(lambda: jax.block_until_ready(compiled(*args)), arrays, compiled)


def deepprop(params, X, Y, *, backward):
    """backward(cache, Y) after the forward pass, under one jit."""

    def run(params, X, Y):
        return backward(dp.forward(params, X)[1], Y)

    def arrays(result):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]

    return compiled_by_jax(run, (params, X, Y), arrays)


def norms(cache, Y):
    return dp.per_example_norms(cache, dp.error_signals(cache, Y))


def squares(cache, Y):
    return dp.squared_gradients(cache, dp.error_signals(cache, Y))


def by_jax(params, X, Y, *, gradient):
    """gradient(params, x, y) as JAX users have them: an example a row, W (in, out), b (out,)."""

    def arrays(result):
        return [np.asarray(leaf).T for leaf in jax.tree.leaves(result)]

    rows = tuple((layer.W.T, layer.b[:, 0]) for layer in params)
    return compiled_by_jax(gradient, (rows, *by_example(X, Y)), arrays)


def vmap_grad(params, x, y, *, clip):
    """Every example's gradient by vmap(jax.grad), and then clip(them)."""

    def loss(params, x, y):
        return rows_loss(params, x[None], y[None])

    return clip(jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y))


def clip_by_hand(grads):
    flat = [g.reshape(len(g), -1) for g in jax.tree.leaves(grads)]
    lengths = jnp.sqrt(sum(jnp.sum(g * g, axis=1) for g in flat))
    factors = jnp.minimum(1, C / lengths) / len(lengths)
    return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)


def clip_by_optax(grads):
    leaves, structure = jax.tree.flatten(grads)
    clipped, _ = optax.per_example_global_norm_clip(leaves, C)
    return jax.tree.unflatten(structure, [g / len(leaves[0]) for g in clipped])


def aggregate_by_optax(grads):
    """It draws its noise, one number a parameter, even where it multiplies it by 0."""
    aggregate = optax.contrib.differentially_private_aggregate(C, 0.0, 0)
    return aggregate.update(grads, aggregate.init(None))[0]


def by_torch(params, X, Y, *, make):
    """make(model, x, y) gives the function that gives the gradient's tensors."""
    import torch

    model, device = torch_model(params)
    gradient = make(model, *(torch.tensor(array, device=device) for array in by_example(X, Y)))

    def call():
        result = gradient()
        if on_gpu():
            torch.cuda.synchronize()
        return result

    return Running(call, lambda result: [t.numpy(force=True) for t in result], None)


class Contender(NamedTuple):
    gives: str
    make: Callable
    package: str  # that it needs, by the name it is imported by
    every: bool = False  # does it make every g_i?
    tolerance: float = CLOSE  # how far it may be from deepprop's, by the largest entry


def of_deepprop(gives, backward):
    return Contender(gives, partial(deepprop, backward=backward), "deepprop")


def of_jax(gives, gradient, every=False):
    return Contender(gives, partial(by_jax, gradient=gradient), "optax", every)


def of_torch(gives, make, package="torch", every=False, tolerance=CLOSE):
    return Contender(gives, partial(by_torch, make=make), package, every, tolerance)


def each_clipped(clip):
    return of_jax("clipped", partial(vmap_grad, clip=clip), every=True)


BASE = "deepprop manual_backward"
CONTENDERS = {
    BASE: of_deepprop("plain", dp.manual_backward),
    "jax.grad": of_jax("plain", jax.grad(rows_loss)),
    "PyTorch": of_torch("plain", pytorch),
    "deepprop clipped_backward": of_deepprop(
        "clipped", lambda cache, Y: dp.clipped_backward(cache, Y, C)
    ),
    "vmap(jax.grad), clipped by hand": each_clipped(clip_by_hand),
    "vmap(jax.grad), optax per_example_global_norm_clip": each_clipped(clip_by_optax),
    "vmap(jax.grad), optax differentially_private_aggregate": each_clipped(aggregate_by_optax),
    "torch.func vmap(grad), clipped by hand": of_torch(
        "clipped", torch_func, every=True, tolerance=NEAR
    ),
    "Opacus": of_torch(
        "clipped", partial(opacus, ghost=False), "opacus", every=True, tolerance=NEAR
    ),
    "Opacus ghost clipping": of_torch("clipped", partial(opacus, ghost=True), "opacus"),
    "BackPACK BatchGrad + BatchL2Grad, clipped by hand": of_torch(
        "clipped", backpack_gradients, "backpack", every=True
    ),
    "BackPACK BatchL2Grad, and a second backward pass": of_torch(
        "clipped", partial(backpack_norms, clip=True), "backpack"
    ),
    "deepprop per_example_norms": of_deepprop("norms", norms),
    "BackPACK BatchL2Grad": of_torch("norms", partial(backpack_norms, clip=False), "backpack"),
    "deepprop squared_gradients": of_deepprop("squares", squares),
    "BackPACK SumGradSquared": of_torch("squares", backpack_squares, "backpack"),
}
