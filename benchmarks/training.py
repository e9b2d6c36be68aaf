"""Training time: dp.fit compared with the loops that people write with other libraries.

    pip install -e '.[peers]' && python -m benchmarks training
    python -m benchmarks training --bfloat16

Every contender trains the same network on the same data with Adam. First, all must reach the same
cost with one full-batch step from the same parameters. (Only one step, because in 64 layers Adam
amplifies rounding errors.) Then they take turns, in a new order in each round, so that slow changes
of the machine cancel. A turn is two epochs, of which the second is timed: the first refills the
caches that the previous contender has displaced. With --bfloat16, all but two contenders multiply
bfloat16 numbers.
"""

import importlib
import os
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import deepprop as dp
from benchmarks.contenders import BASE, CONTENDERS, IN_BFLOAT16, on_gpu
from benchmarks.report import (
    Machine,
    Measured,
    Network,
    arguments,
    meanwhile,
    picture,
    stem,
    table,
    text,
)

NETWORKS = {
    "tiny": Network([30, 16, 1], batch_size=32, steps=1000),
    "small": Network([784, 32, 10], batch_size=32, steps=400),
    "medium": Network([784, 256, 128, 10], batch_size=128, steps=100),
    "wide batch": Network([784, 256, 10], batch_size=2048, steps=20),
    "deep": Network([256] * 64 + [10], batch_size=128, steps=20),
    "large": Network([784, 1024, 1024, 1024, 10], batch_size=512, steps=8),
}

# How far costs may differ after a step. bfloat16 rounds to 2^-9; each cost has a few such errors.
CLOSE = {"float32": 1e-3, "bfloat16": 8 * 2**-9}


def data(sizes, m):
    """Draw X (n_0, m) and Y (n_L, m), one-hot for several outputs, 0 or 1 for one output."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((sizes[0], m)).astype(np.float32)
    n = max(2, sizes[-1])
    Y = np.eye(n, dtype=np.float32)[:, rng.integers(n, size=m)]
    return X, Y if sizes[-1] > 1 else Y[1:]


def each(contenders, f, outcome="is left out"):
    """Return f(contender) for each; one that fails is left out, and a line says why."""
    done = {}
    for name, contender in contenders.items():
        try:
            done[name] = f(contender)
        except Exception as error:
            if name == BASE:
                raise
            why = (str(error).strip() or "no message").splitlines()[0]
            print(f"{name} {outcome}: {type(error).__name__}: {why}", flush=True)
    return done


def cost_after_a_step(contender, params, X, Y):
    """Return J after one step with all examples."""
    train, cost, _ = contender.make(params, X, Y, X.shape[1])
    train(1)
    return cost()


def check_equal(costs, tolerance):
    """End the benchmark unless the costs agree within a share of the largest."""
    known = {name: float(J) for name, J in costs.items() if J is not None}
    if not max(known.values()) - min(known.values()) <= tolerance * max(known.values()):
        raise SystemExit(f"after a full-batch step the costs differ: {known}")


def start(contender, params, X, Y, batch_size):
    """Make the contender and train one epoch; return train, temporary, and the seconds it took."""
    begin = time.perf_counter()
    train, _, temporary = contender.make(params, X, Y, batch_size)
    (end,) = train(1)
    return train, temporary, end - begin


def measure(network, contenders, rounds, tolerance):
    """Return the measurements of each contender, and those of the machine during them."""
    sizes, batch_size, steps = network
    X, Y = data(sizes, batch_size * steps)
    output = "sigmoid" if sizes[-1] == 1 else "softmax"
    params = dp.init_params(jax.random.key(0), sizes, output=output)

    costs = each(contenders, partial(cost_after_a_step, params=params, X=X, Y=Y))
    check_equal(costs, tolerance)
    contenders = {name: contenders[name] for name in costs}
    running = each(contenders, partial(start, params=params, X=X, Y=Y, batch_size=batch_size))

    memory = each(running, lambda its: its[1](), "does not report its memory")
    trains = {name: train for name, (train, _, _) in running.items()}
    seconds, rates = {name: [] for name in trains}, []
    product, rng = matrix_product(), np.random.default_rng(0)
    others = share_of_others()
    for _ in range(rounds):
        for name in rng.permutation(list(trains)):
            before, after = trains[name](2)
            seconds[name].append((after - before) / steps)
        rates.append(product())
    machine = Machine(np.median(rates), others())

    measured = {}
    for name, (_, _, first_epoch) in running.items():
        step = np.median(seconds[name])
        first_step = max(step, first_epoch - (steps - 1) * step)
        measured[name] = Measured(np.array(seconds[name]), first_step, memory.get(name))
    return measured, machine


def matrix_product(repeats=5):
    """Return a function that measures the best operations per second of a matrix product."""
    n = 8192 if on_gpu() else 1024
    A, square = jnp.ones((n, n)), jax.jit(lambda A: A @ A)

    def once():
        begin = time.perf_counter()
        square(A).block_until_ready()
        return time.perf_counter() - begin

    once()
    return lambda: 2 * n**3 / min(once() for _ in range(repeats))


def share_of_others():
    """Return a function that returns the share of the processors that others used since this call.

    It returns None on systems other than Linux, which do not report it.
    """
    if not (stat := Path("/proc/stat")).exists():
        return lambda: None

    def clocks():
        ticks = [int(t) / os.sysconf("SC_CLK_TCK") for t in stat.read_text().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return np.array([sum(ticks) - idle - time.process_time(), sum(ticks)])

    begin = clocks()

    def share():
        busy, whole = clocks() - begin
        return max(0.0, busy / whole)

    return share


def main():
    args = arguments(__doc__, NETWORKS, rounds=11, flags=["--bfloat16"])
    if on_gpu():  # as PyTorch by default; JAX would use TensorFloat-32
        jax.config.update("jax_default_matmul_precision", "highest")
    everyone = IN_BFLOAT16 if args.bfloat16 else CONTENDERS
    there = each(everyone, lambda contender: importlib.import_module(contender.package))
    contenders = {name: everyone[name] for name in there}
    precision = "bfloat16" if args.bfloat16 else "float32"
    path = args.out / stem("training-bfloat16" if args.bfloat16 else "training")
    results = {}
    for name in args.networks:
        network = NETWORKS[name]
        results[name] = (network, *measure(network, contenders, args.rounds, CLOSE[precision]))
        this = {name: results[name]}
        print(f"\n{table(this)}\n\n{meanwhile(this)}\n", flush=True)
        path.with_name(f"{path.name}.md").write_text(text(results, args.rounds, precision))
    print(f"written to {path}.md")
    try:
        picture(results, path.with_name(f"{path.name}.png"))
    except ImportError as error:
        print(f"no picture: {error}")
