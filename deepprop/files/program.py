"""Networks exported as programs that run without deepprop: StableHLO, written by jax.export.

The parameters are constants of the program, so one file is all that a user of the network needs.
The format limits them to 2 GiB, and the compiler reads them at the first call.
"""

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
from deepprop._arithmetic import portable, wide
from deepprop._checks import missing
from deepprop.files.archive import atomic_write, check_writable
from deepprop.files.extras import checked_scaling
from deepprop.layers import Params

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ROOM = 2**31 - 2**20  # bytes for the parameters: a flatbuffer has at most 2 GiB, program included


def export(
    path: str | os.PathLike[str],
    params: Params,
    *,
    platforms: Sequence[str] = PLATFORMS,
    scaling: tuple[ArrayLike, ArrayLike] | None = None,
) -> None:
    """Write `predict` as a StableHLO program that runs without deepprop, completely or not at all.

    The program computes A[L] of X, or with a scaling of (X - shift) / scale, for any number m of
    examples. The parameters are constants in it. JAX and flatbuffers are enough to run it:

    >>> import jax, tempfile, deepprop as dp, jax.numpy as jnp
    >>> params = dp.init_params(jax.random.key(0), [3, 4, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dp.export(f"{folder}/network.jax", params)
    ...     with open(f"{folder}/network.jax", "rb") as file:
    ...         network = jax.export.deserialize(file.read())
    >>> A = jax.jit(network.call)(jnp.ones((3, 5)))
    >>> A.shape, network.in_avals[0].shape, network.platforms
    ((2, 5), (3, m), ('cpu', 'cuda', 'rocm', 'tpu'))

    X must be an array (n_0, m) of float32, or of float64 if the parameters are. With x64 off,
    float64 is cast to float32; integers and other dtypes are an error. A program in float64 needs
    x64. A[L] has the dtype of X. `jit` takes the program; `vmap` and autodiff do not.

    JAX's "Exporting and serializing staged-out computations" says how long a file lasts: it runs on
    a jaxlib built up to 6 months after the one that wrote it, or up to 3 weeks before. So write it
    with the oldest release that is to run it (files of jax 0.10 ran on 0.12, not the reverse), and
    keep the model (`save`). JAX also says not to load files that you do not trust.

    The file is as large as the parameters, once for all platforms, plus some kB: 134.4 MB of
    parameters (4096-4096-4096-10, float32) gave 134.4 MB. The compiler has to read them: the first
    call took 2.0 to 3.6 s there on two CPU cores, against 0.4 to 0.5 s for `predict`.

    Args:
        path: the file; an existing one is replaced.
        params: the layers.
        platforms: which of "cpu", "cuda", "rocm" and "tpu" the program is to run on.
        scaling: (shift, scale), each (n_0,), for a program that takes raw inputs; it is computed in
            the dtype of X.

    Raises:
        ValueError: a platform is unknown or named twice, or there is none; shift or scale has
            another shape or is not finite, or scale has a 0; the parameters take more than 2 GiB
            minus 1 MiB, the limit of the format; jax.export can't lower your own activation, such
            as one that calls back to Python; or the shape of a layer does not fit the network.
        TypeError: `params` is not a tuple of layers, `platforms` is not a sequence of names, or
            `scaling` is not a pair of real numbers.
        ImportError: flatbuffers is missing; the message says what to install.
        OSError: the file can't be written; an existing one is not changed.
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
            with portable():
                exported = jax_export.export(jax.jit(program), platforms=platforms)(X)
        except Exception as error:  # the user's activation may raise anything
            raise ValueError(
                "params must have activations that jax.export can lower for"
                f" {', '.join(platforms)}: {type(error).__name__}: {error}"
            ) from error
    content = exported.serialize()
    with atomic_write(path) as file:
        file.write(content)


def _program(params: Params, scaling: tuple[Array, Array] | None) -> Callable[[Array], Array]:
    """Return the network with these parameters as a function of X (n_0, m).

    It takes the parameters as NumPy arrays, so that NumPy transposes them here. In the compiler
    that would take as long as all the rest.
    """
    params = jax.device_get(params)

    def predict(X: Array) -> Array:  # this name appears in the file and in JAX's errors
        if scaling is not None:
            shift, scale = scaling
            X = (X - shift) / scale
        return network.predict(params, X)

    return predict


def _checked_platforms(platforms: Any) -> tuple[str, ...]:
    """Return the platforms after a check that jax.export leaves out: it accepts any text."""
    if isinstance(platforms, str) or not isinstance(platforms, Sequence):
        raise TypeError(f"platforms must be a sequence of names, got {platforms!r}")
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(
            f"platforms must be one or more of {', '.join(PLATFORMS)}, each once, got {platforms!r}"
        )
    return tuple(platforms)


def _columns(scaling: Any, n_0: int, dtype: DTypeLike) -> tuple[Array, Array] | None:
    """Return shift and scale as columns (n_0, 1) in that dtype."""
    if scaling is None:
        return None
    shift, scale = map(jnp.asarray, checked_scaling(scaling, n_0, dtype))
    return shift[:, None], scale[:, None]


@contextmanager
def _no_source_paths() -> Iterator[None]:
    """Leave source locations out of the program: they hold paths of the user's machine."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update(name, limit)  # type: ignore[no-untyped-call]


def _require_flatbuffers() -> None:
    """Raise unless flatbuffers is installed, which jax.export needs to write and read files."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise missing("export", "flatbuffers", "export") from None
