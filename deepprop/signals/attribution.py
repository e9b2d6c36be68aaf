"""Which inputs made the score: what each input of each example contributed to it.

The score of an example is one unit of Z[L]. Three ways, all of them walks down to the inputs:

- `input_gradients`: the derivative of the score with respect to the inputs.
- `integrated_gradients`: the mean derivative on the way from a baseline X0 to X, times X - X0.
- `deep_lift`: one walk down with another slope, (A - A0) / (Z - Z0) in the place of g'(Z), where
  Z0 and A0 are those of the baseline; the result, too, is multiplied by X - X0.

The last two are complete: an example's shares sum to its score minus that of the baseline, up to
the error of the mean for `integrated_gradients`, and exactly for `deep_lift`. For this, `deep_lift`
needs a slope of its own for a normalised layer. Write P = A - mean(A), with size s, and N = P / s.
Then, exactly,

    N - N0 = c (P - P0) - d (P + P0) (P + P0)^T (P - P0)
    c = (1/s + 1/s0) / 2        d = 1 / (2 n s s0 (s + s0))

a symmetric matrix times P - P0. With P0 = P it is the derivative, (I - 1/n N N^T) / s.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepprop._arguments import hidden_activation, inputs
from deepprop._arithmetic import elementwise, multiply, wide
from deepprop._checks import dense_array, is_known, real_array, whole_number
from deepprop.backprop import error_signals
from deepprop.ends import input_signal
from deepprop.entry import sizes, without_mean
from deepprop.layers import Layer, Params, type_of_dZ, types_of_dZ
from deepprop.walk import below_layers, layer_scan, recomputed, up


def input_gradients(params: Params, X: ArrayLike, unit: ArrayLike | None = None) -> Array:
    """Compute the derivative of one unit of Z[L] with respect to the inputs, for each example.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 2], output="identity")
    >>> bool((dp.input_gradients(params, jnp.ones((3, 5)), 1) == params[0].W[1][:, None]).all())
    True

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        unit: the output unit, counted from 0, for all examples, or (m,), one for each; None takes
            the largest of each example.

    Returns:
        (n_0, m).

    Raises:
        ValueError: X does not fit the network, or `unit` is not one of its output units.
        TypeError: X is not real numbers, `unit` is not integers, or `params` are not layers.

    Source:
        Simonyan, Vedaldi and Zisserman 2013, Deep Inside Convolutional Networks, arXiv:1312.6034.
    """
    A_0 = inputs(params, X)
    gradients: Array = _input_gradients(params, A_0, _units(params, A_0, unit))
    return gradients


def integrated_gradients(
    params: Params,
    X: ArrayLike,
    unit: ArrayLike | None = None,
    *,
    baseline: ArrayLike = 0.0,
    steps: int = 50,
) -> Array:
    """Compute (X - X0) * the mean derivative of the score at X0 + t (X - X0), for t in [0, 1].

    The mean is taken at the middles of `steps` equal parts.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2], hidden="tanh")
    >>> shares = dp.integrated_gradients(params, jnp.ones((3, 5)), 0)
    >>> Z = [dp.forward(params, X)[1].Z[-1][0] for X in (jnp.ones((3, 5)), jnp.zeros((3, 5)))]
    >>> bool(jnp.allclose(shares.sum(axis=0), Z[0] - Z[1], atol=1e-3))
    True

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        unit: as for `input_gradients`.
        baseline: X0: a number, (n_0, 1), or (n_0, m); an input that says nothing, such as a black
            image or the mean.
        steps: the number of points on the way.

    Returns:
        (n_0, m). A column sums to the score of the example minus that of the baseline, up to the
        error of the mean.

    Raises:
        ValueError, TypeError: as `input_gradients`; or `baseline` or `steps` does not fit.

    Source:
        Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks, arXiv:1703.01365.
    """
    A_0 = inputs(params, X)
    start, chosen = _baseline(A_0, baseline), _units(params, A_0, unit)
    shares: Array = _integrated_gradients(
        params, A_0, start, chosen, steps=whole_number("steps", steps)
    )
    return shares


def deep_lift(
    params: Params, X: ArrayLike, unit: ArrayLike | None = None, *, baseline: ArrayLike = 0.0
) -> Array:
    """Compute DeepLIFT's shares: a walk down with slope (A - A0) / (Z - Z0), times X - X0.

    This is the rescale rule. It costs one forward and one backward pass, for X and the baseline.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> shares = dp.deep_lift(params, jnp.ones((3, 5)), 0)
    >>> Z = [dp.forward(params, X)[1].Z[-1][0] for X in (jnp.ones((3, 5)), jnp.zeros((3, 5)))]
    >>> bool(jnp.allclose(shares.sum(axis=0), Z[0] - Z[1], atol=1e-5))
    True

    Args:
        params: the layers.
        X: (n_0, m), one example per column.
        unit: as for `input_gradients`.
        baseline: as for `integrated_gradients`.

    Returns:
        (n_0, m). A column sums to the score of the example minus that of the baseline, exactly up
        to rounding.

    Raises:
        ValueError, TypeError: as `integrated_gradients`.

    Source:
        Shrikumar, Greenside and Kundaje 2017, Learning Important Features Through Propagating
        Activation Differences, arXiv:1704.02685; Ancona et al. 2018, arXiv:1711.06104.
    """
    A_0 = inputs(params, X)
    start, chosen = _baseline(A_0, baseline), _units(params, A_0, unit)
    shares: Array = _deep_lift(params, A_0, start, chosen)
    return shares


@jax.jit
def _input_gradients(params: Params, A_0: Array, units: Array) -> Array:
    cache = up(params, A_0)
    return input_signal(cache, error_signals(cache, dZ=_chosen(cache.Z[-1], units)))


@partial(jax.jit, static_argnames="steps")
def _integrated_gradients(
    params: Params, A_0: Array, baseline: Array, units: Array, *, steps: int
) -> Array:
    def at(total: Array, t: Array) -> tuple[Array, None]:
        way = baseline + t.astype(A_0.dtype) * (A_0 - baseline)
        dX = _input_gradients(params, way, units)
        return total + dX.astype(total.dtype), None

    middles = (jnp.arange(steps, dtype=wide(A_0.dtype)) + 0.5) / steps
    total, _ = jax.lax.scan(at, jnp.zeros(A_0.shape, middles.dtype), middles)
    way = (A_0 - baseline).astype(middles.dtype)
    return (way * total / steps).astype(type_of_dZ(params[0]))


@jax.jit
def _deep_lift(params: Params, A_0: Array, baseline: Array, units: Array) -> Array:
    one, other = (recomputed(up(params, X)) for X in (A_0, baseline))
    dZ = _chosen(one.Z[-1], units)
    last, last_0 = below_layers(one)[-1], below_layers(other)[-1]
    dA = _below(params[-1], dZ, dZ, last, last_0)  # the last layer is never residual

    def down(
        dA: Array, layer: Layer, Z: Array, Z_0: Array, A_below: Array, A_below_0: Array
    ) -> Array:
        dZ = dA * _lift(layer, Z, Z_0).astype(dA.dtype)
        return _below(layer, dZ, dA, A_below, A_below_0)

    pairs = [c[:-1] for c in (one.Z, other.Z, below_layers(one), below_layers(other))]
    dX: Array = layer_scan(down, dA, params[:-1], *pairs, downwards=True)
    return dX * (A_0 - baseline)


def _lift(layer: Layer, Z: Array, Z_0: Array) -> Array:
    """Return (g(Z) - g(Z0)) / (Z - Z0), or g' between the two where they are close.

    There the quotient would be rounding alone; g' in the middle differs from it by (Z - Z0)^2.
    """
    g = hidden_activation(layer)
    close = float(jnp.finfo(Z.dtype).eps) ** 0.5  # type: ignore[no-untyped-call]

    def slope(Z: Array, Z_0: Array) -> Array:
        difference, middle = Z - Z_0, (Z + Z_0) / 2
        apart = jnp.abs(difference) > close * (1 + jnp.abs(Z))
        lifted = (g.g(Z) - g.g(Z_0)) / jnp.where(apart, difference, 1)
        return jnp.where(apart, lifted, g.g_prime(middle, g.g(middle)))

    return elementwise(slope, Z, Z_0)


def _below(layer: Layer, dZ: Array, dA: Array, A: Array, A_0: Array) -> Array:
    """Return dA[l-1] from dZ[l], with the normalisation's own slope."""
    dU = multiply(types_of_dZ(layer), transposed=True)(layer.W.mT, dZ)
    below = dU if layer.normalize is None else _below_normalization(layer, dU, A, A_0)
    return below + dA if layer.residual else below


def _below_normalization(layer: Layer, dU: Array, A: Array, A_0: Array) -> Array:
    """Return c v - d (P + P0) (P + P0)^T v, without its mean for "layer": see above."""
    (P, s), (P_0, s_0), n = sizes(layer, A), sizes(layer, A_0), len(A)
    both, v = P + P_0, dU.mT.astype(P.dtype)
    c, d = (1 / s + 1 / s_0) / 2, 1 / (2 * n * s * s_0 * (s + s_0))
    lifted = c * v - d * both * jnp.sum(both * v, axis=-1, keepdims=True)
    below: Array = without_mean(layer, lifted).astype(dU.dtype).mT
    return below


def _chosen(Z: Array, units: Array) -> Array:
    """Return dZ[L] = e_k for each example's unit k."""
    return jax.nn.one_hot(units, len(Z), axis=0, dtype=Z.dtype)


def _units(params: Params, A_0: Array, unit: ArrayLike | None) -> Array:
    """Return each example's output unit, (m,).

    Raises:
        ValueError: it is not one of them, or the shape does not fit.
        TypeError: it is not integers.
    """
    m, n_L = A_0.shape[1], params[-1].W.shape[-2]
    if unit is None:
        largest: Array = _largest(params, A_0)
        return largest
    units = dense_array("unit", unit)
    if not jnp.issubdtype(units.dtype, jnp.integer):
        raise TypeError(f"unit must be integers from 0 to {n_L - 1}, got dtype {units.dtype}")
    if units.shape not in ((), (m,)):
        raise ValueError(f"unit must be one integer, or ({m},) of them, got shape {units.shape}")
    if is_known(units) and ((np.asarray(units) < 0) | (np.asarray(units) >= n_L)).any():
        raise ValueError(f"unit must be from 0 to {n_L - 1}, got {unit}")
    return jnp.broadcast_to(jnp.asarray(units), (m,))


@jax.jit
def _largest(params: Params, A_0: Array) -> Array:
    return jnp.argmax(up(params, A_0).Z[-1], axis=0)


def _baseline(A_0: Array, baseline: ArrayLike) -> Array:
    """Return X0 (n_0, m).

    Raises:
        ValueError: its shape does not fit.
        TypeError: it is not real numbers.
    """
    given = real_array("baseline", baseline, A_0.dtype)
    n_0, m = A_0.shape
    if given.shape not in ((), (n_0, 1), (n_0, m)):
        raise ValueError(
            f"baseline must be a number, ({n_0}, 1) or ({n_0}, {m}), got shape {given.shape}"
        )
    return jnp.broadcast_to(given, A_0.shape)
