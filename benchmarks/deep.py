"""Very deep networks: compile time, recomputation, updates in the backward pass, and 1,000 layers.

    pip install -e '.[peers]' && python -m benchmarks deep

Programs take turns, in a new order in each round, after a check that they return the same gradient
or the same parameters. Temporary bytes are those that XLA reports for the compiled program.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from deepprop.command.data import load_data

L, N, M = 256, 256, 256  # layers, units, examples
KEEP = 16


def compile_seconds(depths, rounds):
    """Return a row per depth: seconds to trace and compile a step of Adam; ratio to the first."""
    X, Y = jnp.ones((64, 128)), jnp.full((10, 128), 0.1)
    optimizer = optax.adam(1e-3)

    def seconds(depth, stacked):
        params = dp.init_params(
            jax.random.key(0), [64, *[64] * depth, 10], residual=True, stack=stacked
        )
        state = optimizer.init(params)
        jax.clear_caches()
        begin = time.perf_counter()
        dp.train_step(optimizer).lower(params, state, X, Y).compile()
        return time.perf_counter() - begin

    seconds(3, True)
    stacked = np.array([[seconds(depth, True) for depth in depths] for _ in range(rounds)])
    rows = []
    for i, depth in enumerate(depths):
        one_by_one = f"{seconds(depth, False):.1f}" if depth <= 100 else "—"
        ratio = spread(stacked[:, i] / stacked[:, 0], ".2f")
        rows.append([f"{depth:,}", f"{np.median(stacked[:, i]):.2f}", ratio, one_by_one])
    return rows


def by_hand(params, X, Y):
    """Return the gradient by manual_backward; X and Y have one example per row."""
    return dp.manual_backward(dp.forward(params, X.T)[1], Y.T)


def by_autodiff(keep):
    """Return jax.grad of a scan over the layers; for keep > 1, jax.checkpoint of each segment."""

    def layer(A, weights):
        W, b = weights
        return jnp.maximum(A @ W.T + b[:, 0], 0), None

    def cost(weights, X, Y):
        stack, (W, b) = weights
        if keep == 1:
            A, _ = jax.lax.scan(layer, X, stack)
        else:
            segments = jax.tree.map(lambda leaf: leaf.reshape(-1, keep, *leaf.shape[1:]), stack)
            segment = jax.checkpoint(lambda A, part: jax.lax.scan(layer, A, part))
            A, _ = jax.lax.scan(segment, X, segments)
        Z = A @ W.T + b[:, 0]
        return jnp.mean(jax.nn.logsumexp(Z, axis=1) - jnp.sum(Z * Y, axis=1))

    return jax.grad(cost)


def in_turns(programs, rounds):
    """Return the seconds of each program, a function without arguments, round by round."""
    seconds, rng = {name: [] for name in programs}, np.random.default_rng(0)
    names = list(programs)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            begin = time.perf_counter()
            jax.block_until_ready(programs[names[i]]())
            seconds[names[i]].append(time.perf_counter() - begin)
    return {name: np.array(values) for name, values in seconds.items()}


def check_equal(one, other, tolerance):
    """Raise unless the leaves agree, relative to the largest entry of each."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        assert error < tolerance, error


def recomputing(rounds):
    """Return a row per program: temporary bytes and time, relative to storing every A."""
    params = dp.init_params(jax.random.key(0), [N, *[N] * L, 10], stack=True)
    X = jax.random.normal(jax.random.key(1), (M, N))
    Y = jax.nn.one_hot(jnp.arange(M) % 10, 10)
    weights = tuple((layer.W, layer.b) for layer in params)
    names = ["deepprop, all stored", f"deepprop, every {KEEP}th", "jax.grad, all stored"]
    names += [f"jax.grad and jax.checkpoint, every {KEEP}th"]
    every_kth = dp.stack(params, KEEP)
    cases = zip(
        names,
        (by_hand, by_hand, by_autodiff(1), by_autodiff(KEEP)),
        (params, every_kth, weights, weights),
        strict=True,
    )
    programs, memory = {}, {}
    for name, f, network in cases:
        compiled = jax.jit(f).lower(network, X, Y).compile()
        programs[name] = partial(compiled, network, X, Y)
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
        check_equal(programs[name](), programs[names[0]](), 1e-4)
    seconds = in_turns(programs, rounds)
    first = names[0]
    return [
        [
            name,
            f"{memory[name] / 1e6:.1f}",
            f"{memory[name] / memory[first]:.2f}",
            spread(seconds[name] / seconds[first], ".2f"),
        ]
        for name in names
    ]


def updating(rounds):
    """Return a row per optimizer: temporary bytes without and with in_backward; time ratio."""
    X = jax.random.normal(jax.random.key(1), (64, 64))
    Y = jax.nn.one_hot(jnp.arange(64) % 10, 10, axis=0)
    rows = []
    for name, optimizer in (("SGD", optax.sgd(1e-3)), ("Adam", optax.adam(1e-4))):
        params = dp.init_params(jax.random.key(0), [64, *[N] * 128, 10], residual=True, stack=True)
        runs, memory, programs = {}, {}, {}
        for one in (optimizer, dp.in_backward(optimizer)):
            step = dp.train_step(one)
            program = step.lower(params, one.init(params), X, Y).compile()
            memory[one] = program.memory_analysis().temp_size_in_bytes
            runs[one] = [jax.tree.map(jnp.copy, params), one.init(params)]

            def run(one=one, program=program, runs=runs):
                runs[one][0], runs[one][1], _ = program(*runs[one], X, Y)
                return runs[one]

            programs[one] = run
        ways = list(programs)
        for way in ways:
            programs[way]()
        check_equal(runs[ways[1]][0], runs[ways[0]][0], 1e-3)
        seconds = in_turns(programs, rounds)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        rows.append(
            [
                name,
                f"{size / 1e6:.1f}",
                *(f"{memory[way] / 1e6:.1f}" for way in ways),
                spread(seconds[ways[1]] / seconds[ways[0]], ".2f"),
            ]
        )
    return rows


def a_thousand(seeds, epochs):
    """Return a row per seed: the accuracy of 1,000 residual layers on held-out digits; seconds."""
    rows = []
    for seed in range(seeds):
        data = load_data(None, seed=seed)
        sizes = [data.X.shape[0], *[64] * 1000, data.Y.shape[0]]
        params = dp.init_params(jax.random.key(seed), sizes, residual=True, stack=True)
        steps = epochs * -(-data.X.shape[1] // 32)
        begin = time.perf_counter()
        fit = dp.fit(
            dp.stack(params, "sqrt"), optax.adam(optax.cosine_decay_schedule(3e-5, steps)),
            data.X, data.Y, epochs=epochs, batch_size=32, key=jax.random.key(seed),
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        right = jnp.argmax(dp.predict(fit.params, data.X_test), 0) == jnp.argmax(data.Y_test, 0)
        rows.append([f"{seed}", f"{100 * float(right.mean()):.1f} %", f"{seconds:.0f}"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    text = f"""# Very deep networks, {today()}

{setting()}.

Ratios are medians over {args.rounds} rounds (min to max).

## Compile time

Seconds to trace and compile one step of Adam for residual layers of 64 units, as a stack and as
single layers.

{markdown(["layers", "stack: s", "relative to 10 layers", "single layers: s"], compile_seconds([10, 100, 1000], args.rounds))}

## Recomputation

The gradient of {L} relu layers of {N}, batch {M}, float32.

{markdown(["", "temporary MB", "relative to all stored", "time relative to all stored"], recomputing(args.rounds))}

## The update in the backward pass

One step of 128 residual layers of {N}, batch 64; MB of the parameters, and of temporary memory.

{markdown(["optimizer", "parameters", "temporary", "with in_backward", "time relative to without"], updating(args.rounds))}

## 1,000 layers

{args.epochs} epochs of the digits on 1,000 residual relu layers of 64 (4.2 million parameters), Adam with a cosine
schedule from 3e-5, minibatches of 32, `keep="sqrt"`: accuracy on the held-out digits, and seconds,
including compiling.

{markdown(["seed", "accuracy", "s"], a_thousand(args.seeds, args.epochs))}
"""
    write(text, "deep", args.out)
