"""Calling a backward pass that someone else has written, and taking apart what it returns."""

import linecache
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepprop._words import kind
from deepprop.activations import Activation
from deepprop.checking.plain import Passes, Problem, passes
from deepprop.costs import Output
from deepprop.layers import Layer
from deepprop.outputs import target_rows

Key = tuple[str, int]  # ("dW", 2)

M = 5  # examples: fewer than the units of each layer below the top, and equal to none of them
GRADIENTS = ("dW", "db")
OTHERS = ("Z", "A", "dA", "dZ")
FORMS = ("dict", "pairs", "layers")
# Allowed errors by the bytes of a number, relative to the largest entry. The known mistakes change
# a gradient by 9 % and more; sums of ten terms in float32 by less than 1e-5.
TOLERANCES = {8: 1e-6, 4: 1e-3, 2: 5e-2}
SMALLEST = 1e-3  # an array of smaller entries is 0, such as a sum of softmax's dZ over units


@dataclass(frozen=True)
class Run:
    """One call of backward.

    Attributes:
        right: what it should have computed.
        found: the arrays that it returned, by name and layer.
        shapes: what is said of wrong shapes and missing entries.
        error: the error that it raised, with the line, or "".
        changed: the arguments that it changed in place.
        tolerance: the allowed error, relative to the largest entry.
    """

    right: Passes
    found: dict[Key, np.ndarray]
    shapes: tuple[str, ...] = ()
    error: str = ""
    changed: tuple[str, ...] = ()
    tolerance: float = TOLERANCES[8]

    def agrees(self, name: str, l: int) -> bool:
        """Return whether a quantity has the right shape and value."""
        return self.holds((name, l), getattr(self.right, name)[l])

    def holds(self, key: Key, right: np.ndarray) -> bool:
        """Return whether the array of that name and layer was returned and is `right`."""
        found = self.found.get(key)
        return found is not None and found.shape == right.shape and self.close(found, right)

    def is_right(self) -> bool:
        """Return whether all gradients are right."""
        return all(self.agrees(name, l) for name in GRADIENTS for l in self.right.W)

    def close(self, found: np.ndarray, made: np.ndarray) -> bool:
        """Return whether arrays of one shape agree."""
        largest = max(float(np.abs(made).max(initial=0.0)), SMALLEST)
        return bool(np.abs(found - made).max(initial=0.0) <= self.tolerance * largest)


def draw(
    sizes: Sequence[int],
    hidden: Sequence[Activation],
    out: Output,
    m: int,
    rng: np.random.Generator,
) -> Problem:
    """Draw weights, biases and examples."""
    L = len(sizes) - 1
    W, b = {}, {}
    for l in range(1, L + 1):
        W[l] = rng.standard_normal((sizes[l], sizes[l - 1])) / np.sqrt(sizes[l - 1])
        b[l] = 0.5 * rng.standard_normal((sizes[l], 1))
    X = rng.standard_normal((sizes[0], m))
    return Problem(W, b, X, draw_targets(out, sizes[-1], m, rng), hidden, out)


def draw_targets(out: Output, n_L: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """Draw Y that suits an output of n_L units."""
    rows = target_rows(out, n_L)
    match out.name.partition("+")[0]:
        case "softmax":
            return np.eye(rows)[:, rng.integers(rows, size=m)]
        case "sigmoid":
            return rng.integers(2, size=(rows, m)).astype(float)
        case "exp":
            return rng.poisson(3.0, (rows, m)).astype(float)
        case _:
            return rng.standard_normal((rows, m))


def two_steps(
    backward: Callable[..., Any],
    form: str,
    hidden: Sequence[Activation],
    out: Output,
    seed: int,
    sizes: Sequence[int],
    m: int = M,
) -> list[Run]:
    """Call backward for two problems of the same sizes, one after the other."""
    rng, previous, runs = np.random.default_rng(seed), None, []
    for _ in range(2):
        previous = passes(draw(sizes, hidden, out, m, rng), previous=previous)
        runs.append(run(backward, form, previous))
    return runs


def run(backward: Callable[..., Any], form: str, right: Passes) -> Run:
    """Call backward once, and take what it returns apart."""
    problem = right.problem
    given, X, Y = _as_given(problem, form), problem.X.copy(), problem.Y.copy()
    try:
        returned = backward(given, X, Y)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is reported
        return Run(right, {}, error=_where(error, backward, _form_in_words(form, problem.L)))
    entries, said = _entries(returned, form, problem)
    found = {}
    for key, value in entries.items():
        try:
            found[key] = np.asarray(value).astype(np.float64)
        except (TypeError, ValueError):
            said.append(f"{key[0]}[{key[1]}] is {kind(value)}, should be an array.")
    said += [_shape_in_words(*key, found[key].shape, problem) for key in found]
    found = {key: P for key, P in found.items() if not _is_numbered_higher(*key, P, problem)}
    widths = [getattr(getattr(value, "dtype", None), "itemsize", 8) for value in entries.values()]
    changed = tuple(_changed(_by_name(given, form), problem, X, Y))
    tolerance = TOLERANCES.get(min(widths, default=8), TOLERANCES[2])
    return Run(right, found, tuple(filter(None, said)), changed=changed, tolerance=tolerance)


def _is_numbered_higher(name: str, l: int, P: np.ndarray, problem: Problem) -> bool:
    """Return whether dA[l] has the shape of dA[l-1], as some courses number it: not compared."""
    below = len(problem.b[l - 1]) if l > 1 else len(problem.X)
    return name == "dA" and P.shape == (below, problem.m) and below != len(problem.b[l])


def _as_given(problem: Problem, form: str) -> Any:
    """Return copies of the parameters in the form that backward takes."""
    W, b = ({l: P.copy() for l, P in of.items()} for of in (problem.W, problem.b))
    if form == "dict":
        return {f"{name}{l}": of[l] for l in W for name, of in (("W", W), ("b", b))}
    if form == "pairs":
        return [(W[l], b[l]) for l in W]
    kinds: list[Any] = [*problem.hidden, problem.output]
    return tuple(Layer(jnp.asarray(W[l]), jnp.asarray(b[l]), kinds[l - 1]) for l in W)


def _by_name(given: Any, form: str) -> dict[str, Any]:
    """Return the parameters in any form by the names W1, b1, W2, ..."""
    if form == "dict":
        return dict(given)
    pairs = [(layer.W, layer.b) if form == "layers" else layer for layer in given]
    return {
        f"{name}{l}": P
        for l, pair in enumerate(pairs, 1)
        for name, P in zip("Wb", pair, strict=True)
    }


def _changed(given: dict[str, Any], problem: Problem, X: Any, Y: Any) -> Iterator[str]:
    """Name the arguments that backward changed in place."""
    pairs = [("X", problem.X, X), ("Y", problem.Y, Y)]
    for l in problem.W:
        pairs += [(f"W[{l}]", problem.W[l], given.get(f"W{l}"))]
        pairs += [(f"b[{l}]", problem.b[l], given.get(f"b{l}"))]
    for name, before, after in pairs:
        if after is None or np.shape(after) != before.shape or not np.array_equal(after, before):
            yield name


def _form_in_words(form: str, L: int) -> str:
    """Say what parameters are: most errors of other types come from another idea of them."""
    if form == "dict":
        return f"parameters is a dict with the keys W1, b1, ..., W{L}, b{L}."
    entries = "pairs (W, b)" if form == "pairs" else "layers, each with W and b"
    return f"parameters holds {L} {entries}, layer 1 first."


def _where(error: BaseException, backward: Callable[..., Any], parameters: str) -> str:
    """Describe an error: the line of the user's code, the shapes in it, or what parameters are."""
    said = " ".join(str(error).split()) or "no message"
    if isinstance(error, KeyError):
        said = f"there is no {said}"
    file = getattr(getattr(backward, "__code__", None), "co_filename", None)
    frames = list(traceback.walk_tb(error.__traceback__))[1:]  # without the call above
    theirs = [frame for frame in frames if frame[0].f_code.co_filename == file] or frames[:1]
    if not theirs:
        return f"{type(error).__name__}: {said}\nbackward is called as backward(parameters, X, Y)."
    frame, number = theirs[-1]
    name = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
    line = linecache.getline(frame.f_code.co_filename, number).strip()
    lines = [f"{type(error).__name__} in line {number} of {name}: {said}"]
    lines += [f"    {line}"] * bool(line)
    lines += _shapes_in(line, frame.f_locals)
    if isinstance(error, KeyError | IndexError | TypeError | AttributeError):
        lines += [parameters]
    return "\n".join(lines)


def _shapes_in(line: str, values: Mapping[str, Any]) -> list[str]:
    """Say which shapes the arrays have that a line names."""
    names = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", line))
    shapes = {name: np.shape(values[name]) for name in names if hasattr(values.get(name), "shape")}
    if not shapes:
        return []
    said = ["There " + ", ".join(f"{name} is {shape}" for name, shape in shapes.items()) + "."]
    vectors = [name for name, shape in shapes.items() if len(shape) == 1]
    if vectors:
        n = shapes[vectors[0]][0]
        said += [
            f"{vectors[0]} is a vector ({n},); a column is ({n}, 1). X[:, i:i+1] keeps one example"
            " as a column, and keepdims=True a sum."
        ]
    return said


def _entries(returned: Any, form: str, problem: Problem) -> tuple[dict[Key, Any], list[str]]:
    """Return what was returned by name and layer, and what is wrong with its form."""
    L = problem.L
    if form == "dict":
        if not isinstance(returned, dict):
            return {}, [f"backward returns {kind(returned)}, should be a dict of dW1, db1, ..."]
        keys = {f"{name}{l}": (name, l) for name in GRADIENTS + OTHERS for l in range(1, L + 1)}
        found = {keys[key]: value for key, value in returned.items() if key in keys}
        missing = [
            (name, l) for l in range(1, L + 1) for name in GRADIENTS if (name, l) not in found
        ]
        return found, [_missing(f"{name}{l}", returned) for name, l in missing[:1]]
    if isinstance(returned, Layer) or not isinstance(returned, tuple | list):
        return {}, [f"backward returns {kind(returned)}, should be pairs (dW, db), layer 1 first."]
    if len(returned) != L:
        return {}, [f"backward returns {len(returned)} entries, should be {L}: one per layer."]
    entries = {}
    for l, pair in enumerate(returned, 1):
        both = (pair.W, pair.b) if isinstance(pair, Layer) else pair
        if not isinstance(both, tuple | list) or len(both) != 2:
            return {}, [f"entry {l} of what backward returns is {kind(both)}, should be (dW, db)."]
        entries["dW", l], entries["db", l] = both
    if _from_the_top(entries, problem):
        return {}, ["the pairs are in the wrong order, layer L first; layer 1 should be first."]
    return entries, []


def _from_the_top(entries: dict[Key, Any], problem: Problem) -> bool:
    """Return whether the shapes of dW are those of the layers in reverse order."""
    found = [np.shape(entries["dW", l]) for l in problem.W]
    right = [W.shape for W in problem.W.values()]
    return found != right and found == right[::-1]


def _missing(name: str, returned: dict[Any, Any]) -> str:
    keys = [str(key) for key in returned]
    similar = [key for key in keys if key.lower() == name.lower()]
    if similar:
        return f"{name} is missing; the dict has {similar[0]}: upper and lower case matter."
    return f"{name} is missing; the dict has {', '.join(keys) or 'no entries'}."


def _shape_in_words(name: str, l: int, found: tuple[int, ...], problem: Problem) -> str:
    """Say how the shape of a gradient is wrong, in words; "" if it is right, or not a gradient."""
    if name not in GRADIENTS:
        return ""
    right = (problem.W if name == "dW" else problem.b)[l].shape
    array, of, n, m = f"{name}[{l}]", f"{name[1]}[{l}]", right[0], problem.m
    if found == right:
        return ""
    if name == "db" and found == (n,):
        return f"{array} is a vector {found}, should be a column {right}: sum with keepdims=True."
    if name == "dW" and found == right[::-1]:
        return f"{array} is the transpose of {of}: {found}, should be {right}."
    if not found:
        return f"{array} is a single number, should have the shape {right} of {of}."
    if name == "dW" and found == (n, n):
        return f"{array} has the units of layer {l} twice, {found}, should have the shape {right}."
    if m in found and m not in right:
        return (
            f"{array} has the {m} examples on axis {found.index(m)}, {found}: sum over them. It"
            f" should have the shape {right} of {of}."
        )
    return f"{array} has the shape {found}, should have the shape {right} of {of}."
