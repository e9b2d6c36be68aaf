"""What signals are compared with: gradients of single examples, and curvature, by autodiff."""

from functools import cache as cached

import jax
import numpy as np

import deepprop as dp
from tests.problems import HIDDEN, problem, public_cost


@jax.jit
def one_by_one(params, X, Y):
    """The oracle: the gradient of J of each example alone, which is that of L(i)."""

    def loss(params, x, y):
        return public_cost(params, x[:, None], y[:, None])

    return jax.vmap(jax.grad(loss), in_axes=(None, 1, 1))(params, X, Y)


@jax.jit
def signals_of(params, X, Y):
    _, cache = dp.forward(params, X)
    return cache, dp.error_signals(cache, Y)


@cached
def every_activation(output):
    """A network with each activation in a layer: its parts, and the gradients one by one."""
    params, X, Y, w = problem(23, [4] + [5] * len(HIDDEN) + [3], 6, HIDDEN, output, True)
    return params, X, Y, w, one_by_one(params, X, Y)


def rows(each, l=None):
    """Gradients one by one as a matrix: an example a row, a parameter a column."""
    leaves = jax.tree.leaves(each if l is None else each[l])
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)


def mean(each, w, f=lambda g: g):
    return jax.tree.map(lambda g: np.tensordot(w / w.sum(), f(np.asarray(g)), 1), each)


def scaled(each, factors):
    """Layer l's gradient of example i times factors[l, i]."""
    return tuple(
        jax.tree.map(lambda g, f=f: np.asarray(g) * f[:, None, None], layer)
        for layer, f in zip(each, factors, strict=True)
    )


def factors_of(each, C, gamma):
    """The factor of each layer and example, from the gradients one by one."""
    L, C = len(each), np.asarray(C)
    whole = np.linalg.norm(rows(each), axis=1)
    norms = np.array([np.linalg.norm(rows(each, l), axis=1) if C.ndim else whole for l in range(L)])
    C = C.reshape(-1, 1)
    return np.minimum(1, C / norms) if gamma is None else C / (norms + gamma)


def gauss_newton(params, X, Y, w):
    """sum_i w_i / sum w J_i^T H_i J_i, whole: parameters as `rows` orders them."""
    J, H = jacobians(params, X, Y)
    n = X.shape[1]
    J = np.concatenate([np.reshape(j, (n, j.shape[1], -1)) for j in jax.tree.leaves(J)], axis=2)
    return np.einsum("i,ikp,ikl,ilq->pq", w / w.sum(), J, np.asarray(H), J)


@jax.jit
def jacobians(params, X, Y):
    """J_i of Z[L] by the parameters, leaves (m, n_L, ...), and H_i of the loss by Z[L]."""

    def Z_L(params, x):
        return dp.forward(params, x[:, None])[1].Z[-1][:, 0]

    def loss(z, y):
        return dp.output(params[-1].activation).loss(z[:, None], y[:, None])[0]

    J = jax.vmap(jax.jacobian(Z_L), (None, 1))(params, X)
    return J, jax.vmap(jax.hessian(loss), (1, 1))(dp.forward(params, X)[1].Z[-1], Y)


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
