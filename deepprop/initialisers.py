"""Initial weights: random, with the variance that keeps A or dA at its size from layer to layer.

    LeCun et al. 1998, Efficient BackProp                    Var W = 1 / n_{l-1}
    Glorot and Bengio 2010, Understanding the difficulty     Var W = 2 / (n_{l-1} + n_l)
    He et al. 2015, Delving Deep into Rectifiers             Var W = 2 / n_{l-1}

The weights of all layers are slices of one random draw in one compiled program. Drawn layer by
layer, each layer of another shape would be a program of its own, and a person would wait a second
for a network of three layers.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


class Initialiser(NamedTuple):
    """The distribution of W: its variance, given n_{l-1} and n_l, and a name in `DRAWS`."""

    variance: Callable[[int, int], float]
    draw: str


class Wanted(NamedTuple):
    """What to draw for a layer, or for a run of K equal layers.

    Attributes:
        shape: of W: (n_l, n_{l-1}), or (K, n, n).
        draw: a name in `DRAWS`.
        deviation: the standard deviation of an entry of W.
    """

    shape: tuple[int, ...]
    draw: str
    deviation: float


VARIANCES: Mapping[str, Callable[[int, int], float]] = {
    "he": lambda n_below, n: 2 / n_below,
    "glorot": lambda n_below, n: 2 / (n_below + n),
    "lecun": lambda n_below, n: 1 / n_below,
}
# A normal distribution cut off at 2 deviations, which has 0.8796 of its deviation left.
LEFT = 0.87962566103423978
DRAWS: Mapping[str, Callable[..., Array]] = {  # with mean 0 and variance 1
    "normal": lambda key, shape, dtype: (
        jax.random.truncated_normal(key, -2, 2, shape, dtype) / jnp.asarray(LEFT, dtype)
    ),
    "uniform": lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -math.sqrt(3), math.sqrt(3)
    ),
}
INITIALISERS: Mapping[str, Initialiser] = {
    f"{name}_{draw}": Initialiser(variance, draw)
    for name, variance in VARIANCES.items()
    for draw in DRAWS
}


@partial(jax.jit, static_argnums=(1, 2))
def initial_arrays(
    key: Array, layers: tuple[Wanted, ...], dtype: DTypeLike
) -> list[tuple[Array, Array]]:
    """Return W and b = 0 of each layer or run; the W are slices of one draw per distribution."""
    ends: dict[str, int] = dict.fromkeys(DRAWS, 0)
    places = []
    for shape, draw, _ in layers:
        start, ends[draw] = ends[draw], ends[draw] + math.prod(shape)
        places.append(slice(start, ends[draw]))
    sizes = {draw: size for draw, size in ends.items() if size}
    keys = jax.random.split(key, len(sizes)) if len(sizes) > 1 else [key]
    drawn = {
        draw: DRAWS[draw](own, (size,), dtype)
        for (draw, size), own in zip(sizes.items(), keys, strict=True)
    }
    # Without this barrier XLA would compile the draw again for each slice.
    drawn = jax.lax.optimization_barrier(drawn)  # type: ignore[no-untyped-call]
    return [
        (
            drawn[draw][place].reshape(shape) * jnp.asarray(deviation, dtype),
            jnp.zeros((*shape[:-1], 1), dtype),
        )
        for place, (shape, draw, deviation) in zip(places, layers, strict=True)
    ]
