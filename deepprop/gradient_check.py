"""Checking gradients by central differences, in float64 and without autodiff.

Every dJ/dtheta is compared with (J(theta + h) - J(theta - h)) / 2h. A step h in W[l][i, j] adds h
times row j of A[l-1] to row i of Z[l]; a step in b[l][i] adds h to it. The step is therefore made
in Z[l]: all perturbed networks then share their weights, and many of them go through one matrix
product per layer.

The choice of h decides how exact this is. The truncation error grows with h^2 and the rounding
error with 1/h, and h = eps^(1/3) balances them. Kinks need more care. If a step carries a unit over
a kink of g (relu at 0), the difference is neither of the two one-sided derivatives. The slopes g'
at both ends of the step are compared, and if one jumps, a smaller step is taken. If only g' has a
kink (elu at 0), the error is linear in h, and extrapolation from h and h/2 removes it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import check_params, inputs, output_of, targets_like
from deepprop._checks import check_key, dense_array, example_weights, whole_number
from deepprop._own_backward import as_layers
from deepprop._words import factor_in_words, listed, verb
from deepprop.backprop import manual_backward, mean_gradient
from deepprop.equations import forward_layer, slope
from deepprop.gradient_report import GradientError, GradientReport
from deepprop.layers import Cache, Params, is_stack
from deepprop.mixed_precision import with_compute_dtype
from deepprop.network import mean_loss
from deepprop.stacks import unstack
from deepprop.walk import inputs_of_layers, kept_by, keys_of, up

EPS = float(np.finfo(np.float64).eps)
BYTES_AT_ONCE = 2**23  # for the perturbed Z and A of one chunk of parameters
JUMP = 1e-3  # a larger relative change of a slope means that the step may have crossed a kink


def check_gradients(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    backward: Callable[[Cache, Array, Array | None], Params] = manual_backward,
    tolerance: float = 1e-5,
    sample: int | None = None,
    key: Array | None = None,
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
        key: a JAX random key, for layers with dropout; without it nothing is dropped.

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
    if key is not None:
        check_key(key)
    X, Y = dense_array("X", X), dense_array("Y", Y)
    with jax.enable_x64(True):
        params, X, Y = _in_float64((with_compute_dtype(params, None), X, Y))
        X = inputs(params, X)
        w = None if weights is None else example_weights(weights, X.shape[1], np.float64)
        report = _check(params, X, Y, w, backward, tolerance, sample, key)
    if not report.ok:
        raise GradientError(report)
    return report


def _in_float64(tree: Any) -> Any:
    """Return the tree with its floating arrays in float64; NumPy casts them without rounding."""

    def cast(x: Any) -> Any:
        is_floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jax.device_put(np.asarray(x).astype(np.float64)) if is_floating else x

    return jax.tree.map(cast, tree)


def _check(
    params: Params,
    X: Array,
    Y: ArrayLike,
    w: Array | None,
    backward: Callable[..., Params],
    tolerance: float,
    sample: int | None,
    key: Array | None,
) -> GradientReport:
    """Compare the gradients with differences, with smaller steps where a step crosses a kink."""
    A_L = jax.ShapeDtypeStruct((params[-1].W.shape[0], X.shape[1]), np.float64)  # type: ignore[no-untyped-call]
    Y = targets_like(A_L, params, Y)
    cache, J, grads = _passes(params, X, Y, w, key)
    if backward is not manual_backward:  # not compiled, as it may be written with NumPy
        grads = as_layers(backward(cache, Y, w), params)
    if any(map(is_stack, params)):
        (cache, *_), grads = _passes(unstack(params), X, Y, w, key), unstack(grads)
    places, by_hand, steps = _parameters(cache, grads)
    n = by_hand.size
    chosen = (
        np.arange(n) if sample is None else np.unique(np.linspace(0, n - 1, sample).astype(int))
    )
    largest = float(np.abs(cache.Z[-1]).max())
    rounding = 10 * EPS * max(1.0, abs(float(J)), largest)

    differences = partial(_differences, cache, Y, w)
    numeric, error = np.zeros(n), np.zeros(n)
    at_kink = chosen
    for shrink in (1, 30, 900):
        h = steps[at_kink] / shrink
        numeric[at_kink], crossed = differences(places[at_kink], h)
        error[at_kink] = _errors(by_hand[at_kink], numeric[at_kink], rounding / h, tolerance)
        bent = ~crossed & (error[at_kink] > tolerance)
        again, h = at_kink[bent], h[bent]
        if again.size:
            numeric[again], error[again] = _extrapolated(
                differences, places[again], h, by_hand[again], numeric[again], rounding / h,
                tolerance,
            )  # fmt: skip
        at_kink = at_kink[crossed]
        if not at_kink.size:
            break
    error[at_kink] = 0.0
    error[~np.isfinite(error)] = np.inf
    worst = int(np.argmax(error))
    return GradientReport(
        worst=float(error[worst]),
        where=_name(cache.params, *places[worst].tolist()),
        by_hand=float(by_hand[worst]),
        by_differences=float(numeric[worst]),
        checked=chosen.size - at_kink.size,
        parameters=n,
        at_kinks=at_kink.size,
        tolerance=tolerance,
        pattern=_pattern(cache, places, by_hand, numeric, error > tolerance, tolerance),
    )


def _pattern(
    cache: Cache,
    places: np.ndarray,
    by_hand: np.ndarray,
    numeric: np.ndarray,
    wrong: np.ndarray,
    tolerance: float,
) -> str:
    """Say what the wrong gradients have in common: the arrays they are in, and a factor.

    `wrong` (n,) says of each of the n parameters whether it is.
    """
    places, by_hand, numeric = places[wrong], by_hand[wrong], numeric[wrong]
    if not by_hand.size or not np.isfinite(by_hand).all():
        return ""
    arrays = sorted(
        {_name(cache.params, *place).partition("][")[0] + "]" for place in places.tolist()}
    )
    everywhere = len(arrays) == 2 * len(cache.params)
    subject = "all gradients" if everywhere else listed([f"d{name}" for name in arrays])
    c = float(np.vdot(numeric, by_hand) / (np.vdot(numeric, numeric) or 1.0))
    alike = np.abs(by_hand - c * numeric).max() <= 10 * tolerance * np.abs(by_hand).max()
    if alike and by_hand.size > len(arrays):  # a single number is always some multiple of another
        sizes = {"m": cache.A[0].shape[1]}
        return factor_in_words(subject, c, sizes, several=len(arrays) > 1)
    return "" if everywhere else f"only {subject} {verb(arrays)} wrong"


def _errors(
    by_hand: np.ndarray, numeric: np.ndarray, rounding: np.ndarray, tolerance: float
) -> np.ndarray:
    """Return relative errors; `rounding` is the rounding error of a difference."""
    size = np.maximum(np.maximum(abs(by_hand), abs(numeric)), rounding / tolerance)
    relative: np.ndarray = abs(by_hand - numeric) / size
    return relative


def _extrapolated(
    differences: Callable[..., tuple[np.ndarray, np.ndarray]],
    places: np.ndarray,
    h: np.ndarray,
    by_hand: np.ndarray,
    numeric: np.ndarray,
    rounding: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference without the error that is linear in h, and its relative error.

    If g' has a kink and g has none, as in elu at 0 or huber's dZ at delta, a difference D(h) is
    wrong by about h times the jump of g''. Richardson's 2 D(h/2) - D(h) cancels this error, at the
    price of 5 times the rounding error. It is therefore used only if D(h/2) differs from D(h) by
    more than half of the possible rounding, as it must if D(h) has a linear error above that.
    """
    halved, _ = differences(places, h / 2)
    linear = abs(halved - numeric) > rounding / 2
    numeric = np.where(linear, 2 * halved - numeric, numeric)
    return numeric, _errors(by_hand, numeric, np.where(linear, 5, 1) * rounding, tolerance)


def _parameters(cache: Cache, grads: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the place (l, i, j), the gradient and the step of each of the n parameters.

    Here layers are counted from 0, and b is one more column of W, j = n_{l-1}, whose input is 1.
    The step is eps^(1/3) divided by the largest input, so that no entry of Z[l]
    changes by more than eps^(1/3).

    Returns:
        Places (n, 3), gradients (n,), steps (n,).
    """
    places, gradients, steps = [], [], []
    for l, (of_layer, U) in enumerate(zip(grads, inputs_of_layers(cache), strict=True)):
        wide_grad = np.concatenate([of_layer.W, of_layer.b], axis=1)
        i, j = np.indices(wide_grad.shape)
        largest = np.maximum(1.0, np.append(np.abs(U).max(axis=1), 1.0))
        places.append(np.stack([np.full_like(i, l), i, j], axis=-1).reshape(-1, 3))
        gradients.append(wide_grad.ravel())
        steps.append(np.broadcast_to(EPS ** (1 / 3) / largest, i.shape).ravel())
    return np.concatenate(places), np.concatenate(gradients), np.concatenate(steps)


@jax.jit
def _passes(
    params: Params, X: Array, Y: Array, w: Array | None, key: Array | None
) -> tuple[Cache, Array, Params]:
    """Return the cache, J and the gradients by hand, from one compiled program."""
    cache = up(params, X, keys_of(params, key))
    return cache, mean_loss(cache, Y, w), mean_gradient(cache, Y, w)


def _differences(
    cache: Cache, Y: Array, w: Array | None, places: np.ndarray, h: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the central difference of J at each place, and whether its step crosses a kink.

    The places go through the network in chunks of equal size, so that one compiled program serves
    all of them; the last chunk is filled up with repetitions.
    """
    n, bytes_each = h.size, 2 * 8 * sum(A.size for A in cache.A)
    chunk = min(sum(layer.W.size for layer in cache.params), max(1, BYTES_AT_ONCE // bytes_each))
    padded = np.resize(np.arange(n), math.ceil(n / chunk) * chunk)
    parts = [_differences_at_once(cache, Y, w, places[p], h[p]) for p in padded.reshape(-1, chunk)]
    numeric, crossed = (np.concatenate(part)[:n] for part in zip(*parts, strict=True))
    return numeric, crossed


@jax.jit
@partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def _differences_at_once(
    cache: Cache, Y: Array, w: Array | None, place: Array, h: Array
) -> tuple[Array, Array]:
    """Return the difference at one place, and whether its step crosses a kink."""

    def at(step: Array) -> tuple[Array, tuple[Array, ...]]:
        perturbed = _perturbed(cache, place, step)
        return mean_loss(perturbed, Y, w), _slopes(perturbed, Y)

    J, slopes = jax.vmap(at)(jnp.stack([h, -h]))
    crossed = jnp.stack([_crosses(slope) for slope in slopes])
    return (J[0] - J[1]) / (2 * h), jnp.any(crossed)


def _perturbed(cache: Cache, place: Array, h: Array) -> Cache:
    """Return the cache of the forward pass with the parameter at that place increased by h."""
    l, i, j = place
    A, Z = [cache.A[0]], []
    kept = kept_by(cache)
    for k, (layer, U) in enumerate(zip(cache.params, inputs_of_layers(cache), strict=True)):
        inputs = jnp.concatenate([U, jnp.ones_like(U[:1])])
        row = (k == l) & (jnp.arange(layer.b.size) == i)
        change = jnp.where(row[:, None], h * inputs[j][None, :], 0)
        Z_k, A_k = forward_layer(replace(layer, b=layer.b + change), A[-1], kept[k])
        Z.append(Z_k)
        A.append(A_k)
    return replace(cache, Z=tuple(Z), A=tuple(A))


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
    """Return the name of the parameter at that place, such as "W[2][5, 17]" for l = 1."""
    return f"W[{l + 1}][{i}, {j}]" if j < params[l].W.shape[1] else f"b[{l + 1}][{i}, 0]"
