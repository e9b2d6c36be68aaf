"""The output layer and its cost, chosen together: each loss L(i) above its dZ[L].

The cost is J = 1/m sum_i L(i), and L(i) is a sum over the n_L output units. Column i of dZ[L] is
the derivative of example i's own loss L(i), without 1/m.

The four outputs with a name of their own are canonical links: L = psi(Z) - Y Z + const with
psi' = g, so dZ[L] = A[L] - Y. Their losses are computed from Z, and so stay finite and exact where
A rounds to 0 or 1. Any other pair of an activation and a cost uses dZ[L] = dA[L] * g'(Z[L]).

Z[L] arrives in float32 or wider, whatever the dtype of the layers: in a narrower dtype A - Y would
lose its digits to cancellation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax import Array

from deepprop.activations import (
    EqualPartial,
    identity,
    identity_prime,
    sigmoid,
    sigmoid_prime,
    softplus,
)

UNBOUNDED = (-math.inf, math.inf)


def no_dZ_from_dA(Z: Array, A: Array, dA: Array) -> Array:
    """Raise, as the dZ_from_dA of an `Output` that was made without one.

    Raises:
        ValueError: always.
    """
    raise ValueError("this output has no dZ_from_dA, so dA can't start the backward pass: bring dZ")


def no_loss(Z: Array, Y: Array) -> Array:
    """Raise, as the loss of an output without a cost.

    Raises:
        ValueError: always.
    """
    raise ValueError("this output has no cost: bring dA, the derivative of your loss by A[L]")


def no_dZ(Z: Array, A: Array, Y: Array) -> Array:
    """Raise, as the dZ of an output without a cost.

    Raises:
        ValueError: always.
    """
    return no_loss(Z, Y)


def one_each(targets: int) -> int:
    """Return n_L of an output with one unit for each row of Y."""
    return targets


@dataclass(frozen=True)
class Output:
    """An output layer with its cost: A[L] = g(Z[L]), the loss of each example, and dZ[L].

    An output without a cost starts its backward pass from a dA[L] or dZ[L] that the caller brings:
    see `error_signals`.

    Attributes:
        name: its name in messages and in saved models.
        g: maps Z (n_L, m) to A (n_L, m).
        loss: maps (Z, Y) to the losses L(i), (m,); an output without a cost raises.
        dZ: maps (Z, A, Y) to dZ[L] (n_L, m); column i is the derivative of L(i), without 1/m.
        init: the initialisation of W that suits it, as in `Activation`.
        dZ_from_dA: maps (Z, A, dA) to dZ[L], for a dA[L] (n_L, m) that the caller brings.
        units: maps the number of rows of Y to n_L, the number of output units.
        domain: the smallest and largest value that Y may have; outside, the loss has no minimum.
    """

    name: str
    g: Callable[[Array], Array] = field(repr=False)
    loss: Callable[[Array, Array], Array] = field(repr=False)
    dZ: Callable[[Array, Array, Array], Array] = field(repr=False)
    init: str = field(default="glorot_normal", repr=False)
    domain: tuple[float, float] = field(default=UNBOUNDED, repr=False)
    dZ_from_dA: Callable[[Array, Array, Array], Array] = field(default=no_dZ_from_dA, repr=False)
    units: Callable[[int], int] = field(default=one_each, repr=False)


@dataclass(frozen=True)
class Cost:
    """A cost as a function of A[L]: the loss of each example, and its derivative dA[L].

    Pair your own with any activation: `output=("tanh", my_cost)`.

    >>> import deepprop as dp, jax.numpy as jnp
    >>> quartic = dp.Cost("quartic", loss=lambda A, Y: jnp.sum((A - Y) ** 4, axis=-2),
    ...                   dA=lambda A, Y: 4 * (A - Y) ** 3)
    >>> dp.output(("tanh", quartic)).name
    'tanh+quartic'

    Attributes:
        name: its name in messages and in saved models.
        loss: maps (A, Y) to the losses L(i), (m,).
        dA: maps (A, Y) to dA[L] (n_L, m); column i is the derivative of L(i), without 1/m.
        parameter: for built-in costs, the keyword of loss and dA that "name(0.5)" sets.
        below: for built-in costs, what that parameter must be below.
    """

    name: str
    loss: Callable[..., Array] = field(repr=False)
    dA: Callable[..., Array] = field(repr=False)
    parameter: str | None = field(default=None, repr=False)
    below: float = field(default=math.inf, repr=False)


def canonical_dZ(Z: Array, A: Array, Y: Array) -> Array:
    """Compute dZ[L] of an output whose loss is L = psi(Z) - Y Z + const with psi' = g."""
    return A - Y  # dZ[L] = A[L] - Y


def softmax(Z: Array) -> Array:
    """A = exp(Z) / sum_k exp(Z_k)."""
    E = jnp.exp(Z - jnp.max(Z, axis=-2, keepdims=True))
    return E / jnp.sum(E, axis=-2, keepdims=True)


def softmax_dZ(Z: Array, A: Array, dA: Array) -> Array:
    """dZ = A * (dA - sum_k A_k dA_k): dA times the Jacobian of softmax, diag(A) - A A^T."""
    return A * (dA - jnp.sum(A * dA, axis=-2, keepdims=True))


def cross_entropy(Z: Array, Y: Array) -> Array:
    """L = -sum_k Y_k log A_k = log sum_k exp(Z_k) - sum_k Y_k Z_k, for Y that sums to 1."""
    c = jnp.max(Z, axis=-2, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(Z - c), axis=-2))
    rest = c * (1 - jnp.sum(Y, axis=-2, keepdims=True))  # 0 where Y sums to 1
    return log_sum - jnp.sum(Y * (Z - c), axis=-2) + jnp.sum(rest, axis=-2)


def binary_cross_entropy(Z: Array, Y: Array) -> Array:
    """L = -sum_k (Y log A + (1 - Y) log(1 - A)) = sum_k (softplus(Z) - Y Z)."""
    return jnp.sum(softplus(Z) - Y * Z, axis=-2)


def half_squared_error(A: Array, Y: Array) -> Array:
    """L = 1/2 sum_k (A - Y)^2."""
    return jnp.sum(jnp.square(A - Y), axis=-2) / 2


def exp(Z: Array) -> Array:
    """A = exp(Z), capped at the square root of the dtype's largest number to stay finite."""
    return jnp.exp(jnp.minimum(Z, _exp_limit(Z)))


def exp_prime(Z: Array, A: Array) -> Array:
    """g' = A, and 0 where A is capped."""
    return jnp.where(_exp_limit(Z) > Z, A, 0)


def half_poisson_deviance(Z: Array, Y: Array) -> Array:
    """L = sum_k (Y log(Y / A) - (Y - A)) = sum_k (A - Y Z + Y log Y - Y), half the deviance.

    Where A is capped, its integral over Z continues as a straight line, so that dL/dZ = A - Y
    holds everywhere.
    """
    A_integral = exp(Z) * (1 + jnp.maximum(Z - _exp_limit(Z), 0))
    saturated = Y * jnp.log(jnp.where(Y > 0, Y, 1)) - Y  # Y log Y is 0 at Y = 0
    return jnp.sum(A_integral - Y * Z + saturated, axis=-2)


def _exp_limit(Z: Array) -> float:
    return math.log(float(np.finfo(Z.dtype).max)) / 2


def squared_error_dA(A: Array, Y: Array) -> Array:
    """dA = A - Y."""
    return A - Y


def absolute_error(A: Array, Y: Array) -> Array:
    """L = sum_k |A - Y|."""
    return jnp.sum(jnp.abs(A - Y), axis=-2)


def absolute_error_dA(A: Array, Y: Array) -> Array:
    """dA = sign(A - Y). At the kink A = Y it is 0."""
    return jnp.sign(A - Y)


def huber(A: Array, Y: Array, delta: float = 1.0) -> Array:
    """L = sum_k of 1/2 r^2 where |r| <= delta, else delta (|r| - delta/2), with r = A - Y."""
    r = jnp.abs(A - Y)
    inside = jnp.minimum(r, delta)
    return jnp.sum(inside * (r - inside / 2), axis=-2)


def huber_dA(A: Array, Y: Array, delta: float = 1.0) -> Array:
    """dA = A - Y, clipped to [-delta, delta]."""
    return jnp.clip(A - Y, -delta, delta)


def quantile(A: Array, Y: Array, tau: float = 0.5) -> Array:
    """L = sum_k of tau r where r > 0, else (tau - 1) r, with r = Y - A (the pinball loss)."""
    r = Y - A
    return jnp.sum(jnp.maximum(tau * r, (tau - 1) * r), axis=-2)


def quantile_dA(A: Array, Y: Array, tau: float = 0.5) -> Array:
    """dA = -tau where A < Y, 1 - tau where A > Y. At the kink A = Y it is 0."""
    return jnp.where(A < Y, -tau, jnp.where(A > Y, 1 - tau, 0)).astype(A.dtype)


def gaussian_nll(Z: Array, Y: Array) -> Array:
    """L = 1/2 sum_k (s + (Y - mu)^2 / exp(s)) for Z = (mu; s), s = log variance: -log N + const.

    1 / exp(s) is capped like `exp`, so that L stays finite.
    """
    mu, s = jnp.split(Z, 2, axis=-2)
    return jnp.sum(s + jnp.square(Y - mu) * exp(-s), axis=-2) / 2


def gaussian_dZ(Z: Array, A: Array, Y: Array) -> Array:
    """dmu = (mu - Y) / exp(s), ds = 1/2 (1 - (Y - mu)^2 / exp(s))."""
    mu, s = jnp.split(Z, 2, axis=-2)
    r, precision = mu - Y, exp(-s)
    of_s = (1 - jnp.square(r) * exp_prime(-s, precision)) / 2
    return jnp.concatenate([r * precision, of_s], axis=-2)


def two_each(targets: int) -> int:
    """Return n_L of an output with a mean and a log variance for each row of Y."""
    return 2 * targets


def smoothed(Y: Array, share: float = 0.1) -> Array:
    """(1 - share) Y + share / n_L: labels smoothed towards the uniform distribution."""
    return (1 - share) * Y + share / Y.shape[-2]


def smoothed_cross_entropy(Z: Array, Y: Array, share: float = 0.1) -> Array:
    """L = -sum_k S_k log A_k, with S = smoothed(Y)."""
    return cross_entropy(Z, smoothed(Y, share))


def smoothed_dZ(Z: Array, A: Array, Y: Array, share: float = 0.1) -> Array:
    """dZ = A - smoothed(Y)."""
    return A - smoothed(Y, share)


def focal_cross_entropy(Z: Array, Y: Array, gamma: float = 2.0) -> Array:
    """L = -(1 - p)^gamma log p, where p = sum_k Y_k A_k, for one-hot Y."""
    log_p = -cross_entropy(Z, Y)
    return -(_rest(log_p) ** gamma) * log_p


def focal_dZ(Z: Array, A: Array, Y: Array, gamma: float = 2.0) -> Array:
    """dZ = (A - Y) ((1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p)."""
    log_p = -cross_entropy(Z, Y)
    rest = _rest(log_p)
    slope = rest**gamma - gamma * jnp.exp(log_p) * rest ** (gamma - 1) * log_p
    return (A - Y) * slope[None, :]


def _rest(log_p: Array) -> Array:
    """1 - p, above 0: 0^(gamma - 1) would be infinite."""
    return jnp.maximum(-jnp.expm1(log_p), float(np.finfo(log_p.dtype).tiny))


def elementwise_dZ(g_prime: Callable[..., Array], Z: Array, A: Array, dA: Array) -> Array:
    """Compute dZ[L] from dA[L], for an elementwise g."""
    return dA * g_prime(Z, A)  # dZ[L] = dA[L] * g[L]'(Z[L])


def through(g_prime: Callable[..., Array]) -> Callable[..., Array]:
    """Return dZ_from_dA of an elementwise g with the derivative g_prime."""
    return EqualPartial(elementwise_dZ, (g_prime,))


OUTPUTS = {
    entry.name: entry
    for entry in (
        Output("softmax", softmax, cross_entropy, canonical_dZ, dZ_from_dA=softmax_dZ),
        Output(
            "sigmoid", sigmoid, binary_cross_entropy, canonical_dZ,
            domain=(0.0, 1.0), dZ_from_dA=through(sigmoid_prime),
        ),
        Output(
            "identity", identity, half_squared_error, canonical_dZ,
            dZ_from_dA=through(identity_prime),
        ),
        Output(
            "exp", exp, half_poisson_deviance, canonical_dZ,
            domain=(0.0, math.inf), dZ_from_dA=through(exp_prime),
        ),
        Output(
            "gaussian", identity, gaussian_nll, gaussian_dZ,
            dZ_from_dA=through(identity_prime), units=two_each,
        ),
    )
}  # fmt: skip

COSTS = {
    entry.name: entry
    for entry in (
        Cost("squared_error", half_squared_error, squared_error_dA),
        Cost("absolute_error", absolute_error, absolute_error_dA),
        Cost("huber", huber, huber_dA, "delta"),
        Cost("quantile", quantile, quantile_dA, "tau", below=1),
    )
}

# Costs of softmax alone, as functions of Z; the second function is dZ[L] of (Z, A, Y).
OF_SOFTMAX = {
    entry.name: entry
    for entry in (
        Cost("smoothed", smoothed_cross_entropy, smoothed_dZ, "share", below=1),
        Cost("focal", focal_cross_entropy, focal_dZ, "gamma"),
    )
}
