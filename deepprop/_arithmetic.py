"""The operations of the page, as the machine does them: in which type, and how they lie in memory.

On the page an example is a column. In memory it is better a row (`rows`); sums are held in a wider
type than what is added up, and factors may be rounded first (`product`). None of that is the
mathematics' business. So the equations call these verbs, and know nothing of it:

    times(W, A)             W A                   examples stay columns
    outer(dZ, A)            dZ A^T                summed over examples
    total(dZ)               sum_i dz_i            summed over examples
    elementwise(g, Z)       g(Z)
    hadamard(dA, slope)     dA * slope
    times_each(w, dZ)       w_i dz_i

`times`, `outer` and `total` are made for types: `multiply(types)` and `add_up(types)`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

# Names of jax's primitives that go from number to number. One that is missing here costs speed, not
# correctness.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma
    log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin
    sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905
)


class Types(NamedTuple):
    """The type of a result, and that to which the factors of a product are rounded first."""

    result: np.dtype
    factors: np.dtype | None


def multiply(types: Types) -> Callable[[Array, Array], Array]:
    """The verb times: W A, for A with an example per column."""
    return lambda W, A: rows(product(W, A, *types))


def add_up(types: Types) -> tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]:
    """The verbs outer and total: dZ A^T = sum_i dz_i a_i^T, and sum_i dz_i as a column."""

    def outer(dZ: Array, A: Array) -> Array:
        return product(dZ, A.mT, *types)

    def total(dZ: Array) -> Array:
        return jnp.sum(dZ, axis=-1, keepdims=True, dtype=types.result)

    return outer, total


def hadamard(P: Array, Q: Array) -> Array:
    """P * Q, in the type of P."""
    return rows(P * Q.astype(P.dtype))


def times_each(w: Array, dZ: Array) -> Array:
    """Column i of dZ (n_l, m) times w_i, in the type of dZ."""

    def times(w_i: Array, dz: Array) -> Array:
        return (w_i * dz.astype(w.dtype)).astype(dZ.dtype)

    return rows(elementwise(times, w[None, :], dZ))


def rows(P: Array) -> Array:
    """P (n, m), unchanged; compiled for a CPU it lies in memory with an example per row.

    In a CPU's memory the numbers of an example are better side by side: so minibatches are
    gathered, and so XLA's products are fastest. XLA would fold a transpose into the product beside
    it, so it is told not to. Other devices choose for themselves. Without this a step of 64 layers
    of 256 took 1.13 (jax 0.10.2) and 1.46 times (0.12) as long as in a scanned loop of autodiff;
    with it 0.98 to 1.03 times.
    """
    if not _matters(P):
        return P
    laid: Array = jax.lax.optimization_barrier(P.mT)  # type: ignore[no-untyped-call]
    return laid.mT


def elementwise(g: Callable[..., Array], *P: Array) -> Array:
    """g of each example's column (n, 1), for matrices (n, m), computed as they lie in memory.

    A user's g may look at more than one column, or at where a column stands, as one that centres
    over the batch or multiplies by a mask (n, m). Column by column it would be another function.
    So it is applied to whole matrices unless its jaxpr shows that it goes from number to number.
    """
    if not _matters(P[0]) or not (_is_ours(g) or _is_elementwise(g, P)):
        return g(*P)
    columns = (Q.mT[..., None] for Q in P)  # (m, n, 1)
    return jax.vmap(g, in_axes=-3, out_axes=-3)(*columns)[..., 0].mT


def _is_ours(g: Callable[..., Array]) -> bool:
    return str(getattr(g, "__module__", "")).startswith("deepprop.")


def _is_elementwise(g: Callable[..., Array], P: Sequence[Array]) -> bool:
    """Whether each number of g(*P) provably depends on the same place of P alone, and alike."""
    matrices = jax.make_jaxpr(g)(*P)
    if not all(jnp.size(c) == 1 for c in matrices.consts) or not _goes_by_number(matrices.jaxpr):
        return False
    columns = jax.make_jaxpr(g)(*(Q[:, :1] for Q in P))  # another program if g reads Z.shape
    return _steps(matrices.jaxpr) == _steps(columns.jaxpr)


def _steps(jaxpr: Any) -> list[str]:
    """The operations of a jaxpr and the numbers in it, without any shape."""
    steps = []
    for eqn in jaxpr.eqns:
        numbers = [str(v.val) for v in eqn.invars if hasattr(v, "val")]
        inner = [step for called in _called(eqn) for step in _steps(called)]
        steps += [" ".join([eqn.primitive.name, *numbers]), *inner]
    return steps


def _goes_by_number(jaxpr: Any) -> bool:
    return all(map(_is_known, jaxpr.eqns))


def _is_known(eqn: Any) -> bool:
    called = _called(eqn)
    if called:  # a function, such as jnp.where; of a loop over rows the shapes differ
        alike = all(_shapes(inner.invars) == _shapes(eqn.invars) for inner in called)
        return alike and all(map(_goes_by_number, called))
    if eqn.primitive.name == "broadcast_in_dim":
        return bool(eqn.invars[0].aval.size == 1)
    return eqn.primitive.name in ELEMENTWISE


def _called(eqn: Any) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [jaxpr for v in values if hasattr(jaxpr := getattr(v, "jaxpr", v), "eqns")]


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [v.aval.shape for v in variables]


def _matters(P: Array) -> bool:
    """Whether a program is being made, which alone has layouts to choose, and for a CPU."""
    return isinstance(P, jax.core.Tracer) and jax.default_backend() == "cpu"


def wide(dtype: DTypeLike) -> np.dtype:
    """The type in which numbers of `dtype` are added up: float32, or `dtype` if it is wider."""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def product(
    P: Array, Q: Array, dtype: DTypeLike | None = None, factors: DTypeLike | None = None
) -> Array:
    """P Q on the last two axes: added up in the wide type, then rounded once to `dtype` (P's).

    With `factors`, P and Q are rounded to that type first, whatever they are. As (Q^T P^T)^T: where
    Q has an example per column, the product's rows are examples (`rows`).
    """
    dtype = P.dtype if dtype is None else dtype
    if factors is None:
        return _product(P, Q).astype(dtype)
    (P, p), (Q, q) = _rounded(P, factors), _rounded(Q, factors)
    PQ = _product(P, Q)
    missing = sum(exponent for exponent in (p, q) if exponent is not None)
    if isinstance(missing, Array):
        PQ = times_power_of_2(PQ, missing)
    return PQ.astype(dtype)


def _product(P: Array, Q: Array) -> Array:
    """P Q of one type, in the wide type."""
    multiply = partial(jnp.matmul, preferred_element_type=wide(P.dtype))
    if P.dtype == wide(P.dtype):
        return multiply(Q.mT, P.mT).mT
    # Of narrow numbers XLA's CPU has the product of some shapes only; widened they are exact.
    PQ: Array = jax.lax.platform_dependent(Q.mT, P.mT, cpu=_widened(multiply), default=multiply)
    return PQ.mT


def _widened(multiply: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda P, Q: multiply(P.astype(wide(P.dtype)), Q.astype(wide(Q.dtype)))


def _rounded(P: Array, dtype: DTypeLike) -> tuple[Array, Array | None]:
    """P in `dtype`, and the power of 2 that is missing in it, None for none.

    float16 reaches from 6e-8 to 65504, which dZ of a deep network leaves: so the largest finite
    number of P is brought to about 2^14 first, the others keep their ratio to it. It is the loss
    scale that is usual with float16, but found for each product, where it can neither overflow nor
    be too small.
    """
    if P.dtype == dtype or has_range_of_float32(dtype):
        return P.astype(dtype), None
    P = P.astype(jnp.float32)
    largest = jnp.max(jnp.where(jnp.isfinite(P), jnp.abs(P), 0))
    exponent = jnp.minimum(13 - _exponent(largest), 126)  # so that its negative is one too
    return (P * _power_of_2(exponent)).astype(dtype), -exponent


def over_largest(w: Array) -> Array:
    """w over a power of 2, exactly, so that its largest number, if not 0, is in [1/2, 1)."""
    return times_power_of_2(w, -1 - _exponent(jnp.max(jnp.abs(w))))


def times_power_of_2(P: Array, k: Array) -> Array:
    """2^k P, in two halves: 2^k itself may be beyond the type."""
    half = k // 2
    return P * _power_of_2(half, P.dtype) * _power_of_2(k - half, P.dtype)


def _exponent(x: Array) -> Array:
    """k of 2^k <= x < 2^(k+1), for a float32 or float64 x above 0; the least k for subnormal x."""
    of = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    bits: Array = jax.lax.bitcast_convert_type(x, _integers(x.dtype))
    return (bits >> of.nmant) - (of.maxexp - 1)


def _power_of_2(k: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """2^k in float32 or float64, exactly, on every device: its bits are those of k."""
    of = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    bits = (k + (of.maxexp - 1)).astype(_integers(dtype)) << of.nmant
    power: Array = jax.lax.bitcast_convert_type(bits, dtype)
    return power


def _integers(dtype: DTypeLike) -> Any:
    return jnp.int32 if np.dtype(dtype).itemsize == 4 else jnp.int64


def root_of_squares(P: Array, axis: int | None = None) -> Array:
    """sqrt(sum P^2) along an axis or over all, in the wide type; the axis stays.

    A float32 of 2e19 has no square in float32, and neither has one of 1e-23. So P is brought to
    about 1 first, by a power of 2, which is exact. That power depends on P: XLA squares a constant
    factor by itself, and then the squares are out of range again.
    """
    P = P.astype(wide(P.dtype))
    k = _exponent(jnp.max(jnp.abs(P), axis=axis, keepdims=True))
    squares = jnp.square(times_power_of_2(P, -k))
    return times_power_of_2(jnp.sqrt(jnp.sum(squares, axis=axis, keepdims=True)), k)


def has_range_of_float32(dtype: DTypeLike) -> bool:
    """Whether numbers of `dtype` reach as far up and down as float32's: bfloat16's do."""
    return bool(jnp.finfo(dtype).minexp <= jnp.finfo(jnp.float32).minexp)  # type: ignore[no-untyped-call]
