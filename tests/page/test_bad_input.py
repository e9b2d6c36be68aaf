"""Each bad input gives an error that names the argument, what it was and what it should be."""

import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    "X of rank 1": (lambda: dp.forward(PARAMS, X[:, 0]), ValueError, r"X must have shape \(4, m\), one example per column, got shape \(4,\)"),
    "X of rank 3": (lambda: dp.forward(PARAMS, X[None]), ValueError, r"X must have shape \(4, m\).*got shape \(1, 4, 6\)"),
    "X with features as rows": (lambda: dp.forward(PARAMS, X.T), ValueError, r"X must have shape \(4, m\).*got shape \(6, 4\); the examples seem to be rows: pass X.T"),
    "X with too many features": (lambda: dp.predict(PARAMS, np.ones((9, 6))), ValueError, r"X must have shape \(4, m\).*got shape \(9, 6\)$"),
    "X with no example": (lambda: dp.forward(PARAMS, X[:, :0]), ValueError, r"X must hold at least one example, got shape \(4, 0\)"),
    "X complex": (lambda: dp.forward(PARAMS, X + 1j), TypeError, r"X must be an array of real numbers, got dtype complex"),
    "X of text": (lambda: dp.forward(PARAMS, [["a"] * 6] * 4), TypeError, r"X must be an array of real numbers, got dtype <U1"),
    "X of objects": (lambda: dp.forward(PARAMS, np.array([[None]])), TypeError, r"X must be an array of real numbers, got dtype object"),
    "X ragged": (lambda: dp.forward(PARAMS, [[1.0], [1.0, 2.0]]), TypeError, r"X must be an array of real numbers"),
    "Y of labels": (lambda: dp.cost(CACHE, np.arange(6)), ValueError, r"Y must have shape \(3, 6\), one example per column, got shape \(6,\); for class labels: jax.nn.one_hot"),
    "Y with examples as rows": (lambda: dp.error_signals(CACHE, Y.T), ValueError, r"Y must have shape \(3, 6\).*got shape \(6, 3\).*pass Y.T"),
    "Y of another m": (lambda: dp.manual_backward(CACHE, Y[:, :5]), ValueError, r"Y must have shape \(3, 6\).*got shape \(3, 5\)"),
    "Y complex": (lambda: dp.cost(CACHE, Y * 1j), TypeError, r"Y must be an array of real numbers"),
    "Y missing": (lambda: dp.cost(CACHE, None), TypeError, r"Y must be an array of real numbers, got dtype object"),
    "weights of another m": (weights(np.ones(5)), ValueError, r"weights must have shape \(6,\), one per example, got shape \(5,\)"),
    "weights of rank 2": (weights(np.ones((1, 6))), ValueError, r"weights must have shape \(6,\)"),
    "a negative weight": (weights([1, 1, -2, 1, 1, 1]), ValueError, r"weights must be finite and not negative, got weights\[2\] = -2.0"),
    "a weight of nan": (weights([1, 1, 1, 1, 1, np.nan]), ValueError, r"weights must be finite.*weights\[5\] = nan"),
    "weights all zero": (weights(np.zeros(6)), ValueError, r"weights must not all be zero"),
    "weights of text": (weights(["a"] * 6), TypeError, r"weights must be an array of real numbers"),
    "weights in gradients": (lambda: dp.gradients(CACHE, DZ, np.ones(5)), ValueError, r"weights must have shape \(6,\)"),
    "weights in manual_backward": (lambda: dp.manual_backward(CACHE, Y, -np.ones(6)), ValueError, r"weights must be finite and not negative"),
    "params for a cache": (lambda: dp.manual_backward(PARAMS, Y), TypeError, r"cache must be the dp.Cache returned by forward, got tuple"),
    "params for the cache of a cost": (lambda: dp.cost(PARAMS, Y), TypeError, r"cache must be the dp.Cache"),
    "(A, cache) for a cache": (lambda: dp.gradients((X, CACHE), DZ), TypeError, r"cache must be the dp.Cache.*got tuple"),
    "a cache of another network": (lambda: dp.gradients(OTHER, DZ), ValueError, r"dZ\[1\] must have shape \(7, 6\).*got shape \(5, 6\)"),
    "a cache of a deeper network": (lambda: dp.gradients(DEEPER, DZ), ValueError, r"dZ must hold one array per layer, 3 for this cache, got 2: does it belong to another network\?"),
    "dZ of another batch": (lambda: dp.gradients(CACHE, [d[:, :3] for d in DZ]), ValueError, r"dZ\[1\] must have shape \(5, 6\).*got shape \(5, 3\)"),
    "a cache for params": (lambda: dp.forward(CACHE, X), TypeError, r"params must be a tuple of dp.Layer, got Cache"),
    "arrays for params": (lambda: dp.forward((X, X), X), TypeError, r"params must be a tuple of dp.Layer"),
    "text for a layer": (lambda: dp.forward((LAYER, "x"), X), TypeError, r"params must be a tuple of dp.Layer with arrays, got str in it"),
    "a list for W": (lambda: dp.forward((dp.Layer([[1.0]], LAST.b, LAST.activation),), X), TypeError, r"params must be a tuple of dp.Layer with arrays"),
    "a number for an initialisation": (lambda: dp.init_params(KEY, [2, 2], init="he_normal(7)"), ValueError, r"init he_normal takes no number"),
    "a function for an initialisation": (lambda: dp.init_params(KEY, [2, 2], init=max), TypeError, r"init must be a name"),
    "a loss of another shape": (lambda: dp.cost(dp.forward(dp.init_params(KEY, [4, 3], output=("tanh", dp.Cost("odd", lambda A, Y: abs(A - Y), lambda A, Y: A))), X)[1], Y), ValueError, r"the loss of tanh\+odd must have shape \(6,\), one per example, got \(3, 6\)"),
    "no layer": (lambda: dp.forward((), X), TypeError, r"params must be a tuple of dp.Layer, got tuple"),
    "layers that do not meet": (lambda: dp.forward((LAYER, LAYER, LAST), X), ValueError, r"W\[2\] must have shape \(n_l, 5\), got \(5, 4\)"),
    "b as a vector": (lambda: dp.forward((dp.Layer(LAST.W, jnp.zeros(3), LAST.activation),), np.ones((5, 1))), ValueError, r"b\[1\] must have shape \(3, 1\), got \(3,\)"),
    "layers of two types": (lambda: dp.forward((LAYER, jax.tree.map(lambda x: x.astype(jnp.bfloat16), LAST)), X), TypeError, r"params must all have one floating dtype, W\[1\] has float32, layer 2 has W bfloat16"),
    "integer layers": (lambda: dp.forward((jax.tree.map(lambda x: x.astype(int), LAST),), np.ones((5, 1))), TypeError, r"params must all have one floating dtype, W\[1\] has int32"),
    "no output": (lambda: dp.forward((LAYER,), X), TypeError, r"the last layer's activation must be a dp.Output"),
    "an output within": (lambda: dp.forward((dp.Layer(LAYER.W, LAYER.b, LAST.activation), LAST), X), TypeError, r"a hidden layer's activation must be a dp.Activation"),
    "an unknown activation": (lambda: dp.init_params(KEY, [2, 2, 2], hidden="rulu"), ValueError, r"activation must be one of identity, sigmoid.*got 'rulu'"),
    "an unknown output": (lambda: dp.init_params(KEY, [2, 2], output="max"), ValueError, r"output must be one of softmax, sigmoid, identity, exp, gaussian, got 'max'"),
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
    "float64 layers without x64": (lambda: dp.forward(jax.tree.map(np.float64, PARAMS), X), TypeError, r"params must not be float64 while jax's x64 is off: turn it on"),
    "a name for an output that is an activation's too": (lambda: dp.predict((dp.Layer(LAST.W, LAST.b, "sigmoid"),), np.ones((5, 1))), TypeError, r"the last layer's activation must be a dp.Output, such as dp.output\('softmax'\), got Activation\(name='sigmoid'\)"),
    "an unknown name in a layer": (lambda: dp.Layer(LAST.W, LAST.b, "tanhh"), ValueError, r"output must be one of softmax.*got 'tanhh'"),
    "X of 1e39": (lambda: dp.forward(PARAMS, X * np.float64(1e39)), ValueError, r"X must hold numbers up to 3.4e\+38 \(float32\), got 1e\+39"),
    "Y of -1e39": (lambda: dp.cost(CACHE, Y * np.float64(-1e39)), ValueError, r"Y must hold numbers up to 3.4e\+38 \(float32\), got 1e\+39"),
    "X of nan in predict": (lambda: dp.predict(PARAMS, np.where(X * 0 + np.arange(6) == 4, np.nan, 1)), ValueError, r"X must hold finite numbers, got X\[0, 4\] = nan"),
    "X of inf in predict": (lambda: dp.predict(PARAMS, jnp.asarray(X).at[2, 1].set(-jnp.inf)), ValueError, r"X must hold finite numbers, got X\[2, 1\] = -inf"),
    "a sample of 0": (lambda: dp.check_gradients(PARAMS, X, Y, sample=0), ValueError, r"sample must be above 0, got 0"),
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


OPTIMIZER = optax.sgd(0.1)


def masked(values):
    return np.ma.masked_array(values, np.arange(np.size(values)).reshape(np.shape(values)) == 1)


def fitted(X=X, Y=Y, **others):
    kind = {"epochs": 1, "batch_size": 3, "key": KEY} | others
    return lambda: dp.fit(PARAMS, OPTIMIZER, X, Y, **kind)


def layers_of(W=LAYER.W, b=LAYER.b):
    return (dp.Layer(W, b, LAYER.activation), LAST)


DOMAINS = {"sigmoid": ([-1, 1], r"\[0, 1\]"), "exp": ([-1, 2], r"\[0, inf\]")}


def of_domain(output):
    """Everything that takes targets, by name: a function of Y for a network of that output."""
    params = problem(0, [4, 5, 3], 6, output=output, dtype=np.float32)[0]
    A, cache = forward(params, X)
    kind = {"epochs": 1, "batch_size": 3, "key": KEY}
    good = np.asarray(A)
    return {
        "cost": lambda Y: dp.cost(cache, Y),
        "error_signals": lambda Y: dp.error_signals(cache, Y),
        "manual_backward": lambda Y: dp.manual_backward(cache, Y),
        "clipped_backward": lambda Y: dp.clipped_backward(cache, Y, 1.0),
        "check_gradients": lambda Y: dp.check_gradients(params, X, Y),
        "fit": lambda Y: dp.fit(params, OPTIMIZER, X, Y, **kind),
        "validation of fit": lambda Y: dp.fit(params, OPTIMIZER, X, good, validation=(X, Y), **kind),
        "fit_batches": lambda Y: dp.fit_batches(params, OPTIMIZER, [(X, Y)], epochs=1),
        "fit_ensemble": lambda Y: dp.fit_ensemble(params, OPTIMIZER, X, Y, **(kind | {"key": jax.random.split(KEY, 2)})),
    }  # fmt: skip


@pytest.mark.ordinary(3)
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("function", of_domain("sigmoid"))
@pytest.mark.parametrize("output", DOMAINS)
def test_targets_outside_of_the_domain_of_the_output_are_refused(output, function):
    """The cost has no minimum there: labels of -1 and 1 let it fall to -infinity."""
    (low, high), domain = DOMAINS[output]
    Y = np.where(np.arange(18).reshape(3, 6) % 2, np.float32(low), np.float32(high))
    with pytest.raises(ValueError, match=rf"Y must lie in {domain} for the output {output}, got"):
        of_domain(output)[function](Y)
    within = np.where(Y < 0, np.float32(-1e-7), np.float32(1))  # out of it by rounding alone
    of_domain(output)[function](within)


def test_other_costs_take_any_targets():
    params = problem(0, [4, 5, 3], 6, output="sigmoid+squared_error", dtype=np.float32)[0]
    assert np.isfinite(dp.cost(forward(params, X)[1], 5 - 10 * X[:3]))


def test_a_domain_of_an_output_of_ones_own():
    base = dp.output("identity")
    own = dp.Output("own", base.g, base.loss, base.dZ, domain=(2.0, 3.0))
    cache = forward(dp.init_params(KEY, [4, 3], output=own), X)[1]
    with pytest.raises(ValueError, match=r"Y must lie in \[2, 3\] for the output own, got numbers"):
        dp.cost(cache, Y)


NOWHERE = os.path.join(tempfile.gettempdir(), "deepprop-is-never-written.jax")
ARRAYS = {  # every argument that takes an array: what is called with it
    "X of forward": lambda P: dp.forward(PARAMS, P(X)),
    "X of predict": lambda P: dp.predict(PARAMS, P(X)),
    "Y of cost": lambda P: dp.cost(CACHE, P(Y)),
    "weights of cost": lambda P: dp.cost(CACHE, Y, P(np.ones(6))),
    "Y of error_signals": lambda P: dp.error_signals(CACHE, P(Y)),
    "dZ of gradients": lambda P: dp.gradients(CACHE, [P(d) for d in DZ]),
    "weights of gradients": lambda P: dp.gradients(CACHE, DZ, P(np.ones(6))),
    "Y of manual_backward": lambda P: dp.manual_backward(CACHE, P(Y)),
    "weights of manual_backward": lambda P: dp.manual_backward(CACHE, Y, P(np.ones(6))),
    "Y of clipped_backward": lambda P: dp.clipped_backward(CACHE, P(Y), 1.0),
    "max_norm of clipped_backward": lambda P: dp.clipped_backward(CACHE, Y, P(np.ones(2))),
    "weights of clipped_backward": lambda P: dp.clipped_backward(CACHE, Y, 1.0, weights=P(np.ones(6))),
    "dZ of per_example_norms": lambda P: dp.per_example_norms(CACHE, [P(d) for d in DZ]),
    "dZ of per_example_gradients": lambda P: dp.per_example_gradients(CACHE, [P(d) for d in DZ]),
    "dZ_2 of per_example_products": lambda P: dp.per_example_products(CACHE, DZ, CACHE, [P(d) for d in DZ]),
    "dZ of squared_gradients": lambda P: dp.squared_gradients(CACHE, [P(d) for d in DZ]),
    "weights of gradient_variance": lambda P: dp.gradient_variance(CACHE, DZ, P(np.ones(6))),
    "dZ of gradient_noise_scale": lambda P: dp.gradient_noise_scale(CACHE, [P(d) for d in DZ]),
    "weights of kfac_factors": lambda P: dp.kfac_factors(CACHE, DZ, P(np.ones(6))),
    "weights of gauss_newton_diagonal": lambda P: dp.gauss_newton_diagonal(CACHE, P(np.ones(6))),
    "V of gauss_newton_product": lambda P: dp.gauss_newton_product(CACHE, layers_of(P(np.asarray(LAYER.W)))),
    "dZ of diagnose": lambda P: dp.diagnose(CACHE, [P(d) for d in DZ]),
    "W of a layer": lambda P: dp.forward(layers_of(P(np.asarray(LAYER.W))), X),
    "b of a layer": lambda P: dp.predict(layers_of(b=P(np.asarray(LAYER.b))), X),
    "X of fit": lambda P: fitted(P(X))(),
    "Y of fit": lambda P: fitted(Y=P(Y))(),
    "weights of fit": lambda P: fitted(weights=P(np.ones(6)))(),
    "validation X of fit": lambda P: fitted(validation=(P(X), Y))(),
    "validation Y of fit": lambda P: fitted(validation=(X, P(Y)))(),
    "X of fit_batches": lambda P: dp.fit_batches(PARAMS, OPTIMIZER, [(P(X), Y)], epochs=1),
    "Y of fit_batches": lambda P: dp.fit_batches(PARAMS, OPTIMIZER, [(X, P(Y))], epochs=1),
    "weights of fit_batches": lambda P: dp.fit_batches(PARAMS, OPTIMIZER, [(X, Y, P(np.ones(6)))], epochs=1),
    "X of fit_ensemble": lambda P: dp.fit_ensemble(PARAMS, OPTIMIZER, P(X), Y, epochs=1, batch_size=3, key=jax.random.split(KEY, 2)),
    "sweep of fit_ensemble": lambda P: dp.fit_ensemble(PARAMS, optax.sgd, X, Y, epochs=1, batch_size=3, key=KEY, sweep={"learning_rate": P(np.ones(2))}),
    "Y of balanced_weights": lambda P: dp.balanced_weights(P(Y)),
    "X of check_gradients": lambda P: dp.check_gradients(PARAMS, P(X), Y),
    "Y of check_gradients": lambda P: dp.check_gradients(PARAMS, X, P(Y)),
    "weights of check_gradients": lambda P: dp.check_gradients(PARAMS, X, Y, P(np.ones(6))),
    "an array of place_examples": lambda P: dp.place_examples(dp.mesh(data=1), P(X)),
    "max_norm of Privacy": lambda P: dp.Privacy(max_norm=P(np.ones(2)), delta=1e-5, epsilon=1.0),
    "scaling of export": lambda P: dp.export(NOWHERE, PARAMS, scaling=(P(np.ones(4)), np.ones(4))),
}  # fmt: skip


@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("where", ARRAYS)
def test_a_masked_array_is_refused(where):
    """NumPy and jax would use the numbers under the mask."""
    with pytest.raises(
        (TypeError, ValueError), match="masked array: fill or drop the masked values"
    ):
        ARRAYS[where](masked)
    if "layer" not in where and "V of" not in where:  # whose W and b are arrays, no lists
        with pytest.raises((TypeError, ValueError), match="masked array: fill or drop"):
            ARRAYS[where](
                lambda values: [*masked(values)] if np.ndim(values) > 1 else masked(values)
            )


@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("where", [where for where in ARRAYS if "X" in where or "Y" in where])
def test_a_sparse_matrix_is_refused(where):
    sparse = pytest.importorskip("scipy.sparse").csr_matrix
    with pytest.raises(TypeError, match=r"must be a dense array, got a sparse csr_matrix"):
        ARRAYS[where](sparse)


def several_networks():
    return jax.vmap(lambda key: dp.init_params(key, [4, 4, 4]))(jax.random.split(KEY, 3))


def gradients_of_single_examples():
    params = dp.init_params(KEY, [4, 4, 4])
    _, cache = forward(params, X)
    Y = jnp.zeros((4, 6)).at[0].set(1.0)
    return dp.per_example_gradients(cache, dp.error_signals(cache, Y))


@pytest.mark.parametrize("make", [several_networks, gradients_of_single_examples])
def test_another_leading_axis_is_not_taken_for_a_stack(make):
    """The last layer of a network is never a stack; the layers here are square, as in a stack."""
    with pytest.raises(ValueError, match=r"W\[2\] must have shape \(n_l, 4\).*got \([36], 4, 4\)"):
        dp.forward(make(), X)


@pytest.mark.parametrize("name", ["tanh", "leaky_relu(0.2)", "sigmoid", "identity"])
def test_a_layer_takes_the_name_of_its_activation(name):
    assert dp.Layer(LAYER.W, LAYER.b, name).activation == dp.activation(name)


@pytest.mark.parametrize("name", ["softmax", "exp", "sigmoid+squared_error", "tanh+huber(0.5)"])
def test_a_last_layer_takes_the_name_of_its_output(name):
    last = dp.Layer(LAST.W, LAST.b, name)
    assert last.activation == dp.output(name)
    one, other = (
        dp.predict((LAYER, layer), X) for layer in (last, dp.Layer(LAST.W, LAST.b, dp.output(name)))
    )
    np.testing.assert_array_equal(one, other)


KEYED = {  # everything that takes a key
    "init_params": lambda key: dp.init_params(key, [2, 2]),
    "fit": lambda key: fitted(key=key)().params,
    "fit_ensemble": lambda key: dp.fit_ensemble(PARAMS, optax.sgd, X, Y, epochs=1, batch_size=3, key=key, sweep={"learning_rate": np.ones(2)}).params,
    "keys of fit_ensemble": lambda key: dp.fit_ensemble(PARAMS, OPTIMIZER, X, Y, epochs=1, batch_size=3, key=jax.random.split(key, 2)).params,
    "sampled_targets": lambda key: dp.sampled_targets(key, CACHE),
    "kfac": lambda key: dp.kfac(0.1, key=key).init(PARAMS),
    "scale_by_kfac": lambda key: dp.scale_by_kfac(key=key).init(PARAMS),
}  # fmt: skip


@pytest.mark.ordinary(3)
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("where", KEYED)
def test_keys_of_every_generator_are_taken_raw_and_typed(where, impl):
    with jax.default_prng_impl(impl):
        typed, raw = (KEYED[where](key) for key in (jax.random.key(3), jax.random.PRNGKey(3)))
        for one, other in zip(*map(jax.tree.leaves, (typed, raw)), strict=True):
            keys = jnp.issubdtype(one.dtype, jax.dtypes.prng_key)
            np.testing.assert_array_equal(jax.random.key_data(one) if keys else one, other)
