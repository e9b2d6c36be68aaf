"""A trained network as a program that runs without deepprop: StableHLO, by jax.export."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import export as jax_export
from jax.typing import ArrayLike, DTypeLike

from deepprop import network
from deepprop._arguments import check_params
from deepprop._arithmetic import wide
from deepprop._checks import missing
from deepprop.files.archive import atomic_write, check_writable
from deepprop.files.model import checked_scaling
from deepprop.layers import Params

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ROOM = 2**31 - 2**20  # bytes for the parameters: a flatbuffer ends at 2 GiB, the program is in it


def export(
    path: str | os.PathLike[str],
    params: Params,
    *,
    platforms: Sequence[str] = PLATFORMS,
    scaling: tuple[ArrayLike, ArrayLike] | None = None,
) -> None:
    """Write `predict` as a StableHLO program that runs without deepprop, whole or not at all.

    The program gives A[L] of X, or with a scaling A[L] of (X - shift) / scale, for any number m of
    examples. The parameters are constants in it. jax and flatbuffers are enough to run it:

    >>> import jax, tempfile, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.export(f"{folder}/network.jax", params)
    ...     with open(f"{folder}/network.jax", "rb") as file:
    ...         network = jax.export.deserialize(file.read())
    >>> A = jax.jit(network.call)(jnp.ones((3, 5)))
    >>> A.shape, network.in_avals[0].shape, network.platforms
    ((2, 5), (3, m), ('cpu', 'cuda', 'rocm', 'tpu'))

    X must be an array (n_0, m) of float32, or of float64 where the parameters are; float64 is cast
    to float32 where x64 is off, integers and other types are an error. A program in float64 needs
    x64. A[L] comes in the type of X. `jit` takes the program; `vmap` and autodiff do not.

    How long a file lasts, from jax's "Exporting and serializing staged-out computations": it runs
    on a jaxlib built up to 6 months after the one that wrote it, or up to 3 weeks before. So write
    it with the oldest release that is to run it (files of jax 0.10 ran on 0.12, not the reverse),
    and keep the model (`save`). jax also says to load no file that you do not trust.

    The file is as large as the parameters, once for all platforms, and some kB: 134.4 MB of
    parameters (4096-4096-4096-10, float32) gave 134.4 MB. The compiler has them to read then: the
    first call took 2.0 to 3.6 s there on two CPU cores, against 0.4 to 0.5 s for `predict`.

    Args:
        path: the file; one that is there is replaced.
        params: the layers.
        platforms: which of "cpu", "cuda", "rocm" and "tpu" the program is to run on.
        scaling: (shift, scale), each (n_0,), for a program that takes numbers as they are before
            scaling; it computes in the type of X.

    Raises:
        ValueError: a platform is unknown or named twice, or there is none; shift or scale has
            another shape, is not finite, or scale has a 0; the parameters take more than 2 GiB less
            1 MiB, as the format ends at 2 GiB; jax.export can't lower an activation of your own,
            such as one that calls back to Python; or the shape of a layer does not fit the network.
        TypeError: `params` is not a tuple of layers, platforms no sequence of names, or scaling no
            pair of real numbers.
        ImportError: flatbuffers is missing; the message names the extra that brings it.
        OSError: the file can't be written; what was there before is still there.
    """
    _require_flatbuffers()
    check_params(params)
    platforms = _checked_platforms(platforms)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    if size > ROOM:
        raise ValueError(f"params must take at most {ROOM:,} bytes in one file, got {size:,}")
    check_writable(path)
    n_0, dtype = params[0].W.shape[-1], wide(params[0].W.dtype)
    with jax.enable_x64(True) if dtype == np.float64 else nullcontext(), _no_source_paths():
        program = _program(params, _columns(scaling, n_0, dtype))
        (m,) = jax_export.symbolic_shape("m")
        X = jax.ShapeDtypeStruct((n_0, m), dtype)  # type: ignore[no-untyped-call]
        try:
            exported = jax_export.export(jax.jit(program), platforms=platforms)(X)
        except Exception as error:  # an activation of the user's own may raise anything
            raise ValueError(
                "params must have activations that jax.export can lower for"
                f" {', '.join(platforms)}: {type(error).__name__}: {error}"
            ) from error
    content = exported.serialize()
    with atomic_write(path) as file:
        file.write(content)


def _program(params: Params, scaling: tuple[Array, Array] | None) -> Callable[[Array], Array]:
    """The network with these parameters, X (n_0, m) to A[L]."""
    # As NumPy arrays they are transposed here, which takes the compiler as long as all the rest.
    params = jax.device_get(params)

    def predict(X: Array) -> Array:  # the name stands in the file, and in jax's errors
        if scaling is not None:
            shift, scale = scaling
            X = (X - shift) / scale
        return network.predict(params, X)

    return predict


def _checked_platforms(platforms: Any) -> tuple[str, ...]:
    """The platforms, each a known one: jax.export itself takes any text."""
    if isinstance(platforms, str) or not isinstance(platforms, Sequence):
        raise TypeError(f"platforms must be a sequence of names, got {platforms!r}")
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(
            f"platforms must be one or more of {', '.join(PLATFORMS)}, each once, got {platforms!r}"
        )
    return tuple(platforms)


def _columns(scaling: Any, n_0: int, dtype: DTypeLike) -> tuple[Array, Array] | None:
    """Shift and scale as columns (n_0, 1) of that type."""
    if scaling is None:
        return None
    shift, scale = map(jnp.asarray, checked_scaling(scaling, n_0, dtype))
    return shift[:, None], scale[:, None]


@contextmanager
def _no_source_paths() -> Iterator[None]:
    """Where each operation stands in the source is left out, as the paths are the user's own."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update(name, limit)  # type: ignore[no-untyped-call]


def _require_flatbuffers() -> None:
    """Raise unless flatbuffers is there, which jax.export writes and reads files with."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise missing("export", "flatbuffers", "export") from None
