"""Training time, side by side: deepprop's fit and the loops that people write with other libraries.

    pip install -e '.[peers]' && python benchmarks/training.py

Every contender trains the same network from the same parameters on the same data with Adam. First a
full-batch step must bring all to the same cost (one: in 64 layers Adam makes much of rounding); then
they take turns, epoch by epoch, so that the machine's drift cancels. A round's ratio is of epochs that stand next to one another; the median
and the spread over rounds are shown. What the first call costs beyond the later ones is left out and reported apart.
"""

import argparse
import datetime
import itertools
import os
import platform
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp

NETWORKS = {  # sizes, batch size, steps an epoch
    "tiny": ([30, 16, 1], 32, 200),
    "small": ([784, 32, 10], 32, 100),
    "medium": ([784, 256, 128, 10], 128, 50),
    "wide batch": ([784, 256, 10], 2048, 10),
    "deep": ([256] * 64 + [10], 128, 10),
    "large": ([784, 1024, 1024, 1024, 10], 512, 4),
}
RATE = 1e-3


def data(sizes, m):
    """X (n_0, m), Y (n_L, m): one-hot for several outputs, 0 or 1 for one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((sizes[0], m)).astype(np.float32)
    n = max(2, sizes[-1])
    Y = np.eye(n, dtype=np.float32)[:, rng.integers(n, size=m)]
    return X, Y if sizes[-1] > 1 else Y[1:]


def deepprop_fit(params, X, Y, batch_size):
    """dp.fit, with what it does between epochs."""
    optimizer, now = optax.adam(RATE), {"params": params, "state": None}

    def epochs(count):
        marks = [time.perf_counter()]
        fit = dp.fit(
            now["params"], optimizer, X, Y, epochs=count + 1, batch_size=batch_size,
            key=jax.random.key(0), state=now["state"],
            callbacks=[lambda *_: marks.append(time.perf_counter())],
        )  # fmt: skip
        now.update(params=fit.params, state=fit.state)
        return (marks[-1] - marks[1]) / count  # fit's checks of its arguments come before

    def cost_after(steps):
        fit = dp.fit(
            params, optimizer, X, Y, epochs=steps, batch_size=X.shape[1], key=jax.random.key(0)
        )
        return float(dp.cost(dp.forward(fit.params, X)[1], Y))

    return epochs, cost_after


def autodiff_loss(params, x, y):
    """A forward pass as JAX users write it: an example a row, W (in, out)."""
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = params[-1]
    z = x @ W + b
    if y.shape[1] == 1:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(z, y))
    return jnp.mean(optax.softmax_cross_entropy(z, y))


def jax_grad(params, X, Y, batch_size, *, scanned):
    """jax.grad + optax: one jitted step, or an epoch of them in lax.scan."""
    optimizer, x, y = optax.adam(RATE), jnp.asarray(X.T), jnp.asarray(Y.T)
    start = tuple((jnp.asarray(p.W.T), p.b[:, 0]) for p in params)

    def step(params, state, x, y):
        grads = jax.grad(autodiff_loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @partial(jax.jit, donate_argnums=(0, 1))
    def scanned_epoch(params, state, order, x, y):
        def body(carry, i):
            return step(*carry, x[i], y[i]), None

        return jax.lax.scan(body, (params, state), order)[0]

    jitted = jax.jit(step, donate_argnums=(0, 1))
    now = {"carry": (jax.tree.map(jnp.copy, start), optimizer.init(start)), "epoch": 0}

    def one_epoch(carry, size):
        now["epoch"] += 1
        order = jax.random.permutation(jax.random.key(now["epoch"]), len(x)).reshape(-1, size)
        if scanned:
            return scanned_epoch(*carry, order, x, y)
        x_np, y_np, order = X.T, Y.T, np.asarray(order)
        for i in order:
            carry = jitted(*carry, x_np[i], y_np[i])
        return carry

    def epochs(count):
        begin = time.perf_counter()
        for _ in range(count):
            now["carry"] = one_epoch(now["carry"], batch_size)
        jax.block_until_ready(now["carry"])
        return (time.perf_counter() - begin) / count

    def cost_after(steps):
        carry = jax.tree.map(jnp.copy, start), optimizer.init(start)
        for _ in range(steps):
            carry = one_epoch(carry, len(x))
        return float(autodiff_loss(carry[0], x, y))

    return epochs, cost_after


def torch_eager(params, X, Y, batch_size):
    """PyTorch, eager, with fused Adam; minibatches by an index, which is faster than a DataLoader."""
    import torch
    from torch import nn

    def make():
        layers = []
        for p in params:
            linear = nn.Linear(p.W.shape[1], p.W.shape[0])
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(np.asarray(p.W)))
                linear.bias.copy_(torch.tensor(np.asarray(p.b[:, 0])))
            layers += [linear, nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        return model, torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    x, y = torch.tensor(X.T.copy()), torch.tensor(Y.T.copy())
    loss = nn.BCEWithLogitsLoss() if y.shape[1] == 1 else nn.CrossEntropyLoss()

    def one_epoch(model, optimizer, size):
        for i in torch.randperm(len(x)).split(size):
            optimizer.zero_grad(set_to_none=True)
            loss(model(x[i]), y[i]).backward()
            optimizer.step()

    model, optimizer = make()

    def epochs(count):
        begin = time.perf_counter()
        for _ in range(count):
            one_epoch(model, optimizer, batch_size)
        return (time.perf_counter() - begin) / count

    def cost_after(steps):
        other, its_optimizer = make()
        for _ in range(steps):
            one_epoch(other, its_optimizer, len(x))
        with torch.no_grad():
            return float(loss(other(x), y))

    return epochs, cost_after


def scikit_learn(params, X, Y, batch_size):
    """MLPClassifier; it draws its own parameters, so its cost is not compared."""
    from sklearn.neural_network import MLPClassifier

    x = X.T.copy()
    y = Y.argmax(axis=0) if len(Y) > 1 else Y[0]
    hidden = [p.W.shape[0] for p in params[:-1]]
    model = MLPClassifier(hidden, alpha=0.0, batch_size=batch_size, learning_rate_init=RATE)
    classes = np.unique(y)

    def epochs(count):
        begin = time.perf_counter()
        for _ in range(count):
            model.partial_fit(x, y, classes=classes)
        return (time.perf_counter() - begin) / count

    return epochs, None


CONTENDERS = {
    "deepprop fit": deepprop_fit,
    "jax.grad scanned": partial(jax_grad, scanned=True),
    "jax.grad step": partial(jax_grad, scanned=False),
    "PyTorch eager": torch_eager,
    "scikit-learn": scikit_learn,
}


def measure(name, rounds):
    """For each contender: seconds a step, round by round, and what the first call costs beyond.

    The latter is tracing, compiling and setting up: the first epoch less the second.
    """
    sizes, batch_size, steps = NETWORKS[name]
    X, Y = data(sizes, batch_size * steps)
    output = "sigmoid" if sizes[-1] == 1 else "softmax"
    params = dp.init_params(jax.random.key(0), sizes, output=output)
    running, first, costs = {}, {}, {}
    for contender, make in CONTENDERS.items():
        try:
            begin = time.perf_counter()
            epochs, cost_after = make(params, X, Y, batch_size)
            epochs(1)
            first[contender] = time.perf_counter() - begin - _timed(partial(epochs, 1))
        except ImportError as error:
            print(f"{name}: {contender} is left out: {error}")
            continue
        running[contender] = epochs
        if cost_after is not None:
            costs[contender] = cost_after(1)
    spread = max(costs.values()) - min(costs.values())
    if spread > 1e-3 * max(costs.values()):
        raise SystemExit(f"{name}: after a full-batch step the costs differ: {costs}")
    times = {contender: [] for contender in running}
    for _ in range(rounds):
        for contender, epochs in running.items():
            times[contender].append(epochs(1) / steps)
    return {c: np.array(t) for c, t in times.items()}, first


def matrix_rate(repeats=15):
    """Floating-point operations a second of a 1024 x 1024 product, the best of several."""
    A = jnp.ones((1024, 1024))
    product = jax.jit(lambda A: A @ A)
    product(A).block_until_ready()
    best = min(_timed(lambda: product(A).block_until_ready()) for _ in range(repeats))
    return 2 * 1024**3 / best


def _timed(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def table(results):
    """One line a network and contender, in Markdown."""
    lines = [
        "| network, batch | | us a step: median (min to max) | time by deepprop's: median (min to max) |"
        " first call beyond the later ones, s | of the matrix-product rate |",
        "|---|---|---|---|---|---|",
    ]
    for name, (times, first, rate) in results.items():
        sizes, batch_size, _ = NETWORKS[name]
        shape = (
            "-".join(map(str, sizes))
            if len(sizes) < 9
            else f"{len(sizes) - 1} layers of {sizes[0]}"
        )
        work = 6 * batch_size * sum(n * k for n, k in itertools.pairwise(sizes))
        work -= 2 * batch_size * sizes[0] * sizes[1]  # dA[0] is not needed
        for contender, t in times.items():
            us, ratio = 1e6 * t, t / times["deepprop fit"]
            cells = [
                f"{name}: {shape}, {batch_size}",
                contender,
                f"{np.median(us):,.0f} ({us.min():,.0f} to {us.max():,.0f})",
                f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
                f"{first[contender]:.2f}",
                f"{work / np.median(t) / rate:.0%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK",
                        help=f"{', '.join(NETWORKS)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"there is no network {', '.join(unknown)}")
    results = {}
    for name in args.networks:
        results[name] = (*measure(name, args.rounds), matrix_rate())
        print(table({name: results[name]}), flush=True)
    device = jax.devices()[0].device_kind
    day = datetime.date.today().isoformat()
    versions = {"jax": jax.__version__, "optax": optax.__version__, "deepprop": dp.__version__}
    for module in ("torch", "sklearn"):
        try:
            versions[module] = __import__(module).__version__
        except ImportError:
            continue
    machine = f"{device}, {os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}"
    listed = ", ".join(f"{k} {v}" for k, v in versions.items())
    text = f"# Training, {day}\n\n{machine}; {listed}. {args.rounds} rounds.\n\n{table(results)}\n"
    path = (
        Path(__file__).parent
        / "results"
        / f"training-{day}-jax-{jax.__version__}-{device.replace(' ', '-')}.md"
    )
    path.write_text(text)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
