"""The marginal likelihood of a Laplace posterior, and the prior and noise that maximise it.

With the posterior's precision diagonal, its logarithm needs sums over the diagonal alone:

    log p(Y | X) = - 1/s sum_i L(i) - n/2 log s - 1/2 sum_p log(x_p / s + delta)
                   + P/2 log delta - delta/2 ||theta||^2

x are the entries of sum_i J_i^T H_i J_i, delta is the prior precision of the P parameters, s the
variance of the noise of a regression with n targets (1 for classes and counts), and constants are
left out. Let gamma = sum_p (x_p / s) / (x_p / s + delta), the number of parameters that the data
determine (MacKay 1992). Then, by hand,

    d/dlog delta = 1/2 (gamma - delta ||theta||^2)
    d/dlog s     = 1/s sum_i L(i) - n/2 + gamma/2

and both second derivatives are negative, so that Newton's steps, one variable at a time, climb to
the maximum.

Source: MacKay 1992, A Practical Bayesian Framework for Backpropagation Networks, Neural
Computation 4; Daxberger et al. 2021, Laplace Redux, arXiv:2106.14806.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

STEPS = 200
LONGEST = 2.0  # the longest step of Newton's, in the logarithm
RANGE = 1e8  # how far from its first guess the prior precision and the noise may go


class Evidence(NamedTuple):
    """What the marginal likelihood is made of.

    Attributes:
        x: (P,), the diagonal of sum_i J_i^T H_i J_i.
        square: ||theta||^2.
        losses: sum_i L(i), with noise of variance 1.
        targets: n, the number of target values of a regression.
        scale: the mean square of the targets, a first guess of the noise.
    """

    x: Array
    square: Array
    losses: Array
    targets: Array
    scale: Array

    def log(self, delta: Array, s: Array) -> Array:
        """Return log p(Y | X), without constants."""
        P = self.x.size
        determinant = jnp.sum(jnp.log(self.x / s + delta)) - P * jnp.log(delta)
        fit = self.losses / s + self.targets / 2 * jnp.log(s)
        return -fit - (determinant + delta * self.square) / 2

    def best(self, delta: Array | None, s: Array | None) -> tuple[Array, Array]:
        """Return delta and s, those that are None at their maximum."""
        guess = (
            jnp.where(self.square > 0, self.x.size / jnp.where(self.square > 0, self.square, 1), 1),
            jnp.where(self.scale > 0, self.scale, 1),
        )
        start = guess[0] if delta is None else delta, guess[1] if s is None else s

        def step(_: int, at: tuple[Array, Array]) -> tuple[Array, Array]:
            d, v = at
            d = _near(self._prior(d, v), guess[0]) if delta is None else d
            return d, _near(self._noise(d, v), guess[1]) if s is None else v

        climbed: tuple[Array, Array] = lax.fori_loop(0, STEPS, step, start)
        return climbed

    def _gamma(self, delta: Array, s: Array) -> tuple[Array, Array]:
        """Return gamma, and minus its derivative by log delta."""
        share = (self.x / s) / (self.x / s + delta)
        return jnp.sum(share), jnp.sum(share * (1 - share))

    def _prior(self, delta: Array, s: Array) -> Array:
        gamma, less = self._gamma(delta, s)
        size = delta * self.square
        return _climbed(delta, gamma - size, size + less)

    def _noise(self, delta: Array, s: Array) -> Array:
        gamma, less = self._gamma(delta, s)
        loss = 2 * self.losses / s
        return _climbed(s, loss - self.targets + gamma, loss + less)


def _climbed(value: Array, slope: Array, curvature: Array) -> Array:
    """Take a step of Newton's in the logarithm: its slope, and minus its second derivative."""
    step = slope / jnp.where(curvature > 0, curvature, 1)
    return value * jnp.exp(jnp.clip(step, -LONGEST, LONGEST))


def _near(value: Array, guess: Array) -> Array:
    return jnp.clip(value, guess / RANGE, guess * RANGE)
