"""The privacy that a run spends, and the noise that it needs: dp-accounting's accountant, asked.

A step takes each example with probability q, on its own (Poisson sampling), clips the gradients of
those taken to norm C, adds them up, and adds Gaussian noise of standard deviation sigma C to each
number of the sum. Whoever sees every parameter after every step can tell whether any one example
was among the data only as far as (epsilon, delta) says: adding or removing it changes no
probability by more than a factor e^epsilon, apart from delta.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import optimize, special

from deepprop._checks import check_above_zero, missing

FINEST = 1e-3  # of the grid, in units of the privacy loss
CONVERGED = 1e-3  # relative change of epsilon from one grid to a finer one
ONE_STEP, ALL_STEPS = 150_000, 200_000  # the most points of a grid: a second, some 200 MB
FEW, SPARSE = 20, 1100  # the fewest points of a grid; dp-accounting is slow below 1,000 or so
LEAST_LOSS, MOST_LOSS = 5e-10, 500.0  # between two points of a grid, or numbers overflow or round
LEAST_DELTA = 1e-13  # below it, the rounding of the grid's probabilities counts
BLOCK, MANY = 10_000, 10**8  # the most steps in one; too many for a grid
MOST_STEPS = 2**53
TAIL = -math.log(1e-15)  # of the mass that composition cuts off
ORDERS = (*range(2, 64), *(round(2 ** (k / 4)) for k in range(24, 57)))  # of Renyi divergences


def epsilon_spent(
    noise_multiplier: float, *, sampling_rate: float, steps: int, delta: float
) -> float:
    """The epsilon that so many steps have spent, an upper bound by privacy loss distributions.

    >>> round(epsilon_spent(1.0, sampling_rate=0.01, steps=1000, delta=1e-5), 2)
    1.83

    Args:
        noise_multiplier: sigma, the noise's standard deviation over the clipping norm.
        sampling_rate: q, the probability with which a step takes an example.
        steps: how many.
        delta: the probability that is left over; far below 1 / m.

    Returns:
        epsilon, for adding or removing one example.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message names the extra that brings it.

    Source:
        Abadi et al. 2016, arXiv:1607.00133; Doroshenko et al. 2022, Connect the Dots: Tighter
        Discrete Approximations of Privacy Loss Distributions, arXiv:2207.04380; where no grid
        will do, Balle and Wang 2018, arXiv:1805.06530, and Mironov et al. 2019, arXiv:1908.10530.
    """
    return spending(noise_multiplier, sampling_rate, steps, delta)(steps)


def noise_for(epsilon: float, *, sampling_rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier whose `epsilon_spent` is at most `epsilon`, to 0.001.

    >>> round(noise_for(1.0, sampling_rate=0.01, steps=1000, delta=1e-5), 1)
    1.4

    Args:
        epsilon: what the steps may spend.
        sampling_rate: q, the probability with which a step takes an example.
        steps: how many.
        delta: the probability that is left over; far below 1 / m.

    Returns:
        sigma, the noise's standard deviation over the clipping norm.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message names the extra that brings it.
    """
    check_above_zero("epsilon", epsilon)
    _check(1.0, sampling_rate, steps, delta)
    # As much as if each step took all examples.
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
    """The epsilon that the first so many of `steps` steps have spent, as a function of how many.

    One step's privacy losses are put on a grid once, and each call composes them. Finer grids are
    tried until epsilon no longer moves, or is at most `enough`. Bounds in closed form count where
    they are lower, and alone where a grid would be too long or `delta` is too small for one.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: dp-accounting is missing; the message names the extra that brings it.
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
    """The privacy losses of all steps, from those of blocks of steps."""
    blocks, rest = divmod(steps, block)
    if block == 1 or not blocks:
        return one_step.self_compose(steps)
    tail = math.exp(-TAIL) / blocks
    composed = one_step.self_compose(block, tail_mass_truncation=tail).self_compose(blocks)
    return composed.compose(one_step.self_compose(rest)) if rest else composed


def _grids(sigma: float, q: float, steps: int) -> Iterator[tuple[float, int]]:
    """How finely a step's privacy losses are divided up, from coarse to fine, and `_composed` when.

    A tenth of q / sigma, the size of a usual loss, leaves epsilon within 0.2 % of what a finer
    division gives, in what was tried. Blocks, which add up to about the largest loss, make the
    whole shorter where losses are small and many, and a short grid is only composed fast in blocks.
    """
    z = np.linspace(-10, 10, 4001)
    density = special.softmax(-np.square(z) / 2)
    with np.errstate(all="ignore"):  # noise out of all proportion: no grid
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
    """The length of the sum of so many losses, over the largest loss, whose variance is `share`.

    By Bennett's inequality, at the orders at which dp-accounting cuts the sum off.
    """
    order = np.arange(1, 21)
    tails = (steps * share * (np.expm1(order) - order) + TAIL) / order
    return min(steps, 2 * float(np.min(tails)))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Of steps that take every example: the closed form, an upper bound for those that sample.

    delta = Phi(a) - e^epsilon Phi(a - mu), with epsilon = mu (mu / 2 - a), so that
    e^epsilon phi(a - mu) = phi(a): in terms of a nothing overflows.
    """
    mu = max(mu, 1e-7)  # below it, the difference of the two would be rounding; epsilon is 4e-6

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
    """The mu at which `_gaussian_epsilon` is `epsilon`, from below."""
    low, high = -16.0, 350.0  # of log(mu)
    for _ in range(60):
        middle = (low + high) / 2
        enough = _gaussian_epsilon(math.exp(middle), delta) <= epsilon
        low, high = (middle, high) if enough else (low, middle)
    return math.exp(low)


def _renyi_epsilon(sigma: float, q: float, steps: int, delta: float) -> float:
    """By Renyi divergences: looser by some percent, for any delta, steps and noise.

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

    with np.errstate(all="ignore"):  # infinite, or 0, where the noise is out of all proportion
        epsilons = [by_order(alpha) for alpha in ORDERS]
    return max(0.0, float(np.nanmin(epsilons)))


def _accounting() -> Any:
    """dp-accounting's privacy loss distributions."""
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
