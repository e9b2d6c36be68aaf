"""dp.check_backward: right code passes, mistakes get their name, the rest its equation and layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.checking.mistakes import CATALOGUE
from deepprop.checking.plain import passes
from deepprop.checking.run import M, draw
from tests.checking.backward_passes import (
    ANY,
    DOWN,
    LAST,
    MEAN,
    PLANTED,
    RIGHT,
    SIGNAL,
    SLOPE,
    SUM,
    UNKNOWN,
    written,
)  # fmt: skip

KINDS = [*ANY, ("relu", "softmax"), ("tanh", "tanh+squared_error")]


# The page in NumPy, which everything is compared with.


@pytest.mark.ordinary(2)
@pytest.mark.parametrize(("hidden", "output"), KINDS)
def test_the_page_in_numpy_is_the_gradient_by_autodiff(hidden, output, x64):
    out, g = dp.output(output), dp.activation(hidden)
    problem = draw(
        [8, 7, 6, 1 if output == "sigmoid" else 3], [g, g], out, M, np.random.default_rng(0)
    )

    def J(parameters):
        A = jnp.asarray(problem.X)
        for l, (W, b) in enumerate(parameters, 1):
            Z = W @ A + b
            A = g.g(Z) if l < 3 else Z
        return out.loss(Z, jnp.asarray(problem.Y)).mean()

    parameters = [(jnp.asarray(problem.W[l]), jnp.asarray(problem.b[l])) for l in problem.W]
    p = passes(problem)
    for l, (dW, db) in enumerate(jax.grad(J)(parameters), 1):
        np.testing.assert_allclose(p.dW[l], dW, atol=1e-13)
        np.testing.assert_allclose(p.db[l], db, atol=1e-13)


# Right code.


@pytest.mark.parametrize(("hidden", "output"), KINDS)
def test_right_code_passes(hidden, output):
    report = dp.check_backward(written((), hidden, output), hidden=hidden, output=output)
    assert report.ok, report
    assert not report.wrong
    assert report.right == tuple(f"{name}[{l}]" for l in (1, 2, 3) for name in ("dW", "db"))
    assert not report.notes


@pytest.mark.parametrize("parameters", ["pairs", "layers"])
def test_right_code_in_the_other_forms(parameters):
    course = written()

    def backward(given, X, Y):
        pairs = [(p.W, p.b) for p in given] if parameters == "layers" else given
        named = {
            f"{n}{l}": P for l, pair in enumerate(pairs, 1) for n, P in zip("Wb", pair, strict=True)
        }
        grads = course(named, X, Y)
        return [(grads[f"dW{l}"], grads[f"db{l}"]) for l in range(1, len(pairs) + 1)]

    assert dp.check_backward(backward, parameters=parameters, hidden="tanh").ok
    wrong = dp.check_backward(lambda *a: backward(*a)[::-1], parameters=parameters, hidden="tanh")
    assert "wrong order" in str(wrong)
    few = dp.check_backward(lambda *a: backward(*a)[1:], parameters=parameters, hidden="tanh")
    assert "backward returns 2 entries, should be 3" in str(few)


def test_deepprops_own_backward_passes_also_under_jit():
    backward = jax.jit(lambda params, X, Y: dp.manual_backward(dp.forward(params, X)[1], Y))
    assert dp.check_backward(backward, parameters="layers").ok

    def narrow(params, X, Y):
        return jax.tree.map(lambda P: P.astype("float32"), backward(params, X, Y))

    assert dp.check_backward(narrow, parameters="layers").ok


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("sizes", [[6, 3], [9, 8, 7, 6, 6, 4]])
def test_other_sizes(sizes):
    assert dp.check_backward(written(), hidden="tanh", sizes=sizes).ok
    assert not dp.check_backward(written([(MEAN, MEAN + " * 1.01")]), hidden="tanh", sizes=sizes).ok


# Known mistakes.


def planted(mistake):
    """Return the entry of PLANTED whose name a mistake's begins with: the longest."""
    return max((name for name in PLANTED if mistake.startswith(name)), key=len, default=None)


def test_every_entry_of_the_catalogue_is_planted():
    assert sorted(planted(mistake.name) for mistake in CATALOGUE) == sorted(PLANTED)


@pytest.mark.ordinary(18)
@pytest.mark.parametrize("name", PLANTED)
def test_a_known_mistake_is_named(name):
    replacements, networks = PLANTED[name]
    for hidden, output in networks:
        report = dp.check_backward(
            written(replacements, hidden, output), hidden=hidden, output=output
        )
        assert not report.ok
        assert planted(report.mistake) == name, report
        assert report.mistake in str(report)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PLANTED)
def test_a_known_mistake_is_named_on_ten_networks(name):
    replacements, networks = PLANTED[name]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        hidden, output = networks[seed % len(networks)]
        below = [6] * 4 if seed % 4 == 1 else rng.permutation([6, 7, 8, 9]).tolist()
        sizes = [*below, 1 if output == "sigmoid" else 6 if seed % 4 == 1 else 3]
        # Some need equal widths to run, and some differ from others in unequal widths alone.
        alike = name.startswith(("m is", "the hidden layers'"))
        report = dp.check_backward(
            written(replacements, hidden, output), hidden=hidden, output=output,
            sizes=sizes if seed % 2 and not alike else None, seed=seed,
        )  # fmt: skip
        assert not report.ok
        assert report.mistake or (report.error and seed % 4 == 3), (sizes, report)
        assert planted(report.mistake) in (name, None), (sizes, report)


def test_a_mistake_in_one_layer_alone_is_named_with_its_layer():
    report = dp.check_backward(
        written([(SLOPE, "dZ = dA * (g_prime(Z[l], A[l]) if l > 1 else 1)")]), hidden="tanh"
    )
    assert report.mistake == "g' is left out, in layer 1"
    assert report.right == ("dW[2]", "db[2]", "dW[3]", "db[3]")
    assert "dZ[1] = W[2]^T dZ[2]" in str(report)


def test_of_two_mistakes_the_upper_one_is_named_first():
    first = dp.check_backward(written([(SLOPE, "dZ = dA"), (DOWN, "dA = W.T @ dZ * (3 if l == 1 else 1)")]), hidden="tanh")  # fmt: skip
    assert first.mistake == "g' is left out, in layer 2"
    known, more = "Known mistake: g' is left out, in layer 2", "there are more errors below it"
    assert str(first).index(known) < str(first).index(more)  # "that layer" refers to it


def test_how_much_too_large_is_said():
    report = dp.check_backward(written(PLANTED["1/m is missing"][0]), hidden="tanh")
    assert "dW[1], dW[2] and dW[3] are 5 times too large, and m is 5." in str(report)
    report = dp.check_backward(written([(SIGNAL, "dZ = Y - A[L]")]), hidden="tanh")
    assert "correct except for the sign" in str(report)


def test_gradients_of_another_network_are_recognised():
    report = dp.check_backward(written((), "sigmoid", "softmax"), hidden="tanh")
    assert 'These gradients are right for hidden="sigmoid"; the check was for hidden="tanh"' in str(
        report
    )
    report = dp.check_backward(written((), "tanh", "identity"), hidden="relu")
    assert 'hidden="tanh" and output="identity"' in str(report)


# What no entry explains.


@pytest.mark.ordinary(8)
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_mistake_is_narrowed_to_its_equation_and_layer(name):
    replacements, equation, layer = UNKNOWN[name]
    report = dp.check_backward(written(replacements), hidden="tanh")
    assert not report.ok
    assert not report.mistake
    assert (report.equation, report.layer) == (equation, layer)
    assert f"[{layer}] =" in report.line or equation == "dZ[L]"
    assert f"the first equation that fails is {report.line}" in str(report)


RETURNED = (LAST, LAST + '        grads |= {f"dZ{l}": dZ, f"Z{l}": Z[l], f"A{l}": A[l]} | ({f"dA{l}": dA} if l < L else {})\n')  # fmt: skip


def test_signals_and_activations_that_are_returned_are_checked_too():
    report = dp.check_backward(written([RETURNED]), hidden="tanh")
    assert report.ok
    assert {"Z[1]", "A[3]", "dA[2]", "dZ[3]"} <= set(report.right)
    report = dp.check_backward(written([RETURNED, (DOWN, "dA = W.T @ abs(dZ)")]), hidden="tanh")
    assert (report.equation, report.layer) == ("dA", 2)
    report = dp.check_backward(
        written([RETURNED, ("g(Z[l]) if l < L", "np.sin(Z[l]) if l < L")]), hidden="tanh"
    )
    assert (report.equation, report.layer) == ("A", 1)


# Errors, shapes and other accidents.


def test_an_error_is_shown_with_the_line():
    report = dp.check_backward(written([(DOWN, "dA = W @ dZ")]), hidden="tanh")
    number = RIGHT.splitlines().index("            dA = W.T @ dZ") + 1
    assert f"ValueError in line {number} of mine.py: matmul" in str(report)
    assert "8-7-6-3 with 5 examples" in str(report)
    assert report.mistake == "W is not transposed"
    report = dp.check_backward(lambda parameters, X, Y: parameters["w1"])
    assert "KeyError in line" in str(report)
    assert "there is no 'w1'" in str(report)
    assert "parameters is a dict with the keys W1, b1, ..., W3, b3" in str(report)
    report = dp.check_backward(lambda X, Y: None)
    assert "backward is called as backward(parameters, X, Y)" in str(report)


def test_shapes_in_the_line_that_fails_are_shown():
    loop = [(MEAN, "dW = sum(dZ[:, i : i + 1] @ column(A[l - 1], i) for i in range(m)) / m"),
            ("    grads = {}", "    def column(P, i):\n        x = P[:, i]\n        return np.ones((1, 2)) @ x\n    grads = {}")]  # fmt: skip
    report = dp.check_backward(written(loop), hidden="tanh")
    assert "There x is (6,)." in str(report)
    assert "x is a vector (6,); a column is (6, 1)" in str(report)


def test_numbers_of_layers_that_are_shifted_are_noticed():
    course = written()

    def shifted(parameters, X, Y):
        grads = course(parameters, X, Y)
        moved = {f"dW{l}": grads[f"dW{l + 1}"] for l in (1, 2)}
        return grads | moved

    assert "dW[1] is what dW[2] should be" in str(dp.check_backward(shifted, hidden="tanh"))


def test_state_and_random_numbers_are_noticed():
    rng, calls = np.random.default_rng(0), []
    course = written()

    def drops(parameters, X, Y):
        return course(parameters, X * (rng.random(X.shape) < 0.5), Y)

    assert "Called twice with the same arguments" in str(dp.check_backward(drops, hidden="tanh"))

    def grows(parameters, X, Y):
        calls.append(1)
        return {name: len(calls) * P for name, P in course(parameters, X, Y).items()}

    assert "Called twice with the same arguments" in str(dp.check_backward(grows, hidden="tanh"))
    shapes = []

    def keeps(parameters, X, Y):
        shapes.append(X.shape)
        if X.shape != shapes[0]:
            raise ValueError("the shape of an earlier call")
        return course(parameters, X, Y)

    assert "Its first call was right" in str(dp.check_backward(keeps, hidden="tanh"))


def test_dA_of_another_numbering_is_no_mistake():
    other = (
        LAST,
        LAST + '        grads |= {f"dA{l}": W.T @ dZ}\n',
    )  # dA[l-1], as some courses have it
    report = dp.check_backward(written([other]), hidden="tanh")
    assert report.ok, report
    median = (
        SUM,
        "db = np.median(dZ, axis=1, keepdims=True) if l == 1 else dZ.mean(1, keepdims=True)",
    )
    report = dp.check_backward(written([other, median]), hidden="tanh")
    assert (report.equation, report.layer) == ("db", 1)  # and not dA
    overwritten = (LAST, LAST + '        grads |= {f"dA{l}": dZ}\n')
    report = dp.check_backward(written([overwritten]), hidden="tanh")
    assert report.ok
    assert "dA[1] and dA[2] are not what the page calls by that name" in str(report)


def test_missing_and_misnamed_gradients():
    course = written()
    renamed = lambda p, X, Y: {key.lower(): value for key, value in course(p, X, Y).items()}  # noqa: E731
    report = dp.check_backward(renamed, hidden="tanh")
    assert "dW1 is missing; the dict has dw1: upper and lower case matter" in str(report)
    for returned, said in ((None, "backward returns None"), ({}, "dW1 is missing; the dict has no entries"),
                           ({"dW1": "x"}, "dW[1] is a str, should be an array")):  # fmt: skip
        report = dp.check_backward(lambda *_, returned=returned: returned)
        assert said in str(report)
        assert not report.ok


@pytest.mark.parametrize(("replacement", "said"), [
    ((SUM, "db = np.sum(dZ, axis=1) / m"), "db[1] is a vector (7,), should be a column (7, 1): sum with keepdims=True"),
    ((SUM, "db = np.sum(dZ) / m"), "db[1] is a single number"),
    ((SUM, "db = dZ / m"), "db[1] has the 5 examples on axis 1, (7, 5): sum over them"),
    ((MEAN, "dW = A[l - 1] @ dZ.T / m"), "dW[1] is the transpose of W[1]: (8, 7), should be (7, 8)"),
    ((MEAN, "dW = dZ @ A[l].T / m"), "dW[1] has the units of layer 1 twice, (7, 7)"),
])  # fmt: skip
def test_shapes_are_compared_in_words(replacement, said):
    report = dp.check_backward(written([replacement]), hidden="tanh")
    assert said in str(report)
    assert not report.ok


def test_changes_in_place_are_noted():
    report = dp.check_backward(
        written([(LAST, LAST + '        parameters[f"W{l}"] -= 0.1 * dW\n')]), hidden="tanh"
    )
    assert "changes W[1], W[2] and W[3] in place" in str(report)
    late = [
        (
            "    return grads",
            "    for l in range(1, L + 1): parameters[f'W{l}'] -= 1\n    return grads",
        )
    ]
    report = dp.check_backward(written(late), hidden="tanh")
    assert report.ok
    assert "in place" in str(report)


def test_log_of_0_is_noted():
    naive = "dZ = (-Y / A[L] + (1 - Y) / (1 - A[L])) * A[L] * (1 - A[L])"
    report = dp.check_backward(
        written([(SIGNAL, naive)], output="sigmoid"), hidden="tanh", output="sigmoid"
    )
    assert report.ok
    assert "log of 0" in str(report)
    naive = [("g_L(Z[l])", "np.exp(Z[l]) / np.exp(Z[l]).sum(axis=0)")]
    report = dp.check_backward(written(naive), hidden="tanh")
    assert report.ok
    assert "subtracts the largest Z" in str(report)


def test_gradients_that_are_not_finite_are_wrong():
    report = dp.check_backward(written([(MEAN, MEAN + " + np.nan")]), hidden="tanh")
    assert not report.ok
    assert report.wrong == ("dW[1]", "dW[2]", "dW[3]")
    assert (report.equation, report.layer) == ("dW", 3)


@pytest.mark.parametrize(("arguments", "error", "said"), [
    ({"backward": 3}, TypeError, "backward must be a function"),
    ({"parameters": "list"}, ValueError, "parameters must be one of dict, pairs, layers, got 'list'"),
    ({"sizes": [3]}, ValueError, r"sizes must be two or more numbers, got \[3\]"),
    ({"sizes": [3, 0]}, ValueError, "sizes must be"),
    ({"hidden": ["relu"], "sizes": [3, 4, 4, 2]}, ValueError, "one for each of 2 hidden layers, got 1"),
    ({"hidden": "rleu"}, ValueError, "relu"),
])  # fmt: skip
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        dp.check_backward(arguments.pop("backward", written()), **arguments)
