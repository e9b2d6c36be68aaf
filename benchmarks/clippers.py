"""The contenders of per_example.py: plain and clipped gradients of a batch, by several libraries.

A contender is a function (params, X, Y) -> Running:

    call()          computes one result, including the forward pass and the wait for the device
    arrays(result)  converts the result of `call` to NumPy arrays W[1], b[1], W[2], ...
    compiled        XLA's compiled program; None if the library does not use XLA

If a library adds noise after clipping, only its clipping is called; optax's aggregate can't be
called without it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.contenders import by_example, on_gpu, rows_loss, torch_model
from benchmarks.torch_clippers import (
    C,
    backpack_gradients,
    backpack_norms,
    backpack_squares,
    opacus,
    pytorch,
    torch_func,
)

CLOSE, NEAR = 1e-4, 1e-3  # NEAR: PyTorch's float32 norm of 13 million numbers is off by about 4e-4


class Running(NamedTuple):
    """A contender that is ready to run; see above."""

    call: Callable
    arrays: Callable
    compiled: Any


def compiled_by_jax(f, args, arrays):
    """Compile f(*args) and return it as a Running."""
    args = jax.tree.map(jnp.asarray, args)
    compiled = jax.jit(f).lower(*args).compile()
    return Running(lambda: jax.block_until_ready(compiled(*args)), arrays, compiled)


def deepprop(params, X, Y, *, backward):
    """Compile the forward pass and backward(cache, Y) as one program."""

    def run(params, X, Y):
        return backward(dp.forward(params, X)[1], Y)

    def arrays(result):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]

    return compiled_by_jax(run, (params, X, Y), arrays)


def norms(cache, Y):
    """Return the norm of every example's gradient (m,)."""
    return dp.per_example_norms(cache, dp.error_signals(cache, Y))


def squares(cache, Y):
    """Return 1/m sum_i g_i^2 of every parameter."""
    return dp.squared_gradients(cache, dp.error_signals(cache, Y))


def by_jax(params, X, Y, *, gradient):
    """Compile gradient(params, x, y) as JAX users write it: examples in rows, W (in, out)."""

    def arrays(result):
        return [np.asarray(leaf).T for leaf in jax.tree.leaves(result)]

    rows = tuple((layer.W.T, layer.b[:, 0]) for layer in params)
    return compiled_by_jax(gradient, (rows, *by_example(X, Y)), arrays)


def vmap_grad(params, x, y, *, clip):
    """Compute every example's gradient by vmap(jax.grad), then apply `clip` to them."""

    def loss(params, x, y):
        return rows_loss(params, x[None], y[None])

    return clip(jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y))


def clip_by_hand(grads):
    """Return 1/m sum_i min(1, C / ||g_i||) g_i from leaves with a leading axis of examples."""
    flat = [g.reshape(len(g), -1) for g in jax.tree.leaves(grads)]
    lengths = jnp.sqrt(sum(jnp.sum(g * g, axis=1) for g in flat))
    factors = jnp.minimum(1, C / lengths) / len(lengths)
    return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)


def clip_by_optax(grads):
    """Return the same by optax.per_example_global_norm_clip, which returns a sum."""
    leaves, structure = jax.tree.flatten(grads)
    clipped, _ = optax.per_example_global_norm_clip(leaves, C)
    return jax.tree.unflatten(structure, [g / len(leaves[0]) for g in clipped])


def aggregate_by_optax(grads):
    """Return the same by optax's DP aggregate, which draws its noise even to multiply it by 0."""
    aggregate = optax.contrib.differentially_private_aggregate(C, 0.0, 0)
    return aggregate.update(grads, aggregate.init(None))[0]


def by_torch(params, X, Y, *, make):
    """Run a PyTorch contender; make(model, x, y) returns a function that returns tensors."""
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
    """A way to compute one kind of result."""

    gives: str  # the kind of result: plain, clipped, norms or squares
    make: Callable
    package: str  # the package it needs, by its import name
    every: bool = False  # whether it stores every g_i
    tolerance: float = CLOSE  # allowed difference from deepprop's, relative to the largest entry


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
