"""The cost of recording the health of every layer during training.

    pip install -e '.[peers]' && python -m benchmarks record

Times epochs with dp.diagnose at every step, at every 10th, at every 50th and at none. They take
turns in a new order in each round, after one epoch each to compile.
"""

import argparse
import time

import jax
import numpy as np
import optax

import deepprop as dp
from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.training import NETWORKS, data
from deepprop.training.epoch import train_epoch

EVERY = [None, 50, 10, 1]
SIZES = ["small", "medium", "deep"]


def epoch_of(network, every):
    """Return a function that trains one epoch, of 50 or 200 steps, and returns its seconds."""
    sizes, batch_size, _ = network
    optimizer = optax.adam(1e-3)
    X, Y = data(sizes, 200 * batch_size if sizes[0] > 256 else 50 * batch_size)
    params = dp.init_params(jax.random.key(0), sizes)
    X, Y = jax.numpy.array(X.T), jax.numpy.array(Y.T)

    def epoch():
        state = jax.block_until_ready(optimizer.init(params))
        begin = time.perf_counter()
        trained = train_epoch(
            params, state, jax.random.key(1), 1, X, Y, optimizer=optimizer, batch_size=batch_size,
            record=None if every is None else dp.diagnose, record_every=every or 1,
        )  # fmt: skip
        jax.block_until_ready(trained)
        return time.perf_counter() - begin

    epoch()
    return epoch


def measure(network, rounds):
    """Return, for each interval, the time of an epoch relative to one without recording."""
    epochs = {every: epoch_of(network, every) for every in EVERY}
    seconds, rng = {every: [] for every in EVERY}, np.random.default_rng(0)
    for _ in range(rounds):
        for i in rng.permutation(len(EVERY)):
            seconds[EVERY[i]].append(epochs[EVERY[i]]())
    plain = np.array(seconds[None])
    return [spread(np.array(seconds[every]) / plain, ".2f") for every in EVERY[1:]]


def text(rows, rounds):
    """Return the report."""
    head = ["network, batch", *(f"every {k}" if k > 1 else "every step" for k in EVERY[1:])]
    return f"""# Recording the health of every layer, {today()}

{setting()}.

Time of an epoch with `record=dp.Record(dp.diagnose, every)` relative to one without, Adam, {rounds}
rounds: median (min to max).

{markdown(head, rows)}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for name in SIZES:
        network = NETWORKS[name]
        shape = f"{name}: {network.shape()}, {network.batch_size}"
        rows.append([shape, *measure(network, args.rounds)])
        write(text(rows, args.rounds), "record", args.out)  # as they come
