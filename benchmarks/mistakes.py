"""Mistakes in a backward pass: which of them still train a network, so that nobody notices.

    python -m benchmarks mistakes

The digits that come with deepprop, 64-32-32-32-10, tanh, softmax; plain gradient descent, rate 0.3,
batches of 32, 30 epochs, three seeds. Each mistake is made in all layers; where its shapes do not
fit, as in the first and the last layer, that layer is right. "Off by" is the length of the
difference to the right gradient at the start, relative to the right one's.
"""

import argparse
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.report import RESULTS, folder, markdown, setting, today, write
from deepprop.checking.mistakes import CATALOGUE
from deepprop.checking.plain import PAGE, Mistake, Problem, passes
from deepprop.command.data import load_data

SIZES, RATE, BATCH, SEEDS = [64, 32, 32, 32, 10], 0.3, 32, 3
# These read another step, belong to another cost, output or loop, or fit only where m is n_l.
LEFT_OUT = (
    "db is summed over the wrong axis", "db is averaged over the wrong axis", "the cache is",
    "the weights are", "L2", "Y is", "b, as a vector", "A - Y is used", "dZ[L] is twice", "the cost is",
    "the sum is divided", "only the", "the updated", "the sigmoid's", "g' is that of tanh", "m is",
)  # fmt: skip


def where_it_fits(mistake):
    """Return the mistake, with the right line in layers where the wrong one has another shape."""

    def fitting(name, wrong):
        def equation(p, l):
            right = PAGE[name](p, l)
            try:
                return jnp.broadcast_to(wrong(p, l), right.shape)
            except (TypeError, ValueError):
                return right

        return equation

    return replace(mistake, equations={n: fitting(n, f) for n, f in mistake.equations.items()})


def backward(mistake):
    """Return a backward pass with that mistake, for dp.fit."""

    def made(cache, Y, weights):
        W, b = ({l: getattr(p, name) for l, p in enumerate(cache.params, 1)} for name in "Wb")
        hidden = [p.activation for p in cache.params[:-1]]
        problem = Problem(W, b, cache.A[0], Y, hidden, cache.params[-1].activation)
        p = passes(problem, mistake, rate=RATE)
        return tuple(replace(q, W=p.dW[l], b=p.db[l]) for l, q in enumerate(cache.params, 1))

    return made


def flat(grads):
    """Return gradients as one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


def measure(mistake, data, epochs):
    """Return the held-out accuracies in per cent, one per seed, and how far the gradient is off."""
    made, accuracies = backward(mistake), []
    for seed in range(SEEDS):
        start, order = jax.random.split(jax.random.key(seed))
        params = dp.init_params(start, SIZES, hidden="tanh")
        if seed == 0:
            cache, Y = dp.forward(params, data.X[:, :BATCH])[1], data.Y[:, :BATCH]
            right = flat(dp.manual_backward(cache, Y))
            off = np.linalg.norm(flat(made(cache, Y, None)) - right) / np.linalg.norm(right)
        try:
            fit = dp.fit(params, optax.sgd(RATE), data.X, data.Y, epochs=epochs, batch_size=BATCH,
                         key=order, backward=made)  # fmt: skip
        except dp.TrainingError:  # the cost is not finite
            return [-np.inf], off
        A = dp.predict(fit.params, data.X_test)
        accuracies.append(100 * float(jnp.mean(A.argmax(0) == data.Y_test.argmax(0))))
    return accuracies, off


def report(results, epochs):
    """Return the report, the mistakes that train best first."""
    rows = []
    for name, (accuracies, off) in sorted(results.items(), key=lambda its: -np.median(its[1][0])):
        cells = "not finite", "—"
        if np.isfinite(accuracies).all():
            low, middle, high = np.quantile(accuracies, [0, 0.5, 1])
            cells = f"{middle:.1f}", f"{low:.1f} to {high:.1f}"
        rows.append([name, *cells, f"{100 * off:.0f} %"])
    head = ["the backward pass", "held-out accuracy, %", "three seeds", "gradient off by"]
    return f"""# Mistakes that train, {today()}

{setting()}.

The digits, 64-32-32-32-10, tanh, softmax, gradient descent, rate {RATE}, batches of {BATCH}, {epochs} epochs.
Each mistake is made in all layers where its shapes fit. "Off by": at the start, where b is 0.

{markdown(head, rows)}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    data = load_data(None)
    mistakes = [Mistake("right", "", "", {})]
    mistakes += [where_it_fits(m) for m in CATALOGUE if not m.name.startswith(LEFT_OUT)]
    results = {}
    for mistake in mistakes:
        results[mistake.name] = measure(mistake, data, args.epochs)
        print(mistake.name, *results[mistake.name], flush=True)
    write(report(results, args.epochs), "mistakes", args.out)
