"""The privacy that a run spends and the noise that it needs, computed with dp-accounting.

A step takes each example independently with probability q (Poisson sampling), clips the gradients
of those taken to norm C, sums them, and adds Gaussian noise of standard deviation sigma C to each
entry of the sum. An observer of all parameters after every step can tell whether one example was in
the data only as far as (epsilon, delta) allows: adding or removing it changes no probability by
more than a factor e^epsilon, apart from delta.

Privacy loss distributions give the tightest epsilon. dp-accounting puts the losses of one step on a
grid and composes them. The grid decides everything: too coarse, and epsilon is too large; too fine
or too long, and the composition takes minutes and gigabytes. `_grids` therefore chooses it from the
size of one step's losses, and `spending` refines it until epsilon no longer changes. Where no grid
is possible (very small delta, too many steps, noise out of proportion) closed forms give an upper
bound.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import optimize, special

from deepprop._checks import check_above_zero, missing

FINEST = 1e-3  # interval of the grid, in units of the privacy loss
CONVERGED = 1e-3  # relative change of epsilon from one grid to a finer one
ONE_STEP, ALL_STEPS = 150_000, 200_000  # largest number of points: a second, some 200 MB
FEW, SPARSE = 20, 1100  # smallest number of points; dp-accounting is slow below about 1,000
LEAST_LOSS, MOST_LOSS = 5e-10, 500.0  # interval of a grid without overflow or rounding
LEAST_DELTA = 1e-13  # below it, the rounding of the grid's probabilities matters
BLOCK, MANY = 10_000, 10**8  # most steps in one block; too many steps for a grid
MOST_STEPS = 2**53
TAIL = -math.log(1e-15)  # the mass that composition truncates
ORDERS = (*range(2, 64), *(round(2 ** (k / 4)) for k in range(24, 57)))  # of Renyi divergences


def epsilon_spent(
    noise_multiplier: float, *, sampling_rate: float, steps: int, delta: float
) -> float:
    """Compute the epsilon that a number of steps spends, as an upper bound.

    >>> round(epsilon_spent(1.0, sampling_rate=0.01, steps=1000, delta=1e-5), 2)
    1.83

    Args:
        noise_multiplier: sigma, the standard deviation of the noise divided by the clipping norm.
        sampling_rate: q, the probability with which a step takes an example.
        steps: the number of steps.
        delta: the probability with which the bound may fail; far below 1 / m.

    Returns:
        epsilon, for adding or removing one example.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message says what to install.

    Source:
        Abadi et al. 2016, arXiv:1607.00133; Doroshenko et al. 2022, Connect the Dots: Tighter
        Discrete Approximations of Privacy Loss Distributions, arXiv:2207.04380; where no grid
        will do, Balle and Wang 2018, arXiv:1805.06530, and Mironov et al. 2019, arXiv:1908.10530.
    """
    return spending(noise_multiplier, sampling_rate, steps, delta)(steps)


def noise_for(epsilon: float, *, sampling_rate: float, steps: int, delta: float) -> float:
    """Compute the smallest noise multiplier whose `epsilon_spent` is at most `epsilon`, to 0.001.

    >>> round(noise_for(1.0, sampling_rate=0.01, steps=1000, delta=1e-5), 1)
    1.4

    Args:
        epsilon: what the steps may spend.
        sampling_rate: q, the probability with which a step takes an example.
        steps: the number of steps.
        delta: the probability with which the bound may fail; far below 1 / m.

    Returns:
        sigma, the standard deviation of the noise divided by the clipping norm.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message says what to install.
    """
    check_above_zero("epsilon", epsilon)
    _check(1.0, sampling_rate, steps, delta)
    # Enough even if each step took all examples.
    enough = [1.00001 * math.sqrt(steps) / _gaussian_mu(epsilon, delta)]

    def excess(log_sigma: float) -> float:
        sigma = math.exp(log_sigma)
        spent = spending(sigma, sampling_rate, steps, delta, epsilon)(steps)
        if spent <= epsilon:
            enough.append(sigma)
        return math.log(max(spent, 1e-9 * epsilon) / epsilon)

    high = low = math.log(enough[0])
    while low > high - 10 and excess(low - 1.5) <= 0:
        low -= 1.5
    if low > high - 10:
        optimize.brentq(excess, low - 1.5, low, xtol=1e-3 * min(1, math.exp(-low)) / 2)
    return min(enough)


def spending(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float, enough: float = 0.0
) -> Callable[[int], float]:
    """Return epsilon as a function of the number of steps done, up to `steps`.

    The losses of one step are put on a grid once, and each call composes them. Finer grids are
    tried until epsilon no longer changes, or is at most `enough`. Closed-form bounds are used where
    they are lower, or where no grid is possible.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message says what to install.
    """
    pld = _accounting()
    _check(noise_multiplier, sampling_rate, steps, delta)
    sigma, q = float(noise_multiplier), float(sampling_rate)
    grids = list(_grids(sigma, q, steps)) if q < 1 and delta >= LEAST_DELTA and steps < MANY else []

    def bounds(steps: int) -> float:
        gaussian = _gaussian_epsilon(math.sqrt(steps) / sigma, delta)
        return min(gaussian, _renyi_epsilon(sigma, q, steps, delta)) if q < 1 else gaussian

    if not grids or not 0 < bounds(steps) < math.inf:
        return bounds
    epsilon = math.inf
    for interval, block in grids:
        one_step = pld.from_gaussian_mechanism(
            sigma, value_discretization_interval=interval, sampling_prob=q
        )
        composed = _composed(one_step, steps, block)
        coarser, epsilon = epsilon, composed.get_epsilon_for_delta(delta)
        if epsilon <= enough or coarser - epsilon <= CONVERGED * epsilon:
            break

    def spent(steps: int) -> float:
        by_grid = _composed(one_step, steps, block).get_epsilon_for_delta(delta)
        return min(float(by_grid), bounds(steps))

    return spent


def _composed(one_step: Any, steps: int, block: int) -> Any:
    """Compose the privacy losses of all steps from those of blocks of steps."""
    blocks, rest = divmod(steps, block)
    if block == 1 or not blocks:
        return one_step.self_compose(steps)
    tail = math.exp(-TAIL) / blocks
    composed = one_step.self_compose(block, tail_mass_truncation=tail).self_compose(blocks)
    return composed.compose(one_step.self_compose(rest)) if rest else composed


def _grids(sigma: float, q: float, steps: int) -> Iterator[tuple[float, int]]:
    """Yield grids for one step's privacy losses, from coarse to fine: (interval, steps per block).

    A tenth of q / sigma, the size of a typical loss, gives epsilon within 0.2 % of a finer grid in
    all cases tried. Steps are composed in blocks whose losses sum to about the largest loss: this
    shortens the result if losses are small and many, and a short grid only composes fast in blocks.
    """
    z = np.linspace(-10, 10, 4001)
    density = special.softmax(-np.square(z) / 2)
    with np.errstate(all="ignore"):  # extreme noise: no grid
        without, taken = (
            np.logaddexp(np.log1p(-q), np.log(q) + (x - 0.5 / sigma) / sigma)
            for x in (z, z + 1 / sigma)
        )
        largest = taken[-1] - without[0]
        share = density @ ((1 - q) * without**2 + q * taken**2) / largest**2
        usual = min(FINEST, 0.1 * q / sigma)
        block = int(min(steps, 1 / share, BLOCK)) if steps * share > TAIL and 4 * share < 1 else 1
        length = _length(steps if block == 1 else block, share)
        if block > 1:
            length *= _length(steps / block, block * share / length**2)
        finest = float(max(usual, largest / ONE_STEP, length * largest / ALL_STEPS))
    if not LEAST_LOSS < usual <= finest < MOST_LOSS or finest > max(usual, largest / FEW):
        return
    several = min(largest / SPARSE, MOST_LOSS)
    for interval in (*(finest * f for f in (64, 16, 4) if finest * f < several), finest):
        yield interval, max(block, 64) if largest / interval < SPARSE and steps > 1000 else block


def _length(steps: float, share: float) -> float:
    """Bound the length of a sum of losses, in units of the largest loss; their variance is `share`.

    By Bennett's inequality, at the orders at which dp-accounting truncates the sum.
    """
    order = np.arange(1, 21)
    tails = (steps * share * (np.expm1(order) - order) + TAIL) / order
    return min(steps, 2 * float(np.min(tails)))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Compute epsilon of steps that take every example, an upper bound for steps that sample.

    delta = Phi(a) - e^epsilon Phi(a - mu), with epsilon = mu (mu / 2 - a), so that
    e^epsilon phi(a - mu) = phi(a): in terms of a nothing overflows.
    """
    mu = max(mu, 1e-7)  # below it, the difference would be rounding; epsilon is 4e-6

    def excess(a: float) -> float:
        below = math.exp(-a * a / 2) * special.erfcx((mu - a) / math.sqrt(2)) / 2
        if a > 0:
            return float(special.ndtr(a) - below) - delta
        log_below = math.log(special.erfcx(-a / 2**0.5) - special.erfcx((mu - a) / 2**0.5))
        return log_below - a * a / 2 - math.log(2 * delta)

    if not mu * mu < math.inf:
        return math.inf
    most = min(mu / 2, 9.0)
    if excess(most) <= 0:
        return 0.0
    a = float(optimize.brentq(excess, -40.0, most, xtol=1e-12))
    return mu * (mu / 2 - a) * (1 + 1e-9)


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the mu at which `_gaussian_epsilon` is `epsilon`, from below."""
    low, high = -16.0, 350.0  # of log(mu)
    for _ in range(60):
        middle = (low + high) / 2
        enough = _gaussian_epsilon(math.exp(middle), delta) <= epsilon
        low, high = (middle, high) if enough else (low, middle)
    return math.exp(low)


def _renyi_epsilon(sigma: float, q: float, steps: int, delta: float) -> float:
    """Bound epsilon by Renyi divergences: a few percent looser, for any delta, steps and noise.

    E (p / p_0)^alpha - 1, without cancelling, is
    sum_i C(alpha, i) (1 - q)^(alpha - i) q^i (e^((i^2 - i) / 2 sigma^2) - 1)
    """

    def by_order(alpha: int) -> float:
        i = np.arange(2.0, alpha + 1)
        exponent = (i * i - i) / 2 / sigma / sigma
        log_terms = (
            special.gammaln(alpha + 1) - special.gammaln(i + 1) - special.gammaln(alpha - i + 1)
            + (alpha - i) * math.log1p(-q) + i * math.log(q)
            + exponent + np.log(-np.expm1(-exponent))
        )  # fmt: skip
        divergence = float(np.logaddexp(0, special.logsumexp(log_terms))) / (alpha - 1)
        return steps * divergence + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1)

    with np.errstate(all="ignore"):  # infinite, or 0, for extreme noise
        epsilons = [by_order(alpha) for alpha in ORDERS]
    return max(0.0, float(np.nanmin(epsilons)))


def _accounting() -> Any:
    """Return dp-accounting's module of privacy loss distributions."""
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError:
        raise missing("privacy", "dp-accounting", "privacy") from None
    return privacy_loss_distribution


def _check(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> None:
    check_above_zero("noise_multiplier", noise_multiplier)
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate must be above 0 and at most 1, got {sampling_rate}")
    if not hasattr(steps, "__index__") or not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be a whole number above 0 and at most 2^53, got {steps!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}")
