"""Each bad input gives an error that names the argument, what it was and what it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from tests.problems import problem

KEY = jax.random.key(0)
PARAMS = problem(0, [4, 5, 3], 6, dtype=np.float32)[0]
X, Y = np.ones((4, 6), np.float32), np.eye(3, dtype=np.float32)[:, [0, 1, 2, 0, 1, 2]]

forward = jax.jit(dp.forward)  # as one program, it is sooner compiled than op by op
_, CACHE = forward(PARAMS, X)
_, OTHER = forward(problem(0, [4, 7, 3], 6, dtype=np.float32)[0], X)
_, DEEPER = forward(problem(0, [4, 5, 5, 3], 6, dtype=np.float32)[0], X)
DZ = jax.jit(dp.error_signals)(CACHE, Y)
LAYER, LAST = PARAMS


def weights(values):
    return lambda: dp.cost(CACHE, Y, values)


TABLE = {
    "X of rank 1": (lambda: dp.forward(PARAMS, X[:, 0]), ValueError, r"X must have shape \(4, m\), one example a column, got shape \(4,\)"),
    "X of rank 3": (lambda: dp.forward(PARAMS, X[None]), ValueError, r"X must have shape \(4, m\).*got shape \(1, 4, 6\)"),
    "X with features as rows": (lambda: dp.forward(PARAMS, X.T), ValueError, r"X must have shape \(4, m\).*got shape \(6, 4\); the examples seem to be rows: pass X.T"),
    "X with too many features": (lambda: dp.predict(PARAMS, np.ones((9, 6))), ValueError, r"X must have shape \(4, m\).*got shape \(9, 6\)$"),
    "X with no example": (lambda: dp.forward(PARAMS, X[:, :0]), ValueError, r"X must hold at least one example, got shape \(4, 0\)"),
    "X complex": (lambda: dp.forward(PARAMS, X + 1j), TypeError, r"X must be an array of real numbers, got dtype complex"),
    "X of text": (lambda: dp.forward(PARAMS, [["a"] * 6] * 4), TypeError, r"X must be an array of real numbers, got dtype <U1"),
    "X of objects": (lambda: dp.forward(PARAMS, np.array([[None]])), TypeError, r"X must be an array of real numbers, got dtype object"),
    "X ragged": (lambda: dp.forward(PARAMS, [[1.0], [1.0, 2.0]]), TypeError, r"X must be an array of real numbers"),
    "Y of labels": (lambda: dp.cost(CACHE, np.arange(6)), ValueError, r"Y must have shape \(3, 6\), one example a column, got shape \(6,\); for class labels: jax.nn.one_hot"),
    "Y with examples as rows": (lambda: dp.error_signals(CACHE, Y.T), ValueError, r"Y must have shape \(3, 6\).*got shape \(6, 3\).*pass Y.T"),
    "Y of another m": (lambda: dp.manual_backward(CACHE, Y[:, :5]), ValueError, r"Y must have shape \(3, 6\).*got shape \(3, 5\)"),
    "Y complex": (lambda: dp.cost(CACHE, Y * 1j), TypeError, r"Y must be an array of real numbers"),
    "Y missing": (lambda: dp.cost(CACHE, None), TypeError, r"Y must be an array of real numbers, got dtype object"),
    "weights of another m": (weights(np.ones(5)), ValueError, r"weights must have shape \(6,\), one an example, got shape \(5,\)"),
    "weights of rank 2": (weights(np.ones((1, 6))), ValueError, r"weights must have shape \(6,\)"),
    "a negative weight": (weights([1, 1, -2, 1, 1, 1]), ValueError, r"weights must be finite and not negative, got weights\[2\] = -2.0"),
    "a weight of nan": (weights([1, 1, 1, 1, 1, np.nan]), ValueError, r"weights must be finite.*weights\[5\] = nan"),
    "weights all zero": (weights(np.zeros(6)), ValueError, r"weights must not all be zero"),
    "weights of text": (weights(["a"] * 6), TypeError, r"weights must be an array of real numbers"),
    "weights in gradients": (lambda: dp.gradients(CACHE, DZ, np.ones(5)), ValueError, r"weights must have shape \(6,\)"),
    "weights in manual_backward": (lambda: dp.manual_backward(CACHE, Y, -np.ones(6)), ValueError, r"weights must be finite and not negative"),
    "params for a cache": (lambda: dp.manual_backward(PARAMS, Y), TypeError, r"cache must be the dp.Cache that forward gave, got tuple"),
    "params for the cache of a cost": (lambda: dp.cost(PARAMS, Y), TypeError, r"cache must be the dp.Cache"),
    "(A, cache) for a cache": (lambda: dp.gradients((X, CACHE), DZ), TypeError, r"cache must be the dp.Cache.*got tuple"),
    "a cache of another network": (lambda: dp.gradients(OTHER, DZ), ValueError, r"dZ\[1\] must have shape \(7, 6\).*got shape \(5, 6\)"),
    "a cache of a deeper network": (lambda: dp.gradients(DEEPER, DZ), ValueError, r"dZ must hold one array a layer, 3 for this cache, got 2: is it of another network\?"),
    "dZ of another batch": (lambda: dp.gradients(CACHE, [d[:, :3] for d in DZ]), ValueError, r"dZ\[1\] must have shape \(5, 6\).*got shape \(5, 3\)"),
    "a cache for params": (lambda: dp.forward(CACHE, X), TypeError, r"params must be a tuple of dp.Layer, got Cache"),
    "arrays for params": (lambda: dp.forward((X, X), X), TypeError, r"params must be a tuple of dp.Layer"),
    "text for a layer": (lambda: dp.forward((LAYER, "x"), X), TypeError, r"params must be a tuple of dp.Layer with arrays, got str in it"),
    "a list for W": (lambda: dp.forward((dp.Layer([[1.0]], LAST.b, LAST.activation),), X), TypeError, r"params must be a tuple of dp.Layer with arrays"),
    "a number for an initialisation": (lambda: dp.init_params(KEY, [2, 2], init="he_normal(7)"), ValueError, r"init he_normal takes no number"),
    "a function for an initialisation": (lambda: dp.init_params(KEY, [2, 2], init=max), TypeError, r"init must be a name"),
    "a loss of another shape": (lambda: dp.cost(dp.forward(dp.init_params(KEY, [4, 3], output=("tanh", dp.Cost("odd", lambda A, Y: abs(A - Y), lambda A, Y: A))), X)[1], Y), ValueError, r"the loss of tanh\+odd must have shape \(6,\), one an example, got \(3, 6\)"),
    "no layer": (lambda: dp.forward((), X), TypeError, r"params must be a tuple of dp.Layer, got tuple"),
    "layers that do not meet": (lambda: dp.forward((LAYER, LAYER, LAST), X), ValueError, r"W\[2\] must have shape \(n_l, 5\), got \(5, 4\)"),
    "b as a vector": (lambda: dp.forward((dp.Layer(LAST.W, jnp.zeros(3), LAST.activation),), np.ones((5, 1))), ValueError, r"b\[1\] must have shape \(3, 1\), got \(3,\)"),
    "layers of two types": (lambda: dp.forward((LAYER, jax.tree.map(lambda x: x.astype(jnp.bfloat16), LAST)), X), TypeError, r"params must all have one floating type, W\[1\] has float32, layer 2 has W bfloat16"),
    "integer layers": (lambda: dp.forward((jax.tree.map(lambda x: x.astype(int), LAST),), np.ones((5, 1))), TypeError, r"params must all have one floating type, W\[1\] has int32"),
    "no output": (lambda: dp.forward((LAYER,), X), TypeError, r"the last layer's activation must be a dp.Output"),
    "an output within": (lambda: dp.forward((dp.Layer(LAYER.W, LAYER.b, LAST.activation), LAST), X), TypeError, r"a hidden layer's activation must be a dp.Activation"),
    "an unknown activation": (lambda: dp.init_params(KEY, [2, 2, 2], hidden="rulu"), ValueError, r"activation must be one of identity, sigmoid.*got 'rulu'"),
    "an unknown output": (lambda: dp.init_params(KEY, [2, 2], output="max"), ValueError, r"output must be one of softmax, sigmoid, identity, exp, got 'max'"),
    "an unknown initialisation": (lambda: dp.init_params(KEY, [2, 2], init="xavier"), ValueError, r"init must be one of he_normal.*got 'xavier'"),
    "too few activations": (lambda: dp.init_params(KEY, [2, 2, 2, 2], hidden=["relu"]), ValueError, r"hidden must name one activation, or L - 1 = 2 of them for 3 layers, got 1"),
    "one size": (lambda: dp.init_params(KEY, [2]), ValueError, r"sizes must be at least two numbers above 0.*got \[2\]"),
    "a size of 0": (lambda: dp.init_params(KEY, [2, 0, 1]), ValueError, r"sizes must be at least two numbers above 0.*got \[2, 0, 1\]"),
    "a size of 2.5": (lambda: dp.init_params(KEY, [2, 2.5]), TypeError, r"sizes must be integers, n_0 to n_L, got 2.5"),
    "sizes as text": (lambda: dp.init_params(KEY, "22"), TypeError, r"sizes must be integers, n_0 to n_L, got '2'"),
    "a seed for a key": (lambda: dp.init_params(0, [2, 2]), TypeError, r"key must be one JAX random key, such as jax.random.key\(0\), got 0"),
    "many keys for a key": (lambda: dp.init_params(jax.random.split(KEY, 3), [2, 2]), TypeError, r"key must be one JAX random key"),
    "an integer dtype": (lambda: dp.init_params(KEY, [2, 2], dtype=int), TypeError, r"dtype must be a floating type, got int"),
    "an optimizer by name": (lambda: dp.train_step("adam"), TypeError, r"optimizer must be an optax.GradientTransformation, got 'adam'"),
    "a sample of 0": (lambda: dp.check_gradients(PARAMS, X, Y, sample=0), ValueError, r"sample must be a number above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_bad_input(case):
    call, error, message = TABLE[case]
    with pytest.raises(error, match=message):
        call()


def test_shapes_are_looked_at_when_jit_traces():
    with pytest.raises(ValueError, match=r"pass X\.T"):
        jax.jit(dp.predict)(PARAMS, X.T)
    with pytest.raises(ValueError, match=r"weights must have shape \(6,\)"):
        jax.jit(dp.manual_backward)(CACHE, Y, np.ones(5))
