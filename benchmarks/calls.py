"""Waiting: whole training calls from NumPy rows, beside other libraries as their users write them.

    pip install -e '.[peers]' && python -m benchmarks calls

training.py times steps. A person also waits for what a call does before its first step: the data is
checked, copied and turned. Each call here starts with NumPy rows of MNIST's size (noise around a
mean for each class) and new parameters, and ends with the trained ones. Its programs are compiled
in a call before. Each contender must reach a cost below 0.1 in two epochs; the costs can't be equal,
as each shuffles its own way.
"""

import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.contenders import BASE, RATE, rows_loss, torch_model
from benchmarks.report import arguments, markdown, setting, spread, today, write
from benchmarks.training import each, share_of_others

EXAMPLES = 60_000
NETWORKS = {"small": ([784, 32, 10], 32), "medium": ([784, 256, 128, 10], 128)}
EPOCHS = (1, 2, 10)


def data(n_0, n_L):
    """Return rows x (m, n_0), one-hot y (m, n_L), and the classes: noise around a mean for each class; half of x is 0."""
    rng = np.random.default_rng(0)
    classes, means = rng.integers(n_L, size=EXAMPLES), rng.choice([-1, 1], (n_L, n_0))
    noise = rng.standard_normal((EXAMPLES, n_0), dtype=np.float32)
    x = np.clip(0.3 * noise + 0.06 * means[classes].astype(np.float32), 0, 1)  # half are 0
    return x, np.eye(n_L, dtype=np.float32)[classes], classes


def deepprop(params, x, y, classes, batch_size, epochs):
    """Train with dp.fit; x.T is a view."""
    fit = dp.fit(
        params, adam(), x.T, y.T, epochs=epochs, batch_size=batch_size, key=jax.random.key(0)
    )
    jax.block_until_ready(fit.params)
    return lambda: dp.cost(dp.forward(fit.params, x.T)[1], y.T)


@cache
def adam():
    """Return one optimizer object, whose programs all calls share."""
    return optax.adam(RATE)


@partial(jax.jit, static_argnames="batch_size", donate_argnums=0)
def scanned_epoch(carry, key, x, y, batch_size):
    """Train for one epoch with jax.grad, in a scan over its steps; the rest of the rows is left out."""

    def step(carry, i):
        params, state = carry
        grads = jax.grad(rows_loss)(params, x[i], y[i])
        updates, state = adam().update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    steps = len(x) // batch_size
    order = jax.random.permutation(key, len(x))[: steps * batch_size].reshape(steps, batch_size)
    return jax.lax.scan(step, carry, order)[0]


def jax_grad_scanned(params, x, y, classes, batch_size, epochs):
    """Train with jax.grad and optax: an epoch is a compiled scan."""
    start = tuple((jnp.array(p.W.T), jnp.array(p.b[:, 0])) for p in params)
    carry, x, y = (start, adam().init(start)), jnp.asarray(x), jnp.asarray(y)
    for key in jax.random.split(jax.random.key(0), epochs):
        carry = scanned_epoch(carry, key, x, y, batch_size)
    jax.block_until_ready(carry)
    return lambda: rows_loss(carry[0], x, y)


def pytorch(params, x, y, classes, batch_size, epochs):
    """Train with PyTorch's fused Adam; indexing makes minibatches faster than a DataLoader."""
    import torch

    model, _ = torch_model(params)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, classes = torch.from_numpy(x), torch.from_numpy(classes)
    loss = torch.nn.CrossEntropyLoss()
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss(model(x[i]), classes[i]).backward()
            optimizer.step()

    def cost():
        with torch.no_grad():
            return loss(model(x), classes)

    return cost


def scikit_learn(params, x, y, classes, batch_size, epochs):
    """Train an MLPClassifier, which draws its own parameters."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        [len(p.W) for p in params[:-1]], alpha=0.0, batch_size=batch_size, max_iter=epochs,
        learning_rate_init=RATE,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, classes)
    return lambda: model.loss_


CONTENDERS = {
    BASE: deepprop,
    "jax.grad, scanned": jax_grad_scanned,
    "PyTorch eager": pytorch,
    "scikit-learn": scikit_learn,
}


def seconds_of(call):
    """Return how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(name, rounds):
    """Return the seconds of each contender, by epochs, and the share of the machine of others."""
    sizes, batch_size = NETWORKS[name]
    arrays = data(sizes[0], sizes[-1])
    params = dp.init_params(jax.random.key(0), sizes)
    calls = {who: partial(train, params, *arrays, batch_size) for who, train in CONTENDERS.items()}
    costs = each(calls, lambda call: float(call(2)()))
    if max(costs.values()) > 0.1:  # log(10) = 2.3 before the first
        raise SystemExit(f"after two epochs a contender has not learned: {costs}")
    seconds = {(who, epochs): [] for who in costs for epochs in EPOCHS}
    others, rng = share_of_others(), np.random.default_rng(0)
    for _ in range(rounds):
        for epochs in EPOCHS:
            for who in rng.permutation(list(costs)):
                seconds[who, epochs].append(seconds_of(partial(calls[who], epochs)))
    return {key: np.array(times) for key, times in seconds.items()}, others()


def table(seconds):
    """Return the table of a network: seconds, and ratios to deepprop's, round by round."""
    rows = []
    for who in dict.fromkeys(who for who, _ in seconds):
        row = [who]
        for epochs in EPOCHS:
            times = seconds[who, epochs]
            row += [f"{np.median(times):.2f}", spread(times / seconds[BASE, epochs], ".2f")]
        rows.append(row)
    head = [
        "",
        *(cell for e in EPOCHS for cell in (f"{e} epoch{'s' * (e > 1)}, s", "relative to fit")),
    ]
    return markdown(head, rows)


def main():
    """Measure and write the tables."""
    args = arguments(__doc__, NETWORKS, rounds=7)
    report = [f"# Whole calls, {today()}", f"{setting()}.", (
        f"{EXAMPLES:,} examples, Adam, float32, {args.rounds} rounds, each in a new order of the"
        " contenders. Medians; in brackets the least and the largest ratio of a round."
    )]  # fmt: skip
    for name in args.networks:
        seconds, others = measure(name, args.rounds)
        sizes, batch_size = NETWORKS[name]
        report += [
            f"## {'-'.join(map(str, sizes))}, batch {batch_size}",
            table(seconds),
            f"Other programs used {others or 0:.1%} of the processors.",
        ]
        write("\n\n".join(report) + "\n", "calls", args.out)  # after each network
