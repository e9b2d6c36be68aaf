"""What the commands share: objects named by options, model files, and the printing of values."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import deepprop as dp
from deepprop._arguments import output_of
from deepprop.command.data import Scaling
from deepprop.files.extras import checked_classes, checked_scaling
from deepprop.layers import Layer, Params, depth, is_stack
from deepprop.tables.preparation import Preparation, from_arrays

ADVICE = "(dp.save(..., scaling=...) stores one)"


def resolve(name: str) -> Any:
    """Return the object that `module:name` or `file.py:name` names; any other name unchanged.

    The module may be in the current folder.

    Raises:
        ValueError: the module can't be imported, or has no such name.
    """
    if ":" not in name:
        return name
    module, attribute = name.rsplit(":", 1)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = _module_in(Path(module)) if module.endswith(".py") else import_module(module)
    except (Exception, SystemExit) as error:  # the module is the user's, and may raise anything
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from None
    if not hasattr(found, attribute):
        raise ValueError(f"{name}: the module {module} has no {attribute}")
    return getattr(found, attribute)


def _module_in(file: Path) -> ModuleType:
    """Import a file as a module; modules beside it can be imported, too."""
    sys.path.insert(0, str(file.resolve().parent))
    spec = spec_from_file_location(f"deepprop_user_{file.stem}", file)  # no other module's name
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} can't be imported")
    module = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def hidden_activations(text: str | None, layers: int) -> Any:
    """Return the activations that --activation names, one per hidden layer."""
    names = [resolve(name.strip()) for name in (text or "relu").split(",")]
    return names * layers if len(names) == 1 else names


def describe(params: Params) -> str:
    """Describe a network by the units and the activation of each layer, in one line."""
    return " - ".join([str(params[0].W.shape[-1]), *map(_describe_layer, params)])


def _describe_layer(layer: Layer) -> str:
    """Describe a layer, such as "20 x 64 relu residual" for a stack."""
    entry = f" {layer.normalize} norm" * bool(layer.normalize)
    entry += f" dropout {layer.dropout:g}" * bool(layer.dropout)
    times = f"{depth(layer)} x " if is_stack(layer) else ""
    residual = " residual" if layer.residual else ""
    return f"{times}{layer.W.shape[-2]} {layer.activation.name}{residual}{entry}"


def metric_of(params: Params) -> tuple[str, Callable[[Array, Array], Array]]:
    """Return the name of the metric that suits the output, and the function of (A[L], Y)."""
    return METRICS.get(output_of(params).name, ("rmse", _rmse))


def _share_of_correct_classes(A: Array, Y: Array) -> Array:
    return jnp.mean(jnp.argmax(A, 0) == jnp.argmax(Y, 0))


def _share_of_correct_yes_and_no(A: Array, Y: Array) -> Array:
    return jnp.mean((A > 0.5) == (Y > 0.5))


def _rmse(A: Array, Y: Array) -> Array:
    return jnp.sqrt(jnp.mean((A - Y) ** 2))


# One object per metric, because programs are compiled for each object.
METRICS: Mapping[str, tuple[str, Callable[[Array, Array], Array]]] = {
    "softmax": ("accuracy", _share_of_correct_classes),
    "sigmoid": ("accuracy", _share_of_correct_yes_and_no),
}


def format_score(metric: str, value: float) -> str:
    """Return a value of the metric as text."""
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"


def scaling_and_classes(path: str, params: Params) -> tuple[Scaling, np.ndarray | None, str]:
    """Read the scaling and the class labels from a model file.

    Returns:
        The scaling; the classes (n_L,), or None if the network has none; and a line to print if the
        file has no scaling, otherwise "".

    Raises:
        ValueError: the file's scaling or classes do not fit the network.
    """
    extra = dp.load_extra(path)
    n_0, n_L = params[0].W.shape[-1], params[-1].W.shape[0]
    pair = [extra[name] for name in ("shift", "scale") if name in extra]
    note = "" if pair else f"no scaling in {path}: inputs are not scaled {ADVICE}\n"
    classes = extra.get("classes")
    if classes is None and output_of(params).name == "softmax":
        classes = np.arange(n_L)
    try:
        if len(pair) == 1:
            raise ValueError("has shift or scale alone, must have both or neither")
        scaling = checked_scaling(pair or (np.zeros(n_0), np.ones(n_0)), n_0, np.float64)
        # The label of a single unit would be the same for all examples.
        classes = None if classes is None or n_L == 1 else checked_classes(classes, n_L)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return Scaling(*scaling), classes, note


def preparation_of(path: str) -> Preparation | None:
    """Return the preparation of the table on which a model was trained; None if it was none.

    Raises:
        ValueError: it is damaged; the message names the file.
    """
    try:
        return from_arrays(dp.load_extra(path))
    except ValueError as error:
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None


def first_ten(items: np.ndarray) -> str:
    """Return the first ten items as text, separated by commas."""
    return ", ".join(str(item) for item in items[:10]) + (", ..." if len(items) > 10 else "")
