"""Compile in another thread what a short run needs later.

Most of a short run is compilation, and one program does not occupy two processors. So while the
network is drawn and the training step compiles, a second thread compiles the measuring of the
held-out examples and the gradient check. Only the shapes of the parameters matter for that: the
thread runs both on random numbers, and later calls find their programs compiled. In a long run of a
large network compilation matters little, but the memory of a second network does, so there is no
such thread.
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from deepprop.layers import Params

LARGEST = 10**7  # parameters of a network for which programs are compiled ahead


def compile_ahead(outline: Params, *uses: Callable[[Params], Any]) -> threading.Thread | None:
    """Call each of `uses` on random parameters in another thread, and drop what it returns.

    Args:
        outline: the layers, as shapes and dtypes from `jax.eval_shape`.
        uses: functions of params, in the order in which the run needs them. An error ends the
            thread, and is left to the call that needs the result.

    Returns:
        The thread, which has started; None for a large network, or without any use.
    """
    if not uses or sum(leaf.size for leaf in jax.tree.leaves(outline)) > LARGEST:
        return None

    def run() -> None:
        with suppress(Exception):
            params = _random(outline)
            for use in uses:
                use(params)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _random(outline: Params) -> Params:
    """Return layers of that outline, drawn without a program to compile.

    The numbers are so small that A stays finite in a network of any depth.
    """
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> Any:
        size = 0.01 / math.sqrt(leaf.shape[-1])
        return jax.device_put((size * rng.standard_normal(leaf.shape)).astype(leaf.dtype))

    params: Params = jax.tree.map(drawn, outline)
    return params
