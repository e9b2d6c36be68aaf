"""Cross-validation: five folds on three small tables, as each library's users write it.

    pip install -e '.[peers,sklearn]' && python -m benchmarks cross_validation

Digits, breast cancer and wine of scikit-learn, standardised; one hidden layer of 64, Adam, 100
epochs in batches of up to 200, scikit-learn's rule for when to stop where it is in the estimator.
Each script runs in a new Python process, so nothing is compiled in advance. Times are given with
and without imports.

With --large: the two estimators on 60,000 rows of 784 numbers, drawn at random, with ten classes by
a random linear map; 20 epochs.
"""

import argparse
import os
import re
import subprocess
import sys
import time

import numpy as np

from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.training import each, share_of_others

START = """
import time, warnings
warnings.simplefilter("ignore")
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
"""
LOOP = """
begin = time.perf_counter()
accuracies = []
for load in (load_digits, load_breast_cancer, load_wine):
    x, y = load(return_X_y=True)
    accuracies += list(evaluate(x, y))
print("accuracy", 100 * np.mean(accuracies), "seconds", time.perf_counter() - begin)
"""
ESTIMATOR = """
def evaluate(x, y):
    model = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=100, random_state=0))
    return cross_val_score(model, x, y, cv=5)
"""
FOLDS = """
def evaluate(x, y):
    for train, test in StratifiedKFold(5).split(x, y):
        scaler = StandardScaler().fit(x[train])
        one, other = (scaler.transform(x[part]).astype("float32") for part in (train, test))
        yield accuracy(one, y[train], other, y[test])
"""
PYTORCH = f"""
import torch
from torch import nn
def accuracy(x, y, x_test, y_test):
    torch.manual_seed(0)
    x, y, x_test, y_test = map(torch.from_numpy, (x, y, x_test, y_test))
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, int(y.max()) + 1))
    optimizer, loss = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()
    for _ in range(100):
        for i in torch.randperm(len(x)).split(200):
            optimizer.zero_grad()
            loss(model(x[i]), y[i]).backward()
            optimizer.step()
    return (model(x_test).argmax(1) == y_test).float().mean().item()
{FOLDS}"""
KERAS = f"""
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras
def accuracy(x, y, x_test, y_test):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(int(y.max()) + 1, "softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=200, epochs=100, verbose=0)
    return model.evaluate(x_test, y_test, verbose=0)[1]
{FOLDS}"""
FIT = f"""
import jax, optax
import deepprop as dp
optimizer = optax.adam(1e-3)
def accuracy(x, y, x_test, y_test):
    params = dp.init_params(jax.random.key(0), [x.shape[1], 64, int(y.max()) + 1])
    onehot = np.eye(int(y.max()) + 1, dtype="float32")[y]
    fit = dp.fit(params, optimizer, x.T, onehot.T, epochs=100, batch_size=min(200, len(x)), key=jax.random.key(1))
    return np.mean(np.asarray(dp.predict(fit.params, x_test.T)).argmax(0) == y_test)
{FOLDS}"""
LARGE = """
rng = np.random.default_rng(0)
x = rng.random((60000, 784)).astype("DTYPE")
y = (x @ rng.normal(size=(784, 10))).argmax(1)
begin = time.perf_counter()
model = MLPClassifier((64,), max_iter=20, random_state=0)
accuracies = cross_val_score(model, x, y, cv=5)
print("accuracy", 100 * np.mean(accuracies), "seconds", time.perf_counter() - begin)
"""
BASE = "scikit-learn"
SCRIPTS = {
    BASE: f"from sklearn.neural_network import MLPClassifier\n{ESTIMATOR}",
    "deepprop.sklearn": f"from deepprop.sklearn import MLPClassifier\n{ESTIMATOR}",
    "dp.fit": FIT,
    "PyTorch eager": PYTORCH,
    "Keras on JAX": KERAS,
}
IMPORTS = {BASE: "sklearn.neural_network", "deepprop.sklearn": "deepprop.sklearn"}
OF_LARGE = {
    f"{name}, {dtype}": f"from {module} import MLPClassifier\n" + LARGE.replace("DTYPE", dtype)
    for dtype in ("float32", "float64")
    for name, module in IMPORTS.items()
}


def run(script):
    """Run a script; return its seconds, those without imports, and its accuracy in percent.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", START + script], env=dict(os.environ), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    accuracy, inside = re.search(r"accuracy ([\d.]+) seconds ([\d.]+)", done.stdout).groups()
    return seconds, float(inside), float(accuracy)


def text(times, rounds, busy):
    """Return the report."""
    rows = []
    for name, t in times.items():
        dtype = name.partition(", ")[2]
        base = times[f"{BASE}, {dtype}" if dtype else BASE]
        cells = [spread(part, ".2f") for k in (0, 1) for part in (t[:, k], t[:, k] / base[:, k])]
        rows.append([name, *cells, f"{t[0, 2]:.2f} %"])
    head = [
        "",
        "seconds",
        f"relative to {BASE}",
        "without imports",
        f"relative to {BASE}",
        "accuracy",
    ]
    return f"""# Cross-validation, {today()}

{setting()}.

{__doc__.split("cross_validation" + chr(10), 1)[1].strip()}

{rounds} rounds, each in a new order; medians, least and largest; ratios within a round. Other programs,
these scripts included, used {busy:.0%} of the processors.

{markdown(head, rows)}
"""


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=folder, default=RESULTS)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    scripts = OF_LARGE if args.large else {name: s + LOOP for name, s in SCRIPTS.items()}
    what = "cross-validation" + "-large" * args.large
    first = each({name: s for name, s in scripts.items() if not args.large}, run) or scripts
    found, others = {name: [] for name in first}, share_of_others()
    for done in range(1, args.rounds + 1):
        for name in np.random.default_rng().permutation(list(first)):
            found[name].append(run(scripts[name]))
        times = {name: np.array(rows) for name, rows in found.items()}
        write(text(times, done, others() or 0.0), what, args.out)  # as they come
