"""No autodiff under deepprop/: in the source, in jaxprs, or at run time."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepprop as dp
from tests.problems import HIDDEN, OUTPUTS, problem
from tests.readers import read

AUTODIFF = {
    "grad", "value_and_grad", "vjp", "jvp", "jacfwd", "jacrev", "jacobian", "hessian", "linearize",
    "linear_transpose", "custom_jvp", "custom_vjp", "custom_gradient", "defjvp", "defvjp",
}  # fmt: skip
SOURCES = sorted(Path(dp.__file__).parent.rglob("*.py"))


def names_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # getattr(jax, "grad")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_source_names_autodiff(path):
    own = {"jacobian"} if path.name == "__init__.py" else set()  # dp.jacobian walks down by hand
    assert not set(names_in(ast.parse(path.read_text()))) & (AUTODIFF - own)
    assert "jax.grad" not in path.read_text()


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def everything(params, X, Y, weights):
    A, cache = dp.forward(params, X)
    signals = dp.error_signals(cache, Y)
    grads = dp.gradients(cache, signals, weights)
    return A, dp.predict(params, X), dp.cost(cache, Y, weights), grads, dp.manual_backward(cache, Y)


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_jaxpr_has_a_custom_rule(output):
    args = problem(0, [4] + [5] * len(HIDDEN) + [3], 6, HIDDEN, output, True, np.float32)
    found = set(primitives(jax.make_jaxpr(everything)(*args).jaxpr))
    assert "dot_general" in found
    assert not {name for name in found if "custom" in name or "jvp" in name or "vjp" in name}


def capabilities(params, X, Y, weights, key):
    """Everything that reads (cache, dZ), with targets drawn from the network, and K-FAC."""
    _, cache = dp.forward(params, X, key=key)
    found = read(cache, dp.sampled_targets(key, cache), weights)
    kfac, grads = dp.kfac(0.1), found["clipped_backward"]
    return found, kfac.update(grads, kfac.init(params), params, factors=found["kfac_factors"])


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity", "exp"])
def test_no_jaxpr_of_a_signal_has_a_custom_rule(output):
    params, *data = problem(0, [4] + [5] * len(HIDDEN) + [3], 6, HIDDEN, output, True, np.float32)
    params = tuple(replace(layer, normalize="layer", dropout=0.2) for layer in params)
    found = set(primitives(jax.make_jaxpr(capabilities)(params, *data, jax.random.key(0)).jaxpr))
    assert {"cholesky", "random_bits"} <= found
    assert not {name for name in found if "custom" in name or "jvp" in name or "vjp" in name}


def test_the_jaxpr_scan_finds_a_custom_rule():
    assert "custom_jvp_call" in set(primitives(jax.make_jaxpr(jax.jit(jax.nn.relu))(1.0).jaxpr))


def test_no_jaxpr_of_a_training_step_has_a_custom_rule():
    params, X, Y, w = problem(0, [4, 5, 3], 6, "gelu", weighted=True, dtype=np.float32)
    optimizer = optax.sgd(0.1)
    step = dp.train_step(optimizer)
    jaxpr = jax.make_jaxpr(step)(params, optimizer.init(params), X, Y, w)
    assert not {name for name in primitives(jaxpr.jaxpr) if "custom" in name}


WITHOUT_AUTODIFF = """
import sys, jax
from jax._src import api
from jax._src.interpreters import ad

def refuse(*args, **kwargs):
    raise AssertionError("autodiff was called")

kept = jax.grad, jax.jvp, jax.hessian
for name in ("grad", "value_and_grad", "vjp", "jvp", "jacfwd", "jacrev", "jacobian", "hessian",
             "linearize"):
    setattr(jax, name, refuse)
for module in (api, ad):  # what those and every other way into autodiff call
    for name in ("jvp", "_jvp", "vjp", "_vjp", "linearize", "linearize_jaxpr", "jvp_jaxpr",
                 "direct_linearize", "linearize_subtrace", "jvp_subtrace", "backward_pass"):
        if hasattr(module, name):
            setattr(module, name, refuse)
for autodiff in kept:
    try:
        autodiff(lambda x: x * x, *([(1.0,), (1.0,)] if autodiff is kept[1] else []))(1.0)
    except AssertionError:
        continue
    sys.exit(f"{autodiff} still works")

import tempfile, warnings, numpy as np, optax, deepprop as dp
from deepprop.activations import ACTIVATIONS
from deepprop.command.cli import main
from deepprop.costs import COSTS, OF_SOFTMAX, OUTPUTS
from deepprop.sklearn import MLPClassifier

key = jax.random.key(0)
X, Y = np.ones((4, 3), np.float32), np.eye(3, dtype=np.float32)
for output in [*OUTPUTS, *(("tanh", cost) for cost in COSTS), *(("softmax", cost) for cost in OF_SOFTMAX)]:
    names, n_L = list(ACTIVATIONS) if output == "softmax" else ["tanh"], dp.output(output).units(3)
    params = dp.init_params(key, [4, *[5] * len(names), n_L], hidden=names, output=output,
                            normalize="layer", dropout=0.1)
    A, cache = jax.jit(dp.forward)(params, X, key=key)

    @jax.jit
    def everything(params, cache, X, Y, w):
        dZ = dp.error_signals(cache, Y)
        return (dp.predict(params, X), dp.cost(cache, Y), dp.cost(cache, Y, w), dZ,
                dp.input_signal(cache, dZ), dp.jacobian(cache),
                dp.gradients(cache, dZ), dp.manual_backward(cache, Y, w))

    everything(params, cache, X, Y, np.ones(3))
optimizer = optax.adam(1e-3)
dp.manual_backward(cache, Y, np.ones(3))  # eager
dp.train_step(optimizer)(params, optimizer.init(params), X, Y, key=key)
dp.check_gradients(dp.init_params(key, [4, 5, 3]), X, Y)
private = dp.Privacy(max_norm=1.0, delta=1e-3, noise_multiplier=1.0)
for options in ({"privacy": private}, {"record": dp.diagnose}):
    dp.fit(dp.init_params(key, [4, 5, 3]), dp.kfac(0.1) if "record" in options else optimizer, X, Y,
           epochs=1, batch_size=2, key=key, **options)
deep = dp.init_params(key, [4, *[5] * 6, 3], residual=True, stack=True, compute_dtype="bfloat16")
dp.fit(dp.stack(deep, "sqrt"), dp.in_backward(optimizer), X, Y, epochs=1, batch_size=2, key=key)
dp.memory_plan(deep, 3, optimizer)
mesh = dp.mesh(data=1)
dp.data_parallel(mesh)(dp.forward(dp.place(deep, mesh), X)[1], Y)
warnings.simplefilter("ignore")
for solver in ("adam", "sgd", "lbfgs", dp.kfac()):
    MLPClassifier((5,), solver=solver, max_iter=2).fit(X.T, [0, 1, 2]).predict(X.T)
with tempfile.TemporaryDirectory() as folder:
    file = f"{folder}/model.npz"
    table = f"{folder}/table.csv"
    open(table, "w").write("a,b,y\\n" + "".join(f"{i},x{i % 2},{i % 3}\\n" for i in range(30)))
    sys.exit(
        main(["train", "--epochs", "1", "--hidden", "8", "--save", file])
        or main(["predict", file])
        or main(["export", file, "--out", f"{folder}/model.jax"])
        or main(["check", file, "--examples", "2"])
        or main(["train", "--data", table, "--target", "y", "--epochs", "1", "--search", "2"])
    )
"""


@pytest.mark.thorough
def test_the_whole_interface_runs_without_autodiff():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_AUTODIFF], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "agree with central differences" in run.stdout


def test_activations_use_jnp():
    """jax.nn.relu has a custom rule, jnp.maximum does not."""
    assert "custom_jvp_call" not in set(
        primitives(jax.make_jaxpr(dp.activation("relu").g)(jnp.ones(3)).jaxpr)
    )
