"""From nothing to a trained network: whole scripts on the digits, imports and compilation included.

    pip install -e '.[peers]' && python -m benchmarks scripts

Each script starts a Python of its own, reads the 1,797 digits of scikit-learn (deepprop its own
copy), trains 64-256-128-10 with Adam for 30 epochs of batches of 64, and prints the accuracy on a
fifth of them that it has held out. `deepprop train` does more: it also measures after each epoch,
prints a table, and checks the gradients. It runs with no programs from earlier runs, and with them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.training import each, share_of_others

READ = """
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split((x / 16).astype("float32"), y, test_size=0.2, random_state=0)
"""
SCIKIT_LEARN = f"""{READ}
import warnings
from sklearn.neural_network import MLPClassifier
warnings.simplefilter("ignore")
model = MLPClassifier((256, 128), max_iter=30, batch_size=64, n_iter_no_change=30, random_state=0)
print("accuracy", 100 * model.fit(x, y).score(x_test, y_test))
"""
PYTORCH = f"""{READ}
import torch
from torch import nn
torch.manual_seed(0)
x, y, x_test, y_test = map(torch.from_numpy, (x, y, x_test, y_test))
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer, loss = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()
for _ in range(30):
    for i in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        loss(model(x[i]), y[i]).backward()
        optimizer.step()
print("accuracy", 100 * (model(x_test).argmax(1) == y_test).float().mean().item())
"""
KERAS = f"""{READ}
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras
keras.utils.set_random_seed(0)
layers = [keras.layers.Dense(256, "relu"), keras.layers.Dense(128, "relu"), keras.layers.Dense(10, "softmax")]
model = keras.Sequential(layers)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, batch_size=64, epochs=30, verbose=0)
print("accuracy", 100 * model.evaluate(x_test, y_test, verbose=0)[1])
"""
BASE = "deepprop train, first run"
TRAIN = ["-m", "deepprop", "train"]
SCRIPTS = {
    BASE: [*TRAIN, "--no-kept-programs"],
    "deepprop train, later runs": TRAIN,
    "scikit-learn": ["-c", SCIKIT_LEARN],
    "PyTorch eager": ["-c", PYTORCH],
    "Keras on JAX": ["-c", KERAS],
}


def run(arguments, cache):
    """Run a script; return its seconds and the accuracy that it prints, in percent.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    return seconds, float(re.findall(r"accuracy +([\d.]+)", done.stdout)[-1])


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        first = each(SCRIPTS, lambda arguments: run(arguments, cache))
        if min(accuracy for _, accuracy in first.values()) < 95:
            raise SystemExit(f"a script does not learn: {first}")
        seconds, others = {name: [] for name in first}, share_of_others()
        for _ in range(args.rounds):
            for name in np.random.default_rng().permutation(list(first)):
                seconds[name].append(run(SCRIPTS[name], cache)[0])
    times = {name: np.array(values) for name, values in seconds.items()}
    sklearn = times.get("scikit-learn", times[BASE])
    rows = [
        [name, spread(t, ".2f"), spread(t / sklearn, ".2f"), f"{first[name][1]:.1f} %"]
        for name, t in times.items()
    ]
    table = markdown(["", "seconds", "relative to scikit-learn", "accuracy"], rows)
    write(
        f"# Whole scripts, {today()}\n\n{setting()}.\n\n{args.rounds} rounds, each in a new order;"
        f" medians, least and largest.\n\n{table}\n\nOther programs, these scripts included, used"
        f" {others() or 0:.0%} of the processors.\n",
        "scripts", args.out,
    )  # fmt: skip
