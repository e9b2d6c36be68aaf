"""The page that shows the backward pass: its numbers are deepprop's, and it works in a browser."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepprop as dp
from deepprop.checking.mistakes import CATALOGUE
from deepprop.checking.plain import Problem, passes

PAGE = Path(__file__).parents[2] / "docs" / "_static" / "watch"
SIZES = [2, 4, 4, 1]
RATE = 0.3
ASK = """
const { ACTIVATIONS, MISTAKES, passes, cost, step, offBy, initialise, moons } = require(process.argv[1]);
const data = moons(7, 3);
const { W, b } = initialise([2, 4, 4, 1], 5);
for (const column of b.slice(1)) column.forEach((row, j) => { row[0] = 0.1 * (j + 1); });
const cases = [];
for (const activation of Object.keys(ACTIVATIONS)) {
  for (const mistake of ["", ...Object.keys(MISTAKES)]) {
    const model = { W, b, activation, rate: 0.3 };
    const p = passes({ ...model, ...data }, mistake);
    const off = offBy(passes({ ...model, ...data }), p);
    const { A, dZ, dW, db } = p;
    cases.push({ activation, mistake, A, dZ, dW, db, J: cost(p), off, next: step(model, p) });
  }
}
console.log(JSON.stringify({ ...data, W, b, cases }));
"""


def where_it_fits(mistake):
    """In layers whose shapes do not fit, the page has the right line."""
    fits = {"W is not transposed": ("dA", 1), "A[l] is used": ("dW", 2)}
    return next((place for name, place in fits.items() if mistake.startswith(name)), (None, None))


@pytest.fixture(scope="module")
def answers():
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node")
    run = subprocess.run([node, "-e", ASK, str(PAGE / "network.js")], capture_output=True, text=True, timeout=60)  # fmt: skip
    assert not run.stderr
    return json.loads(run.stdout)


def arrays(layers):
    return {l: np.array(P) for l, P in enumerate(layers) if P is not None}


def test_its_numbers_are_deepprops(answers, x64):
    X, Y = np.array(answers["X"]), np.array(answers["Y"], float)
    W, b = arrays(answers["W"]), arrays(answers["b"])
    catalogue = {mistake.name: mistake for mistake in CATALOGUE}
    known = {""}
    for case in answers["cases"]:
        g, name = dp.activation(case["activation"]), case["mistake"]
        problem = Problem(W, b, X, Y, [g, g], dp.output("sigmoid"))
        mistake = next((m for n, m in catalogue.items() if name and n.startswith(name)), None)
        assert (mistake is None) == (name == ""), name
        _, only = where_it_fits(name)
        p = passes(problem, mistake, only=only, rate=RATE)
        for what in ("dZ", "dW", "db"):
            for l, made in arrays(case[what]).items():
                right = np.broadcast_to(getattr(p, what)[l], made.shape)
                np.testing.assert_allclose(made, right, atol=1e-12, err_msg=f"{name}: {what}[{l}]")
        known.add(name)
    assert len(known) == 13


def test_without_a_mistake_it_is_the_library(answers, x64):
    X, Y = jnp.array(answers["X"]), jnp.array(answers["Y"], float)
    W, b = arrays(answers["W"]), arrays(answers["b"])
    for case in answers["cases"]:
        if case["mistake"]:
            assert case["off"] > 0.005 or case["activation"] == "relu"  # where g'(A) is g'(Z)
            continue
        kinds = [case["activation"], case["activation"], dp.output("sigmoid")]
        params = tuple(dp.Layer(jnp.array(W[l]), jnp.array(b[l]), kinds[l - 1]) for l in W)
        A, cache = dp.forward(params, X)
        grads = dp.manual_backward(cache, Y)
        assert case["off"] == 0
        np.testing.assert_allclose(case["J"], dp.cost(cache, Y), rtol=1e-12)
        np.testing.assert_allclose(case["A"][3], A, atol=1e-12)
        for l, layer in enumerate(grads, 1):
            np.testing.assert_allclose(case["dW"][l], layer.W, atol=1e-12)
            np.testing.assert_allclose(case["db"][l], layer.b, atol=1e-12)
            np.testing.assert_allclose(case["next"]["W"][l], W[l] - RATE * layer.W, atol=1e-12)
    assert jax.config.jax_enable_x64


def test_it_loads_nothing_from_elsewhere():
    for path in PAGE.iterdir():
        addresses = path.read_text().split("http")[1:]
        assert all(rest.startswith("://www.w3.org/2000/svg") for rest in addresses), path


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.thorough
@pytest.mark.parametrize("width", [1180, 390])
def test_it_works_in_a_browser(browser, width):
    """Without errors; by mouse and by keyboard; and no wider than the screen."""
    page = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((PAGE / "index.html").as_uri())
    state = lambda: page.inner_text("#state")  # noqa: E731
    assert state().startswith("Step 0, J = 0.")

    page.locator("#plane circle").nth(4).click()
    assert page.inner_text("#which").startswith("5,")
    page.focus("#plane")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#which").startswith("6,")

    page.locator("#network .unit").nth(3).focus()
    page.keyboard.press("Enter")
    assert "dz₂[1] = da · g'(z)" in page.inner_text("#unit")

    page.select_option("#mistake", "1/m is missing")
    assert "off by 2300 % of its length" in state()  # 24 examples
    page.click("#step")
    assert state().startswith("Step 1")
    page.click("#reset")
    page.select_option("#mistake", "")
    page.select_option("#activation", "relu")
    page.click("#run")
    page.wait_for_function("parseInt(document.querySelector('#state').textContent.slice(5)) > 50")
    page.click("#run")
    assert page.inner_text("#run") == "Run"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert not errors
