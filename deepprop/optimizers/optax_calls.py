"""Calls of the user's optimizer; if it fails, a one-line error says what to use instead."""

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import jax
import optax

from deepprop.layers import Params

HERE = str(Path(__file__).parents[1])
# What the text of an error reveals about what an optimizer needs, and what to use instead.
NEEDS = {
    "value_fn": "a line search evaluates the cost again, which fit can't pass to it: use"
    " optax.lbfgs(learning_rate, linesearch=None), or dp.kfac()",
    "'fast'": "optax.lookahead needs params in pairs, which fit does not have: use its fast"
    " optimizer alone, or optax.contrib.schedule_free",
    "grad_fn": "optax.contrib.sam in opaque mode computes gradients again, which fit can't pass to"
    " it: use opaque_mode=False, by itself",
    "got an unexpected keyword argument": "its update takes none of value, cache, Y and weights:"
    " use it by itself instead of in a chain, or add **extra_args to its update",
    "obj_fn": "it differentiates the cost, which fit can't pass to it: use dp.kfac()",
    "batch dimension in the 0th axis": "it needs one gradient per example: use fit(...,"
    " privacy=dp.Privacy(...)), or clipped_backward as fit's backward",
    "MaskedNode": "it needs every layer: outside of optax.masked, multi_transform and partition",
}


def started(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """Return `optimizer.init(params)`.

    Raises:
        ValueError, TypeError: it fails. The message is one line and, if known, says what to use.
    """
    try:
        return optimizer.init(params)
    except Exception as error:
        raise explained(error, "init", "params") from error


def updated(
    optimizer: optax.GradientTransformation, grads: Params, state: Any, params: Params, **extra: Any
) -> tuple[Params, Any]:
    """Return `optimizer.update(grads, state, params)`, passing as much of `extra` as it takes.

    Raises:
        ValueError, TypeError: it fails. The message is one line and, if known, says what to use.
    """
    looks = optax.with_extra_args_support(optimizer)
    takes = signature(looks.update).parameters
    if all(p.kind != Parameter.VAR_KEYWORD for p in takes.values()):  # such as that of sam
        extra = {name: value for name, value in extra.items() if name in takes}
    try:
        updates, state = looks.update(grads, state, params, **extra)
    except Exception as error:
        handed = ", ".join(["updates", "state", "params", *extra])
        raise explained(error, "update", handed) from error
    found, due = jax.tree.structure(updates), jax.tree.structure(params)
    if found != due:  # type: ignore[operator]
        kind = type(updates).__name__
        raise TypeError(f"optimizer must return updates like params from its update, got a {kind}")
    return updates, state


def check_state(state: Any, new: Any) -> None:
    """Raise unless an update keeps the structure, shapes and dtypes of the optimizer's state.

    Raises:
        TypeError: it does not, and a compiled loop can't carry the state.
    """
    pair = [jax.tree_util.tree_flatten_with_path(tree) for tree in (state, new)]
    must = "optimizer must keep the structure and dtypes of its state in its update"
    if pair[0][1:] != pair[1][1:]:
        raise TypeError(f"{must}, got {_line(pair[1][1])} from {_line(pair[0][1])}")
    for (path, before), (_, after) in zip(pair[0][0], pair[1][0], strict=True):
        was, now = (jax.eval_shape(lambda leaf=leaf: leaf) for leaf in (before, after))
        if (was.shape, was.dtype) != (now.shape, now.dtype):
            raise TypeError(
                f"{must}, got {now.dtype} of shape {now.shape} from {was.dtype} of shape"
                f" {was.shape} at state{jax.tree_util.keystr(path)}"
            )


def explained(error: Exception, call: str, handed: str) -> Exception:
    """Return the error as one line, with what to use instead; deepprop's own errors unchanged."""
    if isinstance(error, ValueError | TypeError) and _is_own(error):
        return error
    text = f"{type(error).__name__}: {_line(error)}"
    for sign, advice in NEEDS.items():
        if sign in text:
            return ValueError(f"optimizer can't run here, as {advice} ({text})")
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"optimizer failed in its {call}, which receives {handed}: {text}")


def _line(what: Any) -> str:
    return (str(what).strip().splitlines() or [""])[0][:200]


def _is_own(error: Exception) -> bool:
    """Return whether deepprop raised it on purpose, and not by a call with wrong arguments."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    in_file = "" if frame is None else frame.tb_frame.f_code.co_filename
    return in_file.startswith(HERE) and in_file != __file__ and "()" not in _line(error)
