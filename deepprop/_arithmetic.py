"""The operations of the equations on a machine: in which dtype, and with which memory layout.

In the equations an example is a column. In memory a row is better (`rows`), sums need a wider dtype
than their terms, and the factors of a product may be rounded first (`product`). The equations
should not show any of that, so they call these verbs:

    times(W, A)             W A                   one column per example
    outer(dZ, A)            dZ A^T                a sum over examples
    total(dZ)               sum_i dz_i            a sum over examples
    elementwise(g, Z)       g(Z)
    hadamard(dA, slope)     dA * slope
    times_each(w, dZ)       w_i dz_i

`multiply(types)` makes `times` for given dtypes, and `add_up(types)` makes `outer` and `total`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

# JAX's elementwise primitives. One that is missing here costs speed, not correctness.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma
    log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin
    sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905
)

Multiply = Callable[[Array, Array], Array]


class Types(NamedTuple):
    """The dtype of a result, and the one to which the factors of a product are rounded, or None."""

    result: np.dtype
    factors: np.dtype | None


def multiply(types: Types, *, transposed: bool = False) -> Callable[[Array, Array], Array]:
    """Return the verb times(W, A) = W A, for A with one example per column.

    Args:
        types: of the result and of the factors.
        transposed: whether W is the transpose of a matrix in memory, as in W[l]^T dZ[l].
    """

    def times(W: Array, A: Array) -> Array:
        if not transposed and types.factors is None and _few(W, A):
            return rows(_barrier(jnp.matmul(W, A)).astype(types.result))
        return rows(product(W, A, *types, narrow=_into_rows if transposed else _by_matrix))

    return times


def _few(W: Array, A: Array) -> bool:
    """Return whether A (n_below, m) has so few examples that W (n, n_below) should stay in place.

    XLA's CPU backend copies the right factor of a product into blocks. In W A that is A; in the
    usual A^T W^T (`product`) it is W, which costs more than the product itself if m is small. The
    result W A then has to be transposed, but it is small, too. Measured for 32 examples: 0.46 ms
    instead of 0.72 for 1024 units and inputs, and 4.5 instead of 8.9 for 2560 units and 5120
    inputs. If m is half of n, the transposition costs more than it gains.
    """
    m = A.shape[-1]
    known = isinstance(m, int)  # in an exported program it is a symbol
    return known and _matters(A) and W.dtype == wide(W.dtype) and 4 * m <= min(W.shape[-2:])


def add_up(types: Types) -> tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]:
    """Return the verbs outer(dZ, A) = dZ A^T = sum_i dz_i a_i^T, and total(dZ) = sum_i dz_i."""

    def outer(dZ: Array, A: Array) -> Array:
        return product(dZ, A.mT, *types, narrow=_summed)

    def total(dZ: Array) -> Array:
        return jnp.sum(dZ, axis=-1, keepdims=True, dtype=types.result)

    return outer, total


def hadamard(P: Array, Q: Array) -> Array:
    """Return P * Q, in the dtype of P."""
    return rows(P * Q.astype(P.dtype))


def times_each(w: Array, dZ: Array) -> Array:
    """Multiply column i of dZ (n_l, m) by w_i, and keep the dtype of dZ."""

    def times(w_i: Array, dz: Array) -> Array:
        return (w_i * dz.astype(w.dtype)).astype(dZ.dtype)

    return rows(elementwise(times, w[None, :], dZ))


def rows(P: Array) -> Array:
    """Return P (n, m) unchanged; on a CPU, its examples become rows in memory.

    On a CPU the entries of one example should be adjacent: minibatches are gathered that way, and
    XLA's products are fastest that way. XLA would fold a plain transpose into the neighbouring
    product; the barrier prevents it. Other devices choose their own layout. Without this, a step of
    64 layers of 256 units took 1.13 times (jax 0.10.2) and 1.46 times (0.12) as long as in a
    scanned loop with autodiff; with it, 0.98 to 1.03 times.
    """
    if not _matters(P):
        return P
    return _barrier(P.mT).mT


def elementwise(g: Callable[..., Array], *P: Array) -> Array:
    """Return g(*P) for matrices (n, m), computed in their memory layout.

    To follow the layout, g is mapped over examples, so it sees one column (n, 1) at a time. A
    user's g may depend on other columns or on a column's position, for instance if it centres over
    the batch or multiplies by a mask (n, m). Mapped, it would be another function. It is therefore
    applied to whole matrices unless its jaxpr shows that it is elementwise.
    """
    if not _matters(P[0]) or not (_is_ours(g) or _is_elementwise(g, P)):
        return g(*P)
    columns = (Q.mT[..., None] for Q in P)  # (m, n, 1)
    return jax.vmap(g, in_axes=-3, out_axes=-3)(*columns)[..., 0].mT


def _barrier(P: Array) -> Array:
    """Return P unchanged, as an array that XLA has to make."""
    made: Array = lax.optimization_barrier(P)  # type: ignore[no-untyped-call]
    return made


def _is_ours(g: Callable[..., Array]) -> bool:
    return str(getattr(g, "__module__", "")).startswith("deepprop.")


def _is_elementwise(g: Callable[..., Array], P: Sequence[Array]) -> bool:
    """Return whether g's jaxpr proves that each entry of g(*P) depends on that entry of P alone."""
    matrices = jax.make_jaxpr(g)(*P)
    if not all(jnp.size(c) == 1 for c in matrices.consts) or not _goes_by_number(matrices.jaxpr):
        return False
    columns = jax.make_jaxpr(g)(*(Q[:, :1] for Q in P))  # another program if g reads Z.shape
    return _steps(matrices.jaxpr) == _steps(columns.jaxpr)


def _steps(jaxpr: Any) -> list[str]:
    """List the operations and constants of a jaxpr, without shapes."""
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
    if called:  # a call, as of jnp.where; in a loop over rows the shapes differ
        alike = all(_shapes(inner.invars) == _shapes(eqn.invars) for inner in called)
        return alike and all(map(_goes_by_number, called))
    if eqn.primitive.name == "broadcast_in_dim":
        return bool(eqn.invars[0].aval.size == 1)
    return eqn.primitive.name in ELEMENTWISE


def _called(eqn: Any) -> list[Any]:
    """Return the jaxprs among an equation's parameters."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [jaxpr for v in values if hasattr(jaxpr := getattr(v, "jaxpr", v), "eqns")]


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [v.aval.shape for v in variables]


def _matters(P: Array) -> bool:
    """Return whether the layout can be chosen and matters: in a traced program, on a CPU."""
    return isinstance(P, jax.core.Tracer) and jax.default_backend() == "cpu"


def wide(dtype: DTypeLike) -> np.dtype:
    """Return the dtype in which `dtype` is summed: float32, or `dtype` itself if it is wider."""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def product(
    P: Array,
    Q: Array,
    dtype: DTypeLike | None = None,
    factors: DTypeLike | None = None,
    *,
    narrow: Multiply | None = None,
) -> Array:
    """Return P Q on the last two axes: summed in the wide dtype, then rounded once to `dtype`.

    `dtype` is that of P by default. With `factors`, P and Q are rounded to that dtype first. The
    product is computed as (Q^T P^T)^T: if Q has one example per column, the rows of Q^T P^T are
    examples, as they should be in memory (`rows`). `narrow` multiplies narrow factors on a CPU that
    is fast at it, `_into_rows` by default.
    """
    dtype = P.dtype if dtype is None else dtype
    narrow = narrow or _into_rows
    if factors is None:
        return _product(P, Q, narrow).astype(dtype)
    (P, p), (Q, q) = _rounded(P, factors), _rounded(Q, factors)
    PQ = _product(P, Q, narrow)
    missing = sum(exponent for exponent in (p, q) if exponent is not None)
    if isinstance(missing, Array):
        PQ = times_power_of_2(PQ, missing)
    return PQ.astype(dtype)


def _product(P: Array, Q: Array, narrow: Multiply) -> Array:
    """Return P Q in the wide dtype, for P and Q of one dtype."""
    if P.dtype == wide(P.dtype):
        return _transposed(P, Q)
    on_cpu = narrow if _is_fast_on_cpu(P.dtype) else _widened
    PQ: Array = lax.platform_dependent(P, Q, cpu=on_cpu, default=_transposed)
    return PQ


def _transposed(P: Array, Q: Array) -> Array:
    """Return P Q as (Q^T P^T)^T."""
    return _matmul(Q.mT, P.mT).mT


def _widened(P: Array, Q: Array) -> Array:
    """Return P Q of factors that are widened first, which is exact.

    XLA's CPU backend lacks narrow products of some layouts.
    """
    return _transposed(P.astype(wide(P.dtype)), Q.astype(wide(Q.dtype)))


def _into_rows(P: Array, Q: Array) -> Array:
    """Return P Q of narrow factors as (Q^T P^T)^T."""
    return _barrier(_matmul(_in_rows(Q.mT), _in_rows(P.mT))).mT


def _by_matrix(W: Array, A: Array) -> Array:
    """Return W A of narrow factors, W in rows: the rows A^T W^T, without a transpose of W."""
    batch = tuple(range(W.ndim - 2))
    axes = ((A.ndim - 1,), (W.ndim - 1,)), (batch, batch)
    factors = _in_rows(A.mT), _in_rows(W)
    return _barrier(lax.dot_general(*factors, axes, preferred_element_type=wide(W.dtype))).mT


def _summed(dZ: Array, A_T: Array) -> Array:
    """Return dZ A^T of narrow factors, in rows, as W lies.

    An optimizer reads dW beside W. With dW as the transpose of a matrix in memory, a step of Adam
    took 35 instead of 13 ms for 784-1024-1024-1024-10 and 512 examples.
    """
    return _barrier(_matmul(_in_rows(dZ), _in_rows(A_T)))


def _in_rows(P: Array) -> Array:
    """Return P unchanged; its rows are rows in memory, copied if they are not.

    XLA's CPU backend multiplies narrow factors as they are if both and the result lie in rows, as
    P Q or P Q^T. Otherwise it widens them first, or finds no kernel and fails when the program
    runs. A barrier does not help: XLA folds a transpose that comes before it into the product. A
    constraint on the layout stays where it is. Measured on two cores with AMX, for 512 examples and
    1024 units: 0.9 ms; in float32 4.3 ms, and widened 4.7 ms.
    """
    from jax.experimental.layout import Layout, with_layout_constraint

    rows_first = Layout(tuple(range(P.ndim)))
    laid: Array = with_layout_constraint(P, rows_first)  # type: ignore[no-untyped-call]
    return laid


def _matmul(P: Array, Q: Array) -> Array:
    return jnp.matmul(P, Q, preferred_element_type=wide(P.dtype))


def _is_fast_on_cpu(dtype: DTypeLike) -> bool:
    """Return whether a CPU that compiles this program should multiply such factors unwidened."""
    return dtype == jnp.bfloat16 and not _portable.get() and _cpu_has_bfloat16()


@cache
def _cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 numbers, as far as Linux says, and XLA uses it.

    Earlier releases of XLA have no kernel for some sizes within a loop or a branch.
    """
    if jax.__version_info__ < (0, 10, 2):
        return False
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "amx_bf16" in words or "avx512_bf16" in words


_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Trace programs that run on other machines, too."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def _rounded(P: Array, dtype: DTypeLike) -> tuple[Array, Array | None]:
    """Round P to `dtype` after scaling; return it and the exponent k of the missing 2^k, or None.

    float16 covers 6e-8 to 65504, and dZ of a deep network leaves that range. The largest finite
    entry of P is therefore scaled to about 2^14 first; the others keep their ratio to it. This is
    the usual loss scale of float16, but computed for each product, so it can neither overflow nor
    be too small.
    """
    if P.dtype == dtype or has_range_of_float32(dtype):
        return P.astype(dtype), None
    P = P.astype(jnp.float32)
    largest = jnp.max(jnp.where(jnp.isfinite(P), jnp.abs(P), 0))
    exponent = jnp.minimum(13 - _exponent(largest), 126)  # 2^-exponent must exist, too
    return (P * _power_of_2(exponent)).astype(dtype), -exponent


def over_largest(w: Array) -> Array:
    """Divide w by a power of 2, exactly, so that its largest entry, if not 0, is in [1/2, 1)."""
    return times_power_of_2(w, -1 - _exponent(jnp.max(jnp.abs(w))))


def times_power_of_2(P: Array, k: Array) -> Array:
    """Return 2^k P, multiplied in two steps: 2^k itself may be out of range."""
    half = k // 2
    return P * _power_of_2(half, P.dtype) * _power_of_2(k - half, P.dtype)


def _exponent(x: Array) -> Array:
    """Return k with 2^k <= x < 2^(k+1) for x > 0; the smallest k for subnormal x."""
    of = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    bits: Array = lax.bitcast_convert_type(x, _integers(x.dtype))
    return (bits >> of.nmant) - (of.maxexp - 1)


def _power_of_2(k: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Return 2^k in float32 or float64, exact on every device: made from the bits of k."""
    of = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    bits = (k + (of.maxexp - 1)).astype(_integers(dtype)) << of.nmant
    power: Array = lax.bitcast_convert_type(bits, dtype)
    return power


def _integers(dtype: DTypeLike) -> Any:
    return jnp.int32 if np.dtype(dtype).itemsize == 4 else jnp.int64


def root_of_squares(P: Array, axis: int | None = None) -> Array:
    """Return sqrt(sum P^2) along an axis or over all entries, in the wide dtype; the axis stays.

    The squares of 2e19 and of 1e-23 are out of float32's range. P is therefore scaled to about 1
    first, by a power of 2, which is exact. The power must depend on P: XLA would combine a constant
    factor with the square, and the squares would be out of range again.
    """
    P = P.astype(wide(P.dtype))
    k = _exponent(jnp.max(jnp.abs(P), axis=axis, keepdims=True))
    squares = jnp.square(times_power_of_2(P, -k))
    return times_power_of_2(jnp.sqrt(jnp.sum(squares, axis=axis, keepdims=True)), k)


def has_range_of_float32(dtype: DTypeLike) -> bool:
    """Return whether `dtype` covers the range of float32, as bfloat16 does."""
    return bool(jnp.finfo(dtype).minexp <= jnp.finfo(jnp.float32).minexp)  # type: ignore[no-untyped-call]
