"""Activations: each g above its derivative g'.

g maps Z to A, elementwise. g' takes both Z and A. Where the derivative follows from A alone, as
1 - A^2 does for tanh, the compiled program need not store Z for the backward pass.

At a kink, g' is the derivative from the left: relu'(0) = 0, leaky_relu'(0) = slope,
selu'(0) = 1.758... (scale * alpha) and elu'(0) = alpha. Every other g here is smooth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepprop._checks import by_name


@dataclass(frozen=True)
class Activation:
    """An elementwise activation A = g(Z) and its derivative g'(Z), a function of (Z, A).

    Use your own like a built-in one:

    >>> import deepprop as dp, jax.numpy as jnp
    >>> square = dp.Activation("square", g=lambda Z: Z * Z, g_prime=lambda Z, A: 2 * Z)
    >>> square.g_prime(jnp.array([3.0]), jnp.array([9.0]))
    Array([6.], dtype=float32)

    Attributes:
        name: its name in messages and in saved models.
        g: maps Z to A, of the same shape and dtype.
        g_prime: maps (Z, A) to the derivative of g at Z, of the same shape and dtype.
        init: the initialisation of W that suits it: "he", "glorot" or "lecun", with "_normal" or
            "_uniform".
        parameter: for built-in activations, the keyword of g and g_prime that "name(0.2)" sets.
    """

    name: str
    g: Callable[..., Array] = field(repr=False)
    g_prime: Callable[..., Array] = field(repr=False)
    init: str = field(default="he_normal", repr=False)
    parameter: str | None = field(default=None, repr=False)


def identity(Z: Array) -> Array:
    """A = Z."""
    return Z


def identity_prime(Z: Array, A: Array) -> Array:
    """g' = 1."""
    return jnp.ones_like(A)


def sigmoid(Z: Array) -> Array:
    """A = 1 / (1 + exp(-Z))."""
    return lax.logistic(Z)


def sigmoid_prime(Z: Array, A: Array) -> Array:
    """g' = A (1 - A)."""
    return A * (1 - A)


def tanh(Z: Array) -> Array:
    """A = tanh(Z)."""
    return jnp.tanh(Z)


def tanh_prime(Z: Array, A: Array) -> Array:
    """g' = 1 - A^2, factored to lose fewer digits near A = 1."""
    return (1 - A) * (1 + A)


def relu(Z: Array) -> Array:
    """A = max(0, Z)."""
    return jnp.maximum(Z, 0)


def relu_prime(Z: Array, A: Array) -> Array:
    """g' = 1 where Z > 0, else 0. At Z = 0 it is 0."""
    return (A > 0).astype(A.dtype)


def leaky_relu(Z: Array, slope: float = 0.01) -> Array:
    """A = Z where Z > 0, else slope Z."""
    return jnp.where(Z > 0, Z, slope * Z)


def leaky_relu_prime(Z: Array, A: Array, slope: float = 0.01) -> Array:
    """g' = 1 where Z > 0, else slope. At Z = 0 it is slope."""
    return jnp.where(A > 0, 1, slope).astype(A.dtype)


def elu(Z: Array, alpha: float = 1.0) -> Array:
    """A = Z where Z > 0, else alpha (exp(Z) - 1)."""
    return jnp.where(Z > 0, Z, alpha * jnp.expm1(jnp.minimum(Z, 0)))


def elu_prime(Z: Array, A: Array, alpha: float = 1.0) -> Array:
    """g' = 1 where Z > 0, else alpha exp(Z). At Z = 0 it is alpha.

    A + alpha is the same number, but loses its digits to cancellation where Z is far below 0.
    """
    return jnp.where(Z > 0, 1, alpha * jnp.exp(jnp.minimum(Z, 0)))


# Klambauer et al. 2017, Self-Normalizing Neural Networks, equation 14.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def selu(Z: Array) -> Array:
    """A = scale elu(Z, alpha), with the constants of Klambauer et al. 2017."""
    return SELU_SCALE * elu(Z, SELU_ALPHA)


def selu_prime(Z: Array, A: Array) -> Array:
    """g' = scale where Z > 0, else scale alpha exp(Z). At Z = 0 it is scale alpha."""
    return SELU_SCALE * elu_prime(Z, A, SELU_ALPHA)


def softplus(Z: Array) -> Array:
    """A = log(1 + exp(Z)), in a form that does not overflow."""
    return jnp.maximum(Z, 0) + jnp.log1p(jnp.exp(-jnp.abs(Z)))


def softplus_prime(Z: Array, A: Array) -> Array:
    """g' = sigmoid(Z) = 1 - exp(-A)."""
    return -jnp.expm1(-A)


def silu(Z: Array) -> Array:
    """A = Z sigmoid(Z)."""
    return Z * lax.logistic(Z)


def silu_prime(Z: Array, A: Array) -> Array:
    """g' = s + A (1 - s), with s = sigmoid(Z)."""
    s = lax.logistic(Z)
    return s + A * (1 - s)


def gelu(Z: Array) -> Array:
    """A = Z Phi(Z), with Phi the cumulative distribution function of the standard normal."""
    return Z * _normal_cdf(Z)


def gelu_prime(Z: Array, A: Array) -> Array:
    """g' = Phi(Z) + Z phi(Z), with phi = Phi' the density of the standard normal."""
    phi = jnp.exp(-0.5 * Z * Z) * 0.3989422804014327  # 1 / sqrt(2 pi)
    return _normal_cdf(Z) + Z * phi


def _normal_cdf(Z: Array) -> Array:
    return 0.5 * lax.erfc(-0.7071067811865476 * Z)  # erfc does not cancel at negative Z


def gelu_tanh(Z: Array) -> Array:
    """A = 1/2 Z (1 + t), with t = tanh(sqrt(2/pi) (Z + 0.044715 Z^3)) (Hendrycks, Gimpel 2016)."""
    return 0.5 * Z * (1 + _gelu_t(Z))


def gelu_tanh_prime(Z: Array, A: Array) -> Array:
    """g' = 1/2 (1 + t) + 1/2 Z (1 - t^2) sqrt(2/pi) (1 + 0.134145 Z^2)."""
    Z = jnp.clip(Z, -10, 10)  # outside, 1 - t^2 is 0 in every dtype, and Z^2 could overflow
    t = _gelu_t(Z)
    slope = 0.7978845608028654 * (1 + 3 * 0.044715 * Z * Z)
    return 0.5 * (1 + t) + 0.5 * Z * (1 - t) * (1 + t) * slope


def _gelu_t(Z: Array) -> Array:
    return jnp.tanh(0.7978845608028654 * (Z + 0.044715 * Z * Z * Z))


ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("identity", identity, identity_prime, "glorot_normal"),
        Activation("sigmoid", sigmoid, sigmoid_prime, "glorot_normal"),
        Activation("tanh", tanh, tanh_prime, "glorot_normal"),
        Activation("relu", relu, relu_prime, "he_normal"),
        Activation("leaky_relu", leaky_relu, leaky_relu_prime, "he_normal", "slope"),
        Activation("elu", elu, elu_prime, "he_normal", "alpha"),
        Activation("selu", selu, selu_prime, "lecun_normal"),
        Activation("softplus", softplus, softplus_prime, "he_normal"),
        Activation("silu", silu, silu_prime, "he_normal"),
        Activation("gelu", gelu, gelu_prime, "he_normal"),
        Activation("gelu_tanh", gelu_tanh, gelu_tanh_prime, "he_normal"),
    )
}


@dataclass(frozen=True)
class EqualPartial:
    """f with some arguments filled in: a `functools.partial` that compares equal by value.

    Activations are static data of a layer. If two equal ones compared as different, jit would
    compile again, and trees of parameters and gradients would not match.
    """

    f: Callable[..., Any]
    first: tuple[Any, ...] = ()
    named: tuple[tuple[str, float], ...] = ()

    def __call__(self, *args: Any) -> Any:
        """Return f(*first, *args, **named)."""
        return self.f(*self.first, *args, **dict(self.named))


def check_elementwise(entry: Activation) -> None:
    """Raise unless g and g' are elementwise, tried on a small Z.

    dZ[l] = dA[l] * g[l]'(Z[l]) holds only for an elementwise g. The test makes one entry of Z the
    largest one; all other entries of g(Z) and g'(Z) must stay the same, bit for bit.

    Raises:
        ValueError: one changes, as where g centres over the batch or divides by a norm.
    """
    Z = np.linspace(-2, 2, 15, dtype=np.float32).reshape(3, 5)
    changed = Z.copy()
    changed[1, 2] = 5.0
    others = changed == Z
    with jax.ensure_compile_time_eval():
        try:
            A, A_2 = entry.g(jnp.asarray(Z)), entry.g(jnp.asarray(changed))
            slopes = entry.g_prime(jnp.asarray(Z), A), entry.g_prime(jnp.asarray(changed), A_2)
            pairs = {
                "g": (np.asarray(A), np.asarray(A_2)),
                "g_prime": tuple(map(np.asarray, slopes)),
            }
        except Exception:  # it may need another shape of Z, as a mask does: then it can't be tried
            return
    for name, (P, Q) in pairs.items():
        if P.shape == Z.shape and not np.array_equal(P[others], Q[others], equal_nan=True):
            raise ValueError(
                f"activation {entry.name} must be elementwise, but entries of its {name} change"
                " with other entries of Z: dZ = dA * g'(Z) would not be its derivative"
            )


def activation(choice: str | Activation) -> Activation:
    """Return the activation of that name, such as "relu" or, with a parameter, "leaky_relu(0.2)".

    The names are identity, sigmoid, tanh, relu, leaky_relu, elu, selu, softplus, silu, gelu and
    gelu_tanh; leaky_relu takes its slope in brackets, and elu its alpha.

    >>> activation("leaky_relu(0.2)").g(jnp.array([-1.0, 1.0]))
    Array([-0.2,  1. ], dtype=float32)

    Args:
        choice: a name, or an `Activation`, which is returned unchanged.

    Returns:
        The `Activation`.

    Raises:
        ValueError: no activation has that name, or your own is not elementwise.
        TypeError: `choice` is neither a name nor an `Activation`.
    """
    if isinstance(choice, Activation):
        check_elementwise(choice)
        return choice
    if not isinstance(choice, str):
        raise TypeError(f"activation must be a name or a dp.Activation, got {choice!r}")
    entry, number = by_name("activation", choice, ACTIVATIONS)
    if number is None:
        return entry
    given = ((str(entry.parameter), number),)
    g, g_prime = EqualPartial(entry.g, named=given), EqualPartial(entry.g_prime, named=given)
    return replace(entry, name=f"{entry.name}({number!r})", g=g, g_prime=g_prime)
