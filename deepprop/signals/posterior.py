"""How sure the network is: a Gaussian over its parameters, and what it means for predictions.

Around the trained parameters theta, the Laplace approximation takes the posterior as normal with
precision sum_i J_i^T H_i J_i + prior_precision I. In the eigenbasis of `ekfac` that is a diagonal.
The output is taken as linear in the parameters, so Z[L] is normal, too: its mean is that of the
network, and its covariance is J_i Sigma J_i^T. Unit k's Jacobian is an outer product of columns u_k
and v in the basis, so the entry for units k and h is a sum over layers of

    sum_pq  u_kp u_hp  v_q^2 / (m values_pq / noise + prior_precision)

Sources: MacKay 1992; Ritter et al. 2018, A Scalable Laplace Approximation for Neural Networks;
Immer et al. 2021, Improving predictions of Bayesian neural nets via local linearization,
arXiv:2008.08400; Daxberger et al. 2021, Laplace Redux, arXiv:2106.14806.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from deepprop._arguments import check_params, inputs, output_of
from deepprop._arithmetic import product, wide
from deepprop._checks import check_above_zero, plain_weights, whole_number
from deepprop.costs import OUTPUTS
from deepprop.layers import Cache, Layer, Params
from deepprop.signals.curvature import Curvature, ekfac
from deepprop.signals.evidence import Evidence
from deepprop.signals.fisher import with_one
from deepprop.signals.many import list_over_batches, sum_over_batches
from deepprop.signals.tangent_kernel import jacobian_columns
from deepprop.signals.training_influence import examples
from deepprop.walk import layer_map, layer_scan, to_the_top, up

GRID = -4, 8, 49  # of prior precisions: powers of 10, and their number
NUMBERS = 2**24  # in the columns of one batch: 64 MiB in float32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "curvature", "count", "prior_precision", "noise", "log_evidence"],
    meta_fields=["layers"],
)
@dataclass(frozen=True)
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

    def predict(self, X: ArrayLike) -> tuple[Array, Array]:
        """Return the mean of the prediction, and the variance of Z[L], both (n_L, m).

        The mean accounts for the variance v of Z[L]: for softmax and sigmoid, Z[L] is divided by
        sqrt(1 + pi/8 v) first; for exp it is exp(Z[L] + v/2); for the identity it is A[L], and the
        variance of a new target is v + noise.

        Args:
            X: (n_0, m), one example per column.

        Raises:
            ValueError: X does not fit the network.
            TypeError: X is not real numbers.
        """
        A_0 = inputs(self.params, X)
        mean, variance = _predict(self, A_0, size=_batch(self.params))
        return mean, variance

    def covariance(self, X: ArrayLike) -> Array:
        """Return the covariance of Z[L] for each example, (m, n_L, n_L).

        Args:
            X: (n_0, m), one example per column.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        found: Array = _covariance(self, inputs(self.params, X), size=_batch(self.params))
        return found


def laplace(
    params: Params,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    prior_precision: float | None = None,
    noise: float | None = None,
    layers: str = "last",
    validation: tuple[ArrayLike, ArrayLike] | None = None,
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
        prior_precision: of every parameter before the data, as weight decay on the sum of losses.
            None takes what makes the training data most likely (the marginal likelihood), or with
            `validation` its targets.
        noise: the variance of the targets around A[L], for the output identity. None takes it in
            the same way, or if `prior_precision` is given takes 1, which is the cost's.
        layers: "last" for the posterior of the last layer alone, or "all".
        validation: (X, Y) that the network has not been trained on. A network that has overfitted
            is too sure of itself; these examples tell.
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
    A_0, Y = examples(params, X, Y)
    m, dtype = A_0.shape[1], wide(A_0.dtype)
    w = jnp.ones(m, dtype) if weights is None else plain_weights("weights", weights, m, dtype)
    for name, value in (("prior_precision", prior_precision), ("noise", noise)):
        if value is not None:
            check_above_zero(name, value)
    if noise is None and (prior_precision is not None or not regression):
        noise = 1.0
    size = whole_number("batch_size", batch_size)
    body, head = _parts(params, layers)
    entering = _entering(body, A_0, size=size)
    curvature = ekfac(head, entering, weights=weights, batch_size=size)
    if validation is not None and prior_precision is None:
        X_val, Y_val = _pair(validation)
        A_val, Y_val = examples(params, X_val, Y_val, "_validation")
        found = _likeliest(
            head,
            _entering(body, A_val, size=size),
            Y_val,
            curvature,
            jnp.sum(w),
            noise,
            size=_batch(params),
        )
        prior_precision, noise = found
    prior, s, log = _evidence(head, entering, Y, w, curvature, prior_precision, noise, size=size)
    return Posterior(params, layers, curvature, jnp.sum(w), prior, s, log)


def _pair(validation: Any) -> Any:
    """Return X and Y of the validation set.

    Raises:
        ValueError: it is not a pair.
        TypeError: it is not a tuple or list.
    """
    if not isinstance(validation, tuple | list):
        raise TypeError(f"validation must be (X, Y), got {type(validation).__name__}")
    if len(validation) != 2:
        raise ValueError(f"validation must be (X, Y), got {len(validation)} arrays")
    return validation


def _parts(params: Params, layers: str) -> tuple[Params, Params]:
    """Return the layers that are certain, and those above them, which are not.

    The last layer's posterior is that of a network of one layer, whose inputs are A[L-1].
    """
    return (params[:-1], params[-1:]) if layers == "last" else ((), params)


def _batch(params: Params) -> int:
    """Return how many examples to predict at a time: their columns, for n_L units, are stored."""
    widest = sum(layer.W.size // layer.W.shape[-1] for layer in params)
    return max(1, NUMBERS // (params[-1].W.shape[-2] * widest))


@partial(jax.jit, static_argnames="size")
def _entering(body: Params, A_0: Array, *, size: int) -> Array:
    """Compute A[L-1] (n_{L-1}, m)."""
    return list_over_batches(lambda A: to_the_top(body, A).mT, size, A_0).mT


@partial(jax.jit, static_argnames="size")
def _likeliest(
    params: Params,
    A_0: Array,
    Y: Array,
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

    def variances(A_0: Array) -> Array:
        cache = up(params, A_0)
        squares = _squares(cache, curvature)
        b = lax.map(lambda rho: output_variance(params, squares, curvature, count, rho), grid)
        return jnp.moveaxis(b, -1, 0)  # (m, grid, n_L)

    b = jnp.moveaxis(list_over_batches(variances, size, A_0), 0, -1)  # (grid, n_L, m)
    Z = up(params, A_0).Z[-1]

    def loss(b: Array) -> tuple[Array, Array]:
        """Return the mean loss of the averaged prediction, and the noise."""
        if not regression:
            return jnp.mean(output.loss(AVERAGED[output.name](Z, b), Y)), jnp.ones((), b.dtype)
        ratios = jnp.square(Z - Y) / (b + 1)
        s = jnp.mean(ratios) if noise is None else jnp.asarray(noise, b.dtype)
        return jnp.mean(jnp.log(s * (b + 1)) + ratios / s) / 2, s

    losses, noises = lax.map(loss, b)
    best = jnp.argmin(losses)
    return grid[best] / noises[best], noises[best]


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
    )
    given = [None if v is None else jnp.asarray(v, w.dtype) for v in (prior_precision, noise)]
    prior, s = evidence.best(*given)
    return prior, s, evidence.log(prior, s)


@partial(jax.jit, static_argnames="size")
def _predict(posterior: Posterior, A_0: Array, *, size: int) -> tuple[Array, Array]:
    def of_batch(A_0: Array) -> Array:
        cache = _cache(posterior, A_0)
        variance = posterior.noise * output_variance(
            cache.params, _squares(cache, posterior.curvature), posterior.curvature,
            posterior.count, posterior.prior_precision * posterior.noise,
        )  # fmt: skip
        output = output_of(posterior.params)
        mean = output.g(AVERAGED[output.name](cache.Z[-1], variance))
        return jnp.moveaxis(jnp.stack([mean, variance]), -1, 0)

    both = list_over_batches(of_batch, size, A_0)
    return both[:, 0].T, both[:, 1].T


@partial(jax.jit, static_argnames="size")
def _covariance(posterior: Posterior, A_0: Array, *, size: int) -> Array:
    def of_batch(A_0: Array) -> Array:
        return jnp.moveaxis(output_covariance(_cache(posterior, A_0), posterior), -1, 0)

    return list_over_batches(of_batch, size, A_0)


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

    def add(total: Array, _: Layer, u: Array, v: Array, c: Any) -> Array:
        precision = posterior.count * c.values / posterior.noise + posterior.prior_precision
        return total + jnp.einsum("knm,hnm,nm->khm", u, u, product(1 / precision, jnp.square(v)))

    n_L, m = cache.Z[-1].shape
    start = jnp.zeros((n_L, n_L, m), cache.Z[-1].dtype)
    columns = _columns(cache, posterior.curvature)
    total: Array = layer_scan(add, start, cache.params, *columns, posterior.curvature)
    return total


def output_variance(
    params: Params,
    squares: tuple[list[Array], list[Array]],
    curvature: tuple[Curvature, ...],
    count: ArrayLike,
    prior_precision: ArrayLike,
) -> Array:
    """Compute the diagonal of J_i Sigma J_i^T with noise of variance 1, (n_L, m).

    Args:
        params: the layers that are uncertain.
        squares: u^2 and v^2 of their columns.
        curvature: of each layer.
        count: m, or the sum of the weights.
        prior_precision: of every parameter.
    """

    def add(total: Array, _: Layer, u: Array, v: Array, c: Any) -> Array:
        T = product(1 / (count * c.values + prior_precision), v)  # (n_l, m)
        return total + jnp.sum(u * T[None], axis=1)

    n_L, m = squares[0][-1].shape[0], squares[0][-1].shape[-1]
    start = jnp.zeros((n_L, m), squares[0][-1].dtype)
    total: Array = layer_scan(add, start, params, *squares, curvature)
    return total


def _columns(cache: Cache, curvature: tuple[Curvature, ...]) -> tuple[list[Array], list[Array]]:
    """Return the Jacobian's columns in the basis: u (n_L, n_l, m) of dZ, and v of A, per layer."""

    def rotated(_: Layer, dz: Array, a: Array, c: Any) -> tuple[Array, Array]:
        return product(c.dZ.mT, dz), product(c.A.mT, with_one(a))

    pairs = list(layer_map(rotated, cache.params, *jacobian_columns(cache), curvature))
    return [u for u, _ in pairs], [v for _, v in pairs]


def _squares(cache: Cache, curvature: tuple[Curvature, ...]) -> tuple[list[Array], list[Array]]:
    squares: tuple[list[Array], list[Array]] = jax.tree.map(jnp.square, _columns(cache, curvature))
    return squares


def _moderated(Z: Array, variance: Array) -> Array:
    return Z / jnp.sqrt(1 + jnp.pi / 8 * variance)


# By the name of the output: the Z at which A is the mean over a normal Z[L], or close to it.
AVERAGED: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": _moderated,  # MacKay 1992, The Evidence Framework Applied to Classification Networks
    "sigmoid": _moderated,
    "identity": lambda Z, variance: Z,
    "exp": lambda Z, variance: Z + variance / 2,  # exact
}
