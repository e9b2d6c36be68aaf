"""The folders are the architecture: dependencies run one way, and no name hides a module."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import deepprop as dp

PACKAGE = Path(dp.__file__).parent
FACE = {"__init__.py", "__main__.py", "data.py"}  # they only re-export
# Each room may import from those before it; `files` and `checking` only from the page.
ROOMS = ["page", "files", "checking", "tables", "signals", "optimizers", "scale", "training"]
ROOMS += ["sklearn", "command"]
ROLES = {
    "signals": {"page", "signals"},
    "checking": {"page", "checking"},
    "files": {"page", "files"},
    "tables": {"page", "files", "tables"},
}  # narrower than by the order


def room_of(module):
    """Return the room of a module of deepprop: its folder, or the page."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "page"


def imports(path):
    """Yield the modules of deepprop that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "deepprop")


FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if str(path.relative_to(PACKAGE)) not in FACE
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_room_and_those_below(path):
    own = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "page"
    allowed = ROLES.get(own, set(ROOMS[: ROOMS.index(own) + 1]))
    for name in imports(path):
        if name == "deepprop.deepprop" or name.split(".")[1:] == [] or name == "deepprop":
            assert own == "command", f"{path.name} imports the whole package"
            continue
        assert room_of(name) in allowed, f"{own} may not import {name}"


def test_imports_have_no_cycle():
    graph = {}
    for path in FILES:
        module = "deepprop." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found = set(imports(path))
        graph[module] = found | {name.rpartition(".")[0] for name in found}
    done = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way, module])
        if module in graph and module not in done:
            for below in graph[module]:
                visit(below, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def modules():
    found = pkgutil.walk_packages([str(PACKAGE)], "deepprop.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_no_module_is_hidden_by_a_function_of_its_name(name):
    parent, _, own = name.rpartition(".")
    module = importlib.import_module(name)
    assert getattr(importlib.import_module(parent), own) is module


@pytest.mark.parametrize("room", ["signals", "optimizers", "scale", "training", "files"])
def test_the_names_of_a_room_are_public(room):
    group = getattr(dp, room)
    assert group.__all__ == sorted(group.__all__, key=lambda name: (name[0].islower(), name))
    for name in group.__all__:
        assert getattr(dp, name) is getattr(group, name)
        assert name in dp.__all__


NAMES_OF_0_1_0 = [
    "Activation",
    "Cache",
    "Cost",
    "Diagnosis",
    "Factors",
    "Fit",
    "GradientError",
    "GradientReport",
    "Layer",
    "MemoryPlan",
    "NoiseScale",
    "Output",
    "Privacy",
    "TrainingError",
    "activation",
    "balanced_weights",
    "by_quadratic_model",
    "check_gradients",
    "clipped_backward",
    "cost",
    "data_parallel",
    "diagnose",
    "diagnosis_of",
    "epsilon_spent",
    "error_signals",
    "export",
    "findings",
    "fit",
    "fit_batches",
    "fit_ensemble",
    "forward",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "gradient_noise_scale",
    "gradient_variance",
    "gradients",
    "in_backward",
    "init_params",
    "kfac",
    "kfac_factors",
    "load",
    "load_extra",
    "manual_backward",
    "memory_plan",
    "mesh",
    "noise_for",
    "output",
    "per_example_gradients",
    "per_example_norms",
    "per_example_products",
    "place",
    "place_examples",
    "plot_layers",
    "predict",
    "progress_bar",
    "sampled_targets",
    "save",
    "scale_by_kfac",
    "squared_gradients",
    "stack",
    "train_step",
    "unstack",
    "with_products",
]


def test_every_name_of_0_1_0_exists():
    assert len(NAMES_OF_0_1_0) == 63
    for name in NAMES_OF_0_1_0:
        assert callable(getattr(dp, name))
        assert name in dp.__all__


def test_the_public_names_exist_and_are_listed():
    assert dp.__all__ == sorted(set(dp.__all__), key=lambda name: (name[0].islower(), name))
    for name in dp.__all__:
        assert getattr(dp, name) is not None
