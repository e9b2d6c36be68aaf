"""The accountant, compared with dp-accounting on a fine grid and with closed forms."""

import itertools
import tracemalloc

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats

import deepprop as dp
from deepprop.training.accountant import spending


def by_a_fine_grid(sigma, q, steps, delta):
    """Compute epsilon on a fixed fine grid, which is fast enough only for the cases below."""
    grid = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, min(1e-3, 0.1 * q / sigma))
    return grid.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)), steps).get_epsilon(delta)


@pytest.mark.ordinary(1)
@pytest.mark.parametrize(
    ("sigma", "q", "steps", "delta"),
    [
        (0.8, 256 / 60000, 2350, 1e-5), (1.5, 64 / 1438, 1380, 1e-4), (0.5, 0.25, 8, 1e-3),
        (0.3, 1e-3, 5000, 1e-6), (20.0, 0.5, 1000, 1e-5), (2.0, 0.1, 1, 1e-10),
        (0.6, 0.02, 20000, 1e-5), (100.0, 0.01, 10**5, 1e-5), (1.0, 0.1, 10**5, 1e-5),
    ],
)  # fmt: skip
def test_epsilon_agrees_with_a_fine_grid(sigma, q, steps, delta):
    spent = spending(sigma, q, steps, delta)
    for some in (steps, max(1, steps // 10)):
        assert spent(some) == pytest.approx(by_a_fine_grid(sigma, q, some, delta), rel=5e-3)
    assert dp.epsilon_spent(sigma, sampling_rate=q, steps=steps, delta=delta) == spent(steps)


def delta_of(epsilon, mu):
    """Compute delta by theorem 8 of Balle and Wang, in logarithms."""
    log = stats.norm.logcdf
    first, second = log(mu / 2 - epsilon / mu), epsilon + log(-mu / 2 - epsilon / mu)
    return first + np.log1p(-np.exp(second - first))


@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-12, 1e-300])
@pytest.mark.parametrize(("sigma", "steps"), [(0.05, 8), (1.0, 1), (30.0, 1000), (5.0, 10**6)])
def test_steps_that_take_all_examples_agree_with_the_closed_form(sigma, steps, delta):
    epsilon, mu = dp.epsilon_spent(sigma, sampling_rate=1.0, steps=steps, delta=delta), np.sqrt(steps) / sigma  # fmt: skip
    if epsilon:
        assert delta_of(epsilon, mu) == pytest.approx(np.log(delta), rel=1e-5, abs=1e-4)
    else:
        assert delta_of(0.0, mu) <= np.log(delta)


ANY = list(itertools.product((0.01, 1.0, 100.0), (0.25, 1e-6), (8, 10**6), (1e-3, 1e-300)))


@pytest.mark.ordinary(1)
@pytest.mark.parametrize(
    ("sigma", "q", "steps", "delta"),
    [*ANY, (1e-30, 0.5, 3, 1e-5), (1e30, 0.5, 3, 1e-5), (1.0, 1e-300, 3, 1e-5), (1.0, 1e-9, 10**12, 1e-5),
     (1.0, 0.5, 2**53, 1e-5), (1.0, 1 - 1e-16, 10, 1e-5), (1e-4, 0.3, 100, 1 - 1e-16)],
)  # fmt: skip
def test_any_input_gives_an_answer_with_little_memory(sigma, q, steps, delta):
    """More than one step spends, less than with all examples; a grid of 1e-3 would take gigabytes."""
    tracemalloc.start()
    epsilon = dp.epsilon_spent(sigma, sampling_rate=q, steps=steps, delta=delta)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3e8
    of_all = dp.epsilon_spent(sigma, sampling_rate=1.0, steps=steps, delta=delta)
    of_one = dp.epsilon_spent(sigma, sampling_rate=q, steps=1, delta=delta)
    assert 0.99 * of_one <= epsilon <= of_all
    # With probability q^steps every step takes the example: of density, at least that share.
    log_delta = np.log(delta) - steps * np.log(q)
    if log_delta < -1:
        least = dp.epsilon_spent(sigma, sampling_rate=1.0, steps=steps, delta=np.exp(log_delta))
        assert epsilon >= least + steps * np.log(q)


@pytest.mark.ordinary(2)
@pytest.mark.parametrize("delta", [1e-3, 1e-300])
@pytest.mark.parametrize("q", [1.0, 0.25, 1e-3])
@pytest.mark.parametrize("epsilon", [0.1, 1000.0, 1e6])
def test_the_smallest_noise_for_any_epsilon(epsilon, q, delta):
    sigma = dp.noise_for(epsilon, sampling_rate=q, steps=8, delta=delta)
    spent = [dp.epsilon_spent(s, sampling_rate=q, steps=8, delta=delta) for s in (sigma, 0.99 * sigma - 0.001)
             if s > 0]  # fmt: skip
    assert spent[0] <= epsilon * (1 + 1e-6)
    assert all(more > epsilon for more in spent[1:])


@pytest.mark.parametrize("steps", [0, -1, 2.5, 2**60, None])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must be a whole number above 0 and at most 2\^53"):
        dp.epsilon_spent(1.0, sampling_rate=0.5, steps=steps, delta=1e-5)
