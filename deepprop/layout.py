"""How matrices lie in memory, which leaves the mathematics alone.

In the equations an example is a column. In a CPU's memory its numbers are better side by side, an
example a row: so minibatches are gathered, and so XLA's products are fastest. XLA would fold a
transpose into the product beside it; `rows` tells it not to. Other devices choose for themselves.
Without this file a step of 64 layers of 256 took 1.13 (jax 0.10.2) and 1.46 times (0.12) as long as
in a scanned loop of autodiff; with it 0.98 to 1.03 times.
"""

from collections.abc import Callable

import jax
from jax import Array


def rows(P: Array) -> Array:
    """P (n, m), as it is; compiled for a CPU it lies in memory with an example a row."""
    if not _matters(P):
        return P
    laid: Array = jax.lax.optimization_barrier(P.mT)  # type: ignore[no-untyped-call]
    return laid.mT


def by_example(g: Callable[..., Array], *P: Array) -> Array:
    """g of each example's column (n, 1), for matrices (n, m), computed as they lie."""
    if not _matters(P[0]):
        return g(*P)
    columns = (Q.mT[..., None] for Q in P)  # (m, n, 1)
    return jax.vmap(g, in_axes=-3, out_axes=-3)(*columns)[..., 0].mT


def _matters(P: Array) -> bool:
    """Whether a program is being made, which alone has layouts to choose, and for a CPU."""
    return isinstance(P, jax.core.Tracer) and jax.default_backend() == "cpu"
