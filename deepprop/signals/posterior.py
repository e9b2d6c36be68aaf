"""How sure the network is: a Gaussian over its parameters, and what it means for predictions.

Around the trained parameters theta, the Laplace approximation takes the posterior as normal with
precision sum_i J_i^T H_i J_i / noise + prior_precision I, where noise is 1 except in a regression.
In the eigenbasis of `ekfac` it is taken as diagonal. The output is taken as linear in the
parameters, so Z[L] is normal, too: its mean is that of the network, and its covariance is
J_i Sigma J_i^T. Unit k's Jacobian is an outer product of columns u_k and v in the basis, so the
covariance of units k and h is a sum over layers of

    sum_pq  u_kp u_hp  v_q^2 / (m values_pq / noise + prior_precision)

Sources: MacKay 1992; Ritter et al. 2018, A Scalable Laplace Approximation for Neural Networks;
Immer et al. 2021, Improving predictions of Bayesian neural nets via local linearization,
arXiv:2008.08400; Daxberger et al. 2021, Laplace Redux, arXiv:2106.14806.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from deepprop._arguments import check_params, finite_inputs, output_of, pair_of
from deepprop._arithmetic import product, wide
from deepprop._checks import (
    check_above_zero,
    check_scalar,
    example_weights,
    plain_weights,
    whole_number,
)
from deepprop.costs import OUTPUTS
from deepprop.layers import Cache, Layer, Params, depth
from deepprop.signals.curvature import Curvature, ekfac, in_basis
from deepprop.signals.evidence import Evidence
from deepprop.signals.over_batches import list_over_batches, sum_over_batches
from deepprop.signals.tangent_kernel import jacobian_columns
from deepprop.walk import layer_map, layer_scan, to_the_top, up

GRID = -4, 8, 49  # of prior precision * noise: powers of 10, and how many
SMALLEST = 1e-18  # noise
NUMBERS = 2**24  # in the columns of one batch: 64 MiB in float32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "curvature", "count", "prior_precision", "noise", "log_evidence"],
    meta_fields=["layers"],
)
@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """A normal distribution over the parameters of a trained network: see `laplace`.

    Attributes:
        params: the layers; their parameters are its mean.
        layers: "all" or "last": which layers are uncertain.
        curvature: a `Curvature` for each of those layers.
        count: m, or the sum of the weights.
        prior_precision: that of every parameter before the data.
        noise: the variance of a target around A[L], for the output identity; otherwise 1.
        log_evidence: the logarithm of the marginal likelihood, without constants.
    """

    params: Params
    layers: str
    curvature: tuple[Curvature, ...]
    count: Array
    prior_precision: Array
    noise: Array
    log_evidence: Array

    def __repr__(self) -> str:
        """Return the numbers that it has, without its arrays."""
        return (
            f"Posterior(layers={self.layers!r}, count={self.count},"
            f" prior_precision={self.prior_precision}, noise={self.noise})"
        )

    def predict(self, X: ArrayLike) -> tuple[Array, Array]:
        """Return the mean of the prediction, and the variance of Z[L], both (n_L, m).

        The mean accounts for that variance: see `AVERAGED` in the source. For the identity it is
        A[L]. Softmax does not depend on the mean of Z[L] over the classes, about which the data
        says nothing, so its variances are those of Z[L] minus that mean.

        Args:
            X: (n_0, m), one example per column.

        Raises:
            ValueError: X does not fit the network, or is not finite.
            TypeError: X is not real numbers.
        """
        A_0 = finite_inputs(self.params, X)
        mean, variance = _predict(self, A_0, size=_batch(self._uncertain()))
        return mean, variance

    def deviation(self, X: ArrayLike) -> Array:
        """Return the standard deviation of a new target around the mean of `predict`, (n_L, m).

        For the identity, the square root of the variance of Z[L] plus the noise. For exp, targets
        are counts around A[L], which is log-normal. For classes, targets are 0 or 1.

        Args:
            X: (n_0, m), one example per column.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        return self.deviation_of(*self.predict(X))

    def deviation_of(self, mean: Array, variance: Array) -> Array:
        """Return `deviation` from what `predict` has returned."""
        match output_of(self.params).name:
            case "identity":
                return jnp.sqrt(variance + self.noise)
            case "exp":
                return jnp.sqrt(mean + jnp.square(mean) * jnp.expm1(variance))
            case _:
                return jnp.sqrt(mean * (1 - mean))

    def covariance(self, X: ArrayLike) -> Array:
        """Return the covariance of Z[L] for each example, (m, n_L, n_L); see `predict` for softmax.

        Args:
            X: (n_0, m), one example per column.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        A_0 = finite_inputs(self.params, X)
        found: Array = _covariance(self, A_0, size=_batch(self._uncertain()))
        return found

    def _uncertain(self) -> Params:
        return _parts(self.params, self.layers)[1]


def laplace(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    prior_precision: float | None = None,
    noise: float | None = None,
    layers: str = "last",
    validation: Sequence[ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    batch_size: int = 1024,
) -> Posterior:
    """Compute the Laplace approximation of the posterior over the parameters.

    >>> import jax, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [1, 8, 1], hidden="tanh", output="identity")
    >>> X = jnp.linspace(-1, 1, 50)[None]
    >>> posterior = dp.laplace(params, X, dp.predict(params, X), prior_precision=1.0)
    >>> mean, variance = posterior.predict(jnp.array([[0.0, 5.0]]))
    >>> mean.shape, bool(variance[0, 1] > variance[0, 0])  # less sure far from the data
    ((1, 2), True)

    Args:
        params: the layers of the trained network.
        X: (n_0, m), the training examples.
        Y: (n_L, m), their targets.
        prior_precision: the precision of the Gaussian prior of every parameter: an L2 penalty of
            prior_precision/2 ||theta||^2 on the sum of the losses. None maximises the likelihood of
            the `validation` targets, or without them the marginal likelihood of the training data.
        noise: the variance of the targets around A[L], for the output identity. None chooses it in
            the same way; if `prior_precision` is given, None is 1, as in the cost.
        layers: "last" for the posterior of the last layer alone, or "all".
        validation: (X, Y) or (X, Y, weights) that the network has not been trained on; not used if
            `prior_precision` is given. An overfitted network is too sure of itself, and only such
            examples show it.
        weights: (m,), one per example: w_i counts as w_i examples.
        batch_size: examples at a time; it changes the memory and the speed, not the result.

    Returns:
        A `Posterior`.

    Raises:
        ValueError: the output is not one of the four canonical ones, a shape does not fit, a number
            is not above 0, or `layers` is neither of the two.
        TypeError: an array is not real numbers, or `params` are not layers.
    """
    if layers not in ("all", "last"):
        raise ValueError(f'layers must be "all" or "last", got {layers!r}')
    check_params(params)
    regression = output_of(params) == OUTPUTS["identity"]
    if noise is not None and not regression:
        raise ValueError(f"noise must be None for the output {output_of(params).name}, got {noise}")
    A_0, Y = pair_of(params, X, Y)
    m, dtype = A_0.shape[1], wide(A_0.dtype)
    w = jnp.ones(m, dtype) if weights is None else plain_weights("weights", weights, m, dtype)
    for name, value in (("prior_precision", prior_precision), ("noise", noise)):
        if value is not None:
            check_scalar(name, value)
            check_above_zero(name, value)
    if noise is None and (prior_precision is not None or not regression):
        noise = 1.0
    size = whole_number("batch_size", batch_size)
    body, head = _parts(params, layers)
    entering = _entering(body, A_0, size=size)
    curvature = ekfac(head, entering, weights=weights, batch_size=size)
    if validation is not None and prior_precision is None:
        A_val, Y_val, w_val = _validation(params, validation)
        A_val = _entering(body, A_val, size=size)
        found = _likeliest(
            head, (A_val, Y_val), w_val, curvature, jnp.sum(w), noise, size=_batch(head)
        )
        prior_precision, noise = found
    prior, s, log = _evidence(head, entering, Y, w, curvature, prior_precision, noise, size=size)
    return Posterior(params, layers, curvature, jnp.sum(w), prior, s, log)


def _validation(params: Params, given: Any) -> tuple[Array, Array, Array]:
    """Return X, Y and the weights of the validation set.

    Raises:
        ValueError: it is not two or three arrays, or they do not fit.
        TypeError: it is not a tuple or list, or an array is not real numbers.
    """
    due = "validation must be (X, Y) or (X, Y, weights)"
    if not isinstance(given, tuple | list):
        raise TypeError(f"{due}, got {type(given).__name__}")
    if len(given) not in (2, 3):
        raise ValueError(f"{due}, got {len(given)} arrays")
    A_0, Y = pair_of(params, given[0], given[1], "_validation")
    m, dtype = A_0.shape[1], wide(A_0.dtype)
    if len(given) == 2 or given[2] is None:
        return A_0, Y, jnp.ones(m, dtype)
    return A_0, Y, example_weights(given[2], m, dtype, "validation weights")


def _parts(params: Params, layers: str) -> tuple[Params, Params]:
    """Return the layers that are certain, and those above them, which are not.

    The last layer's posterior is that of a network of one layer, whose inputs are A[L-1].
    """
    return (params[:-1], params[-1:]) if layers == "last" else ((), params)


def _batch(params: Params) -> int:
    """Return for how many examples the columns and the covariance take about `NUMBERS`."""
    n_L = params[-1].W.shape[-2]
    shapes = [layer.W.shape[-2:] for layer in params for _ in range(depth(layer))]
    each = sum(n_L * n + n_below + 1 for n, n_below in shapes) + n_L**2
    return max(1, NUMBERS // each)


@partial(jax.jit, static_argnames="size")
def _entering(body: Params, A_0: Array, *, size: int) -> Array:
    """Compute A[L-1] (n_{L-1}, m)."""
    return list_over_batches(lambda A: to_the_top(body, A).mT, size, A_0).mT


@partial(jax.jit, static_argnames="size")
def _likeliest(
    params: Params,
    pair: tuple[Array, Array],
    w: Array,
    curvature: tuple[Curvature, ...],
    count: Array,
    noise: ArrayLike | None,
    *,
    size: int,
) -> tuple[Array, Array]:
    """Return the prior precision and the noise for which the validation targets are likeliest.

    The best of `GRID`. With rho = prior precision * noise, the variance of Z[L] is noise times b,
    where b depends on rho alone, and so the best noise for it is the mean of (A - Y)^2 / (b + 1).
    """
    grid = jnp.logspace(*GRID, dtype=count.dtype)
    output = output_of(params)
    regression = output == OUTPUTS["identity"]

    def sums(w: Array, A_0: Array, Y: Array) -> Array:
        cache = up(params, A_0)
        columns, Z = _columns(cache, curvature), cache.Z[-1]

        def of_rho(rho: Array) -> Array:
            C = _covariances(params, columns, curvature, count, rho)
            if not regression:
                losses = output.loss(AVERAGED[output.name](Z, C), Y)
                return jnp.stack([jnp.sum(w * losses), jnp.sum(w), jnp.sum(w)])
            b = 1 + _diagonal(C)
            each = jnp.stack([jnp.log(b), jnp.square(Z - Y) / b, jnp.ones_like(b)])
            return jnp.sum(each * w[None, None, :], axis=(1, 2))

        of_grid: Array = lax.map(of_rho, grid)
        return of_grid

    first, second, n = sum_over_batches(sums, size, w, *pair).T / jnp.sum(w)
    s = second / n if noise is None else jnp.full_like(n, noise)
    s = jnp.maximum(s, SMALLEST)  # targets that are met exactly
    losses = first + second / s + n * jnp.log(s) if regression else first
    best = jnp.nanargmin(losses)
    return grid[best] / s[best], s[best]


@partial(jax.jit, static_argnames="size")
def _evidence(
    params: Params,
    A_0: Array,
    Y: Array,
    w: Array,
    curvature: tuple[Curvature, ...],
    prior_precision: ArrayLike | None,
    noise: ArrayLike | None,
    *,
    size: int,
) -> tuple[Array, Array, Array]:
    """Return the prior precision, the noise and the logarithm of the marginal likelihood."""

    def losses(w: Array, A_0: Array, Y: Array) -> Array:
        return jnp.sum(w * output_of(params).loss(up(params, A_0).Z[-1], Y))

    count, zero = jnp.sum(w), jnp.zeros((), w.dtype)
    evidence = Evidence(
        jnp.concatenate([jnp.ravel(count * c.values) for c in curvature]),
        sum((jnp.sum(jnp.square(p.astype(w.dtype))) for p in jax.tree.leaves(params)), start=zero),
        sum_over_batches(losses, size, w, A_0, Y),
        count * len(Y) if output_of(params) == OUTPUTS["identity"] else zero,
        jnp.mean(jnp.square(Y.astype(w.dtype))),
    )
    given = [None if v is None else jnp.asarray(v, w.dtype) for v in (prior_precision, noise)]
    prior, s = evidence.best(*given)
    return prior, s, evidence.log(prior, s)


@partial(jax.jit, static_argnames="size")
def _predict(posterior: Posterior, A_0: Array, *, size: int) -> tuple[Array, Array]:
    output = output_of(posterior.params)

    def of_batch(A_0: Array) -> Array:
        cache = _cache(posterior, A_0)
        C = output_covariance(cache, posterior)
        mean = output.g(AVERAGED[output.name](cache.Z[-1], C))
        return jnp.moveaxis(jnp.stack([mean, _diagonal(C)]), -1, 0)

    both = list_over_batches(of_batch, size, A_0)
    return both[:, 0].T, both[:, 1].T


@partial(jax.jit, static_argnames="size")
def _covariance(posterior: Posterior, A_0: Array, *, size: int) -> Array:
    def of_batch(A_0: Array) -> Array:
        return jnp.moveaxis(output_covariance(_cache(posterior, A_0), posterior), -1, 0)

    covariances: Array = list_over_batches(of_batch, size, A_0)
    return covariances


def _cache(posterior: Posterior, A_0: Array) -> Cache:
    """Return the cache of the layers that are uncertain."""
    body, head = _parts(posterior.params, posterior.layers)
    return up(head, to_the_top(body, A_0))


def output_covariance(cache: Cache, posterior: Posterior) -> Array:
    """Compute J_i Sigma J_i^T, the covariance of Z[L], for each example: (n_L, n_L, m).

    Args:
        cache: of the layers that are uncertain.
        posterior: the distribution over their parameters.
    """
    p, columns = posterior, _columns(cache, posterior.curvature)
    rho = p.prior_precision * p.noise
    return p.noise * _covariances(cache.params, columns, p.curvature, p.count, rho)


def _covariances(
    params: Params,
    columns: tuple[list[Array], list[Array]],
    curvature: tuple[Curvature, ...],
    count: ArrayLike,
    rho: ArrayLike,
) -> Array:
    """Compute the covariance of Z[L] for noise of variance 1 and a prior precision of rho."""

    def add(total: Array, _: Layer, u: Array, v: Array, c: Any) -> Array:
        T = product(1 / (count * c.values + rho), jnp.square(v))  # (n_l, m)
        return total + jnp.einsum("knm,hnm->khm", u * T[None], u)

    n_L, m = columns[0][-1].shape[0], columns[0][-1].shape[-1]
    start = jnp.zeros((n_L, n_L, m), columns[0][-1].dtype)
    total: Array = layer_scan(add, start, params, *columns, curvature)
    return total


def _columns(cache: Cache, curvature: tuple[Curvature, ...]) -> tuple[list[Array], list[Array]]:
    """Return the Jacobian's columns in the basis: u (n_L, n_l, m) of dZ, and v of A, per layer.

    For softmax, of Z[L] minus its mean over the classes.
    """
    shifts = output_of(cache.params).name == "softmax"

    def rotated(_: Layer, dz: Array, a: Array, c: Any) -> tuple[Array, Array]:
        dz = dz - jnp.mean(dz, axis=0, keepdims=True) if shifts else dz
        return in_basis(c, dz, a)

    pairs = list(layer_map(rotated, cache.params, *jacobian_columns(cache), curvature))
    return [u for u, _ in pairs], [v for _, v in pairs]


def _diagonal(C: Array) -> Array:
    return jnp.einsum("kkm->km", C)


def _moderated(Z: Array, variance: Array) -> Array:
    return Z / jnp.sqrt(1 + jnp.pi / 8 * variance)


def _pairwise(Z: Array, C: Array) -> Array:
    """Return log p_k, not normalised: 1 / p_k = sum_h exp(-(z_k - z_h) / sqrt(1 + pi/8 v_kh)).

    v_kh is the variance of z_k - z_h. With two classes this is the formula for sigmoid.
    """
    v = _diagonal(C)
    variance = v[:, None] + v[None, :] - 2 * C
    apart = _moderated(Z[None, :] - Z[:, None], jnp.maximum(variance, 0))  # z_h - z_k
    largest = jnp.max(apart, axis=1)
    return -largest - jnp.log(jnp.sum(jnp.exp(apart - largest[:, None]), axis=1))


# By the name of the output: the Z at which A is the mean over a normal Z[L] with covariance C, or
# close to it: MacKay 1992, The Evidence Framework Applied to Classification Networks, for sigmoid;
# Lu, Ie and Sha 2020, Mean-Field Approximation to Gaussian-Softmax Integral, arXiv:2006.07584.
AVERAGED: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": _pairwise,
    "sigmoid": lambda Z, C: _moderated(Z, _diagonal(C)),
    "identity": lambda Z, C: Z,
    "exp": lambda Z, C: Z + _diagonal(C) / 2,  # exact
}
