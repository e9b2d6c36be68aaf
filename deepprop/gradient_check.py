"""Checking gradients by central differences, in float64 and without autodiff.

Every dJ/dtheta is compared with (J(theta + h) - J(theta - h)) / 2h. A step h in W[l][i, j] changes
row i of Z[l] by h times row j of A[l-1], and a step in b[l][i] changes it by h. The step is made
there, in Z[l]: all perturbed networks then share their weights, and many of them go through one
matrix product per layer.

How small h is decides everything. The error of truncation grows with h^2, that of rounding with
1/h; h = eps^(1/3) balances them. A step that carries a unit over a kink (relu at 0) measures
something else than either derivative, so the slopes at both ends are compared, and a smaller step
is taken where they jump. Where only g' has a kink (elu at 0), the error is linear in h, and is
extrapolated away.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params, output_of, targets
from deepprop._checks import dense_array, whole_number
from deepprop._own_backward import as_layers
from deepprop.backprop import manual_backward
from deepprop.equations import forward_layer, slope
from deepprop.layers import Cache, Params
from deepprop.mixed_precision import with_compute_dtype
from deepprop.network import cost, forward
from deepprop.stacks import unstack

EPS = float(np.finfo(np.float64).eps)
BYTES_AT_ONCE = 2**23  # of the perturbed A of one chunk
JUMP = 1e-3  # relative change of a slope above which a step may have crossed a kink


@dataclass(frozen=True)
class GradientReport:
    """The result of `check_gradients`. `str(report)` is one line.

    Attributes:
        worst: the largest relative error.
        where: the parameter it belongs to, such as "W[2][5, 17]": layer 2, unit 5, input 17.
        by_hand: the gradient of that parameter from the backward pass.
        by_differences: the same from central differences.
        checked: the number of parameters that were compared.
        parameters: the number of parameters of the network.
        at_kinks: the number left out, because their smallest step still carries a unit over a kink.
        tolerance: the allowed relative error.
    """

    worst: float
    where: str
    by_hand: float
    by_differences: float
    checked: int
    parameters: int
    at_kinks: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Return whether at least one parameter was checked, and all that were agree."""
        return self.checked > 0 and self.worst <= self.tolerance

    def __str__(self) -> str:
        """Return one line: how many agree, the worst error, and where it is."""
        share = f"all {self.checked:,}" if self.checked == self.parameters else f"{self.checked:,}"
        of = "" if self.checked == self.parameters else f" of {self.parameters:,}"
        kinks = f", {self.at_kinks:,} left out at a kink" if self.at_kinks else ""
        if self.ok:
            return (
                f"{share}{of} parameters agree with central differences{kinks};"
                f" worst relative error {self.worst:.1e}, at {self.where}"
            )
        if not self.checked:
            return f"no gradient could be checked: all {self.at_kinks:,} parameters sit on kinks"
        return (
            f"the gradient is wrong: at {self.where} it is {self.by_hand:.10g}, and"
            f" {self.by_differences:.10g} by central differences; relative error {self.worst:.1e},"
            f" allowed {self.tolerance:.1e}; {share}{of} parameters checked{kinks}"
        )


class GradientError(AssertionError):
    """A gradient disagrees with central differences; `report` says which one and by how much."""

    def __init__(self, report: GradientReport) -> None:
        """Take the report of the check that failed."""
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> Any:
        """Keep the report in a pickle or a copy, as a process pool makes them."""
        return type(self), (self.report,), self.__dict__


def check_gradients(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    backward: Callable[[Cache, Array, Array | None], Params] = manual_backward,
    tolerance: float = 1e-5,
    sample: int | None = None,
) -> GradientReport:
    """Compare the gradient of every parameter with central differences, in float64.

    A difference is (J(theta + h) - J(theta - h)) / 2h, with h so small that no Z changes by more
    than about 1e-5. The relative error is ``abs(by hand - by differences)`` divided by the larger
    of the two, or by a floor: the rounding of J in a difference, divided by the tolerance. If a
    step carries a unit over a kink of its activation or of the cost, a smaller step is taken. If
    that does not help, because the unit is exactly on the kink, the parameter is left out and
    counted.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], hidden="tanh")
    >>> X, Y = jnp.ones((3, 1)), jnp.array([[1.0], [0.0]])
    >>> report = dp.check_gradients(params, X, Y)
    >>> report.ok, report.checked
    (True, 26)

    Args:
        params: the layers, with any activation and cost, including your own.
        X: (n_0, m). A few examples are enough; the time grows with m.
        Y: (n_L, m), the targets.
        weights: (m,), one per example.
        backward: the function to test, called like `manual_backward`; it may return plain pairs,
            ((dW[1], db[1]), ...).
        tolerance: the allowed relative error, at least 1e-9 and below 1.
        sample: the number of parameters to check, evenly spread; None checks all of them, in a time
            that grows with the square of their number.

    Returns:
        The report, if every gradient agrees.

    Raises:
        GradientError: a gradient is wrong or not finite, or none could be checked.
        ValueError, TypeError: as for `forward` and `cost`; or `sample` or `tolerance` is out of
            range, or `backward` returns neither layers like params nor pairs (dW, db).
    """
    sample = None if sample is None else whole_number("sample", sample)
    if not 1e-9 <= tolerance < 1:
        raise ValueError(f"tolerance must be from 1e-9 to below 1, got {tolerance}")
    check_params(params)
    X, Y = dense_array("X", X), dense_array("Y", Y)
    weights = None if weights is None else np.asarray(dense_array("weights", weights))
    with jax.enable_x64(True):
        params, X, Y, weights = _in_float64((with_compute_dtype(params, None), X, Y, weights))
        _, cache = forward(params, X)
        report = _check(cache, targets(cache, Y), weights, backward, tolerance, sample)
    if not report.ok:
        raise GradientError(report)
    return report


def _in_float64(tree: Any) -> Any:
    def cast(x: Any) -> Any:
        real = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(np.asarray(x).astype(np.float64)) if real else x

    return jax.tree.map(cast, tree)


def _check(
    cache: Cache,
    Y: Array,
    weights: ArrayLike | None,
    backward: Callable[..., Params],
    tolerance: float,
    sample: int | None,
) -> GradientReport:
    grads = backward(cache, Y, None if weights is None else jnp.asarray(weights))
    grads = as_layers(grads, cache.params)
    _, cache = forward(unstack(cache.params), cache.A[0])
    places, by_hand, steps = _parameters(cache, unstack(grads))
    n = by_hand.size
    chosen = (
        np.arange(n) if sample is None else np.unique(np.linspace(0, n - 1, sample).astype(int))
    )
    J = float(cost(cache, Y, weights))
    rounding = 10 * EPS * max(1.0, abs(J), float(jnp.abs(cache.Z[-1]).max()))

    differences = partial(_differences, cache, Y, weights)
    slope, error = np.zeros(n), np.zeros(n)
    left = chosen
    for shrink in (1, 30, 900):
        h = steps[left] / shrink
        slope[left], crossed = differences(places[left], h)
        error[left] = _errors(by_hand[left], slope[left], rounding / h, tolerance)
        bent = ~crossed & (error[left] > tolerance)
        again, h = left[bent], h[bent]
        if again.size:
            slope[again], error[again] = _extrapolated(
                differences, places[again], h, by_hand[again], slope[again], rounding / h, tolerance
            )
        left = left[crossed]
        if not left.size:
            break
    error[left] = 0.0
    error[~np.isfinite(error)] = np.inf
    k = int(np.argmax(error))
    return GradientReport(
        worst=float(error[k]),
        where=_name(cache.params, *places[k].tolist()),
        by_hand=float(by_hand[k]),
        by_differences=float(slope[k]),
        checked=chosen.size - left.size,
        parameters=n,
        at_kinks=left.size,
        tolerance=tolerance,
    )


def _errors(
    by_hand: np.ndarray, slope: np.ndarray, rounding: np.ndarray, tolerance: float
) -> np.ndarray:
    """Return relative errors; `rounding` is the rounding error of a slope."""
    size = np.maximum(np.maximum(abs(by_hand), abs(slope)), rounding / tolerance)
    relative: np.ndarray = abs(by_hand - slope) / size
    return relative


def _extrapolated(
    differences: Callable[..., tuple[np.ndarray, np.ndarray]],
    places: np.ndarray,
    h: np.ndarray,
    by_hand: np.ndarray,
    slope: np.ndarray,
    rounding: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the slope without the error that is linear in h, and its relative error.

    Where g' has a kink and g has none, as elu at 0 or huber's dZ at delta, a difference D(h) is
    wrong by about h times the jump of g''. 2 D(h/2) - D(h) is not, but has 5 times the rounding
    error. It is used only where D(h/2) differs from D(h) by more than half of the possible
    rounding, as it must if D(h) has a linear error above that.
    """
    halved, _ = differences(places, h / 2)
    linear = abs(halved - slope) > rounding / 2
    slope = np.where(linear, 2 * halved - slope, slope)
    return slope, _errors(by_hand, slope, np.where(linear, 5, 1) * rounding, tolerance)


def _parameters(cache: Cache, grads: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the place (l, i, j), the gradient and the step of each parameter.

    Layers count from 0 here, and b is one more column of W, j = n_{l-1}, for an input of 1. The
    step is eps^(1/3) divided by the largest input.
    """
    places, slopes, steps = [], [], []
    for l, (of_layer, A) in enumerate(zip(grads, cache.A, strict=False)):
        wide_grad = np.concatenate([of_layer.W, of_layer.b], axis=1)
        i, j = np.indices(wide_grad.shape)
        largest = np.maximum(1.0, np.append(np.abs(A).max(axis=1), 1.0))
        places.append(np.stack([np.full_like(i, l), i, j], axis=-1).reshape(-1, 3))
        slopes.append(wide_grad.ravel())
        steps.append(np.broadcast_to(EPS ** (1 / 3) / largest, i.shape).ravel())
    return np.concatenate(places), np.concatenate(slopes), np.concatenate(steps)


def _differences(
    cache: Cache, Y: Array, weights: ArrayLike | None, places: np.ndarray, h: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the central difference of J at each place, and whether its step crosses a kink."""
    n, bytes_each = h.size, 2 * 8 * sum(A.size for A in cache.A)
    chunk = min(sum(layer.W.size for layer in cache.params), max(1, BYTES_AT_ONCE // bytes_each))
    padded = np.resize(np.arange(n), math.ceil(n / chunk) * chunk)
    parts = [
        _differences_at_once(cache, Y, weights, places[p], h[p]) for p in padded.reshape(-1, chunk)
    ]
    slope, crossed = (np.concatenate(part)[:n] for part in zip(*parts, strict=True))
    return slope, crossed


@jax.jit
@partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def _differences_at_once(
    cache: Cache, Y: Array, weights: ArrayLike | None, place: Array, h: Array
) -> tuple[Array, Array]:
    def at(step: Array) -> tuple[Array, tuple[Array, ...]]:
        perturbed = _perturbed(cache, place, step)
        return cost(perturbed, Y, weights), _slopes(perturbed, Y)

    J, slopes = jax.vmap(at)(jnp.stack([h, -h]))
    crossed = jnp.stack([_crosses(slope) for slope in slopes])
    return (J[0] - J[1]) / (2 * h), jnp.any(crossed)


def _perturbed(cache: Cache, place: Array, h: Array) -> Cache:
    """Return the cache of the forward pass with the parameter at that place changed by h."""
    l, i, j = place
    A, Z = [cache.A[0]], []
    for k, layer in enumerate(cache.params):
        inputs = jnp.concatenate([cache.A[k], jnp.ones_like(cache.A[k][:1])])
        row = (k == l) & (jnp.arange(layer.b.size) == i)
        change = jnp.where(row[:, None], h * inputs[j][None, :], 0)
        Z_k, A_k = forward_layer(replace(layer, b=layer.b + change), A[-1])
        Z.append(Z_k)
        A.append(A_k)
    return Cache(cache.params, tuple(Z), tuple(A))


def _slopes(cache: Cache, Y: Array) -> tuple[Array, ...]:
    """Return what jumps at a kink: g'(Z[l]) of each hidden layer, and dZ[L]."""
    *hidden, _ = cache.params
    slopes = [slope(layer, Z, A) for layer, Z, A in zip(hidden, cache.Z, cache.A[1:], strict=False)]
    return (*slopes, output_of(cache.params).dZ(cache.Z[-1], cache.A[-1], Y))


def _crosses(slopes: Array) -> Array:
    """Return whether any slope (2, n_l, m) jumps between the two ends of the step."""
    size = jnp.maximum(1, jnp.max(abs(slopes), axis=0))
    return jnp.any(abs(slopes[0] - slopes[1]) > JUMP * size)


def _name(params: Params, l: int, i: int, j: int) -> str:
    return f"W[{l + 1}][{i}, {j}]" if j < params[l].W.shape[1] else f"b[{l + 1}][{i}, 0]"
