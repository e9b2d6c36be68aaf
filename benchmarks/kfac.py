"""K-FAC on a deep autoencoder: deepprop, kfac-jax, and Adam.

    pip install -e '.[peers]' && python -m benchmarks kfac

This is the standard test problem (Hinton and Salakhutdinov 2006; Martens and Grosse 2015), on the
handwritten digits of deepprop, or at full size with `--data mnist.npz --epochs 5`. First the
settings of each method are chosen: those with the lowest final training cost, on a separate seed.
Then the methods take turns from the same parameters. The clock is stopped while anything is
compiled or evaluated.
"""

import argparse
import functools
import importlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.contenders import on_gpu
from benchmarks.kfac_report import ADAM, BATCH, FIRST, OURS, best, picture, text, words
from benchmarks.report import RESULTS, folder, stem
from benchmarks.training import each
from deepprop.command.data import load_data

DOWN = {"digits": [128, 64, 32, 8], "file": [1000, 500, 250, 30]}  # from X to the code
TUNING_SEED, SEEDS = 100, (0, 1, 2)


class Run(NamedTuple):
    """One training run."""

    costs: np.ndarray  # J over the training set, after each epoch
    seconds: np.ndarray  # of training until the end of each epoch


def autoencoder(path):
    """Return X (n_0, m), cut to whole minibatches, and the sizes of the network."""
    data = load_data(path, held_out=0.2, seed=0, standardize=False, output=None)
    X = data.X if path else np.concatenate([data.X, data.X_test], axis=1)
    down = [len(X), *DOWN["file" if path else "digits"]]
    return X[:, : X.shape[1] // BATCH * BATCH], down + down[-2::-1]


def start(sizes, seed):
    """Return the initial parameters."""
    return dp.init_params(jax.random.key(seed), sizes, hidden="tanh", output="sigmoid")


def dp_fit(X, optimizer):
    """Return train(params, epochs, seed, see), which calls see(params) after each epoch."""

    def train(params, epochs, seed, see):
        dp.fit(
            params, optimizer, X, X, epochs=epochs, batch_size=BATCH, key=jax.random.key(seed),
            callbacks=[lambda epoch, row, params: see(params)],
        )  # fmt: skip

    return train


def adam(X, learning_rate):
    """Return `train` with optax.adam."""
    return dp_fit(X, optax.adam(learning_rate))


def deepprop_kfac(X, **options):
    """Return `train` with dp.kfac."""
    return dp_fit(X, dp.kfac(**options))


def rows_loss(params, x):
    """Return J as kfac-jax users write it: one example per row, W (in, out), a registered loss."""
    import kfac_jax

    *hidden, (W, b) = params
    a = x
    for W_l, b_l in hidden:
        a = jnp.tanh(a @ W_l + b_l)
    z = a @ W + b
    kfac_jax.register_multi_bernoulli_predictive_distribution(z, x)
    return jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(z, x), axis=1))


def as_rows(layers):
    """Return the parameters as pairs W (in, out), b (out,)."""
    return [(jnp.array(p.W.T), jnp.array(p.b[:, 0])) for p in layers]


def as_layers(params, like):
    """Return such pairs as layers of deepprop."""
    each_layer = zip(like, params, strict=True)
    return tuple(replace(layer, W=W.T, b=b[:, None]) for layer, (W, b) in each_layer)


def kfac_jax_loop(X, optimizer, **now):
    """Return `train` with a loop over kfac-jax's steps; each step gets the settings `now`."""
    x = np.ascontiguousarray(X.T)
    steps = len(x) // BATCH

    def minibatches(rng):
        while True:
            yield from (x[i] for i in rng.permutation(len(x)).reshape(steps, BATCH))

    def train(layers, epochs, seed, see):
        key, batches = jax.random.key(seed), minibatches(np.random.default_rng(seed))
        params = as_rows(layers)
        state = optimizer.init(params, key, x[:BATCH])
        for step in range(epochs * steps):
            key, step_key = jax.random.split(key)
            params, state, _ = optimizer.step(
                params, state, step_key, data_iterator=batches, global_step_int=step, **now
            )
            if (step + 1) % steps == 0:
                see(jax.block_until_ready(params), as_layers)

    return train


@functools.cache  # a new optimizer would compile again
def kfac_jax_optimizer(**options):
    """Return kfac-jax's optimizer with these options."""
    import kfac_jax

    patch_kfac_jax()
    return kfac_jax.Optimizer(jax.value_and_grad(rows_loss), l2_reg=0.0, **options)


def patch_kfac_jax():
    """Make kfac-jax 0.0.8 work with a jax whose `get_bind_params` returns one dict, not a pair.

    Otherwise its eval_jaxpr_eqn raises "ValueError: too many values to unpack (expected 2)".
    """
    from kfac_jax._src import tag_graph_matcher

    def eval_jaxpr_eqn(eqn, values):
        outputs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        return outputs if isinstance(outputs, list) else [outputs]

    if isinstance(jax.lax.add_p.get_bind_params({}), dict):
        tag_graph_matcher.eval_jaxpr_eqn = eval_jaxpr_eqn


def kfac_jax_adaptive(X, initial_damping):
    """Return `train` with kfac-jax and the paper's adaptive learning rate, momentum, damping."""
    names = ["use_adaptive_learning_rate", "use_adaptive_momentum", "use_adaptive_damping"]
    rules = dict.fromkeys(names, True)
    return kfac_jax_loop(X, kfac_jax_optimizer(initial_damping=initial_damping, **rules))


def kfac_jax_fixed(X, max_kl, every, **now):
    """Return `train` with kfac-jax and fixed settings. Its norm_constraint is twice the KL."""
    optimizer = kfac_jax_optimizer(inverse_update_period=every, norm_constraint=2 * max_kl)
    return kfac_jax_loop(X, optimizer, **{name: jnp.asarray(v) for name, v in now.items()})


class Contender(NamedTuple):
    """The function that makes `train`, the package it needs, and the settings to choose from.

    All combinations of `grid` are tried first. From the best of them, each value of `then` is tried
    by itself.
    """

    make: Callable
    package: str
    grid: dict
    then: dict


GRID = {"momentum": [0.5, 0.9], "damping": [1e-3, 3e-3], "max_kl": [3e-4, 3e-3]}
GRID |= {"learning_rate": [0.3], "every": [10]}
THEN = {"momentum": [0.7], "max_kl": [1e-2]}
CONTENDERS = {
    ADAM: Contender(adam, "deepprop", {"learning_rate": [1e-3, 3e-3, 1e-2, 3e-2]}, {}),
    OURS: Contender(
        deepprop_kfac, "deepprop", {"min_damping": [1e-4, 1e-3, 1e-2], "every": [5]}, {}
    ),
    "deepprop K-FAC, fixed": Contender(deepprop_kfac, "deepprop", GRID, THEN),
    "kfac-jax, adaptive": Contender(
        kfac_jax_adaptive, "kfac_jax", {"initial_damping": [1.0, 10.0, 150.0]}, {}
    ),
    "kfac-jax, fixed": Contender(kfac_jax_fixed, "kfac_jax", GRID, THEN),
}


@jax.jit
def cost(params, X):
    """Return J of the autoencoder."""
    return dp.cost(dp.forward(params, X)[1], X)


def run(train, X, sizes, seed, epochs):
    """Train with the clock stopped while J is evaluated; a non-finite J ends the run."""
    params, costs, seconds = start(sizes, seed), [], []

    def see(now, as_layers=lambda now, like: now):
        nonlocal begin
        seconds.append(time.perf_counter() - begin)
        costs.append(float(cost(as_layers(now, params), X)))
        if not np.isfinite(costs[-1]):
            raise FloatingPointError("J is not finite")
        begin = time.perf_counter()

    begin = time.perf_counter()
    train(params, epochs, seed, see)
    return Run(np.array(costs), np.cumsum(seconds))


def tune(contender, X, sizes, epochs):
    """Return the final J of each setting."""
    tried = {}

    def attempt(options):
        try:
            J = run(contender.make(X, **options), X, sizes, TUNING_SEED, epochs).costs[-1]
        except FloatingPointError:
            J = np.inf
        tried[tuple(options.items())] = J
        print(f"{contender.make.__name__}, {words(options.items())}: J = {J:.3f}", flush=True)

    for values in itertools.product(*contender.grid.values()):
        attempt(dict(zip(contender.grid, values, strict=True)))
    found = best(tried)
    for option, values in contender.then.items():
        for value in values:
            attempt({**found, option: value})
    return tried


def check_equal(X, sizes):
    """End the benchmark unless both libraries compute the same cost from the same parameters."""
    layers = start(sizes, 0)
    J, J_rows = cost(layers, X), jax.jit(rows_loss)(as_rows(layers), X.T)
    if not abs(J - J_rows) <= 1e-4 * J:
        raise SystemExit(f"the costs of the same parameters differ: {J} and {J_rows}")


def measure(X, sizes, epochs):
    """Return the settings tried, the seconds of the first steps, and the runs, one per seed."""
    there = each(CONTENDERS, lambda contender: importlib.import_module(contender.package))
    if any(CONTENDERS[name].package == "kfac_jax" for name in there):
        check_equal(X, sizes)
    tried = each({name: CONTENDERS[name] for name in there},
                 lambda contender: tune(contender, X, sizes, epochs))  # fmt: skip
    kfac_jax_optimizer.cache_clear()  # so that the first steps compile
    trains = {name: CONTENDERS[name].make(X, **best(its)) for name, its in tried.items()}
    few = -(-FIRST * BATCH // X.shape[1])
    first = {
        name: run(train, X, sizes, TUNING_SEED, few).seconds[-1] for name, train in trains.items()
    }
    runs, rng = {name: [] for name in trains}, np.random.default_rng(0)
    for seed in SEEDS:
        for name in rng.permutation(list(trains)):
            runs[name].append(run(trains[name], X, sizes, seed, epochs))
            print(f"{name}, seed {seed}: J = {runs[name][-1].costs[-1]:.3f}", flush=True)
    return tried, first, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", metavar="FILE.npz", help="such as mnist.npz (default: the digits)"
    )
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    if on_gpu():  # as in training.py
        jax.config.update("jax_default_matmul_precision", "highest")
    X, sizes = autoencoder(args.data)
    measured = measure(X, sizes, args.epochs)
    path = args.out / stem("kfac")
    path.with_name(f"{path.name}.md").write_text(text(X, sizes, args.epochs, *measured))
    print(f"written to {path}.md")
    try:
        picture(X, measured[-1], path.with_name(f"{path.name}.png"))
    except ImportError as error:
        print(f"no picture: {error}")
