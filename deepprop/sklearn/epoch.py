"""Programs: steps over the examples in a given order, the cost of a whole data set, and A[L].

The order of the examples is an argument, because scikit-learn draws it with NumPy, and we draw the
same. So is their number, and the number of steps follows from it: a data set with a few examples
more or fewer runs the same program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepprop._arithmetic import wide
from deepprop._checks import sum_of_weights
from deepprop.layers import Cache, Params, like
from deepprop.network import mean_loss
from deepprop.optimizers.optax_calls import check_state
from deepprop.sklearn.rows import Chunk
from deepprop.sklearn.solvers import Numbers, Solver, over, penalised, squares, transformation
from deepprop.training.epoch import step
from deepprop.training.examples import forward_checked
from deepprop.training.programs import Programs
from deepprop.walk import to_the_top


def no_sums(params: Params) -> np.ndarray:
    """Return the sums before an epoch's first step, (3,), or (K, 3) for K networks.

    They sum J times the examples of each step, the penalty times the same, and the examples.
    """
    return np.zeros((*params[-1].W.shape[:-2], 3), wide(params[0].W.dtype))


def _steps(
    params: Params,
    state: Any,
    sums: Array,
    chunk: Chunk,
    size: np.int32 | Array,
    rates: Any,
    numbers: Numbers,
    key: Array | None,
    *,
    solver: Solver,
    width: int,
    several: bool,
) -> tuple[Params, Any, Array]:
    """Take one step per `size` examples of the chunk, in its order.

    Args:
        params: the layers; with a leading axis if there are several networks, which then see the
            same examples.
        state: the solver's state.
        sums: of the epoch so far: see `no_sums`.
        chunk: the examples.
        size: examples per step.
        rates: the learning rate; or one per step.
        numbers: the solver's settings, and alpha.
        key: for dropout, or one per network; None without it.
        solver: a name in `SOLVERS`, or an optax transformation.
        width: the rows with which a step is compiled, at least `size`.
        several: whether there are several networks.

    Returns:
        The params, state and sums after the last step.
    """
    X, Y, weights, order, m = chunk
    dtype, alpha = sums.dtype, numbers["alpha"]
    constant = jnp.ndim(rates) == 0

    def of_one(params: Params, state: Any, sums: Array, key: Array | None) -> Any:
        def take_step(i: Array, carry: Any) -> Any:
            params, state, cost, penalty, count = carry
            index = lax.dynamic_slice(order, (i * size,), (width,))
            counted = jnp.arange(width, dtype=jnp.int32) < jnp.minimum(size, m - i * size)
            w = jnp.where(counted, 1 if weights is None else weights[index], 0).astype(dtype)
            share = jnp.sum(counted.astype(dtype))
            penalty_now = over(alpha / 2, jnp.sum(w)) * squares(params)
            optimizer = transformation(solver, rates if constant else rates[i], numbers)
            key_i = None if key is None else jax.random.fold_in(key, i)
            cache, targets = forward_checked(params, X[index].T, key_i), Y[index].T
            J = reported(cache, targets, w).astype(dtype)
            params, new, _ = step(
                cache, targets, w, state, optimizer=optimizer, backward=penalised(alpha)
            )
            check_state(state, new)
            penalty += share * penalty_now.astype(dtype)
            return params, new, cost + share * J, penalty, count + share

        steps = (m + size - 1) // size
        params, state, *trained = lax.fori_loop(
            jnp.int32(0), steps, take_step, (params, state, *sums)
        )
        return params, state, jnp.stack(trained)

    run = jax.vmap(of_one) if several else of_one
    trained: tuple[Params, Any, Array] = run(params, state, sums, key)
    return trained


take_steps = Programs(_steps, static=("solver", "width", "several"), donate_argnums=(1, 2))


@jax.jit
def outputs(params: Params, X: Array) -> Array:
    """Return A[L] of each row of X, (rows, n_L); with several networks (K, rows, n_L)."""

    def of_one(params: Params) -> Array:
        return to_the_top(params, X.T.astype(params[0].compute_dtype or params[0].W.dtype)).T

    return jax.vmap(of_one)(params) if params[-1].W.ndim == 3 else of_one(params)


def mean_of(A: np.ndarray) -> np.ndarray:
    """Return the mean over the members of an ensemble, (m, n_L); A[L] of a single network."""
    return A if A.ndim == 2 else A.mean(0)


@jax.jit
def total_loss(params: Params, chunk: Chunk) -> tuple[Array, Array]:
    """Return sum_i w_i L(i) and sum_i w_i of a chunk; the first is (K,) with several networks."""
    w = _weights(chunk)

    def of_one(params: Params) -> Array:
        cache = forward_checked(params, chunk.X.T)
        return mean_loss(cache, chunk.Y.T.astype(cache.A[-1].dtype), w) * jnp.sum(w)

    return jax.vmap(of_one)(params) if params[-1].W.ndim == 3 else of_one(params), jnp.sum(w)


@jax.jit
def total_and_gradient(flat: Array, params: Params, chunk: Chunk) -> tuple[Array, Array]:
    """Return sum_i w_i L(i), and its gradient, for params whose numbers are those of `flat`.

    Args:
        flat: all W and b of all layers, one after the other.
        params: layers of that shape.
        chunk: the examples.
    """
    params, w = unpacked(flat, params), _weights(chunk)
    cache = forward_checked(params, chunk.X.T)
    Y, m = chunk.Y.T.astype(cache.A[-1].dtype), jnp.sum(w)
    grads = penalised(0.0)(cache, Y, w)
    return m * reported(cache, Y, w), m * packed(grads)


def reported(cache: Cache, Y: Array, w: Array) -> Array:
    """Return J as scikit-learn reports it: with probabilities of at least the dtype's epsilon.

    Its rule for when to stop, and its L-BFGS, see this J, and the gradient of the other.
    """
    A, name = cache.A[-1], cache.params[-1].activation.name
    if name not in ("softmax", "sigmoid"):
        return mean_loss(cache, Y, w)
    eps = float(np.finfo(A.dtype).eps)
    p = jnp.clip(A, eps, 1 - eps)
    terms = Y * jnp.log(p)
    if name == "sigmoid":
        terms += (1 - Y) * jnp.log(1 - p)
    losses = -jnp.sum(jnp.where(jnp.isnan(A), A, terms), axis=0)
    return jnp.sum(w * losses) / sum_of_weights(w)


def packed(tree: Any) -> Array:
    """Return all numbers of a tree, one after the other."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unpacked(flat: Array, params: Params) -> Params:
    """Return layers like params with the numbers of `flat`."""
    leaves = jax.tree.leaves(params)
    parts = jnp.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return like(
        params, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _weights(chunk: Chunk) -> Array:
    counted = jnp.arange(chunk.X.shape[0], dtype=jnp.int32) < chunk.m
    w = jnp.where(counted, 1 if chunk.weights is None else chunk.weights, 0)
    return w.astype(wide(chunk.X.dtype))
