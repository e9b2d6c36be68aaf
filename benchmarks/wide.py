"""Wide layers with products in bfloat16, as a share of the device's own rate of such products.

    pip install -e '.[peers]' && python benchmarks/wide.py

Every contender trains the same network on the same batch from the same parameters. First a few
steps must bring all to the same cost within the rounding of bfloat16. Then they take turns, in a
new order each round, and in the same rounds the device multiplies large matrices: the rate that a
step is held against.

The table is meant for a GPU or a TPU. `--anyway` runs small widths on a CPU, to try the script.
"""

import argparse
import contextlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contenders import by_example, on_gpu, optax_loss, rows_loss, torch_model
from report import RESULTS, Network, folder, markdown, setting, spread, today, write
from training import data

import deepprop as dp

BASE = "deepprop, bfloat16"
RATES = {"sgd": 2.0, "adam": 0.05}  # by the width: a step then changes Z alike at every width
CHECK_STEPS = 5
TOLERANCE = float(jnp.finfo(jnp.bfloat16).eps)  # of the cost at the start


def in_full(products):
    """Products of float32 without TensorFloat-32 or bfloat16 inside; narrow ones as they are."""
    return contextlib.nullcontext() if products else jax.default_matmul_precision("highest")


def stepping(program, carry, x, y):
    """A function that does some steps and waits for them, and one that gives the parameters.

    program is of (params, state, x, y), the first two of which it gives back changed.
    """

    def steps(count):
        nonlocal carry
        for _ in range(count):
            carry = program(*carry, x, y)[:2]
        jax.block_until_ready(carry)

    return steps, lambda: carry[0]


def deepprop_step(params, X, Y, optimizer, rate, *, products=None):
    """dp.train_step."""
    optimizer = getattr(optax, optimizer)(rate)
    start = dp.with_compute_dtype(jax.tree.map(jnp.copy, params), products)
    X, Y = jnp.asarray(X), jnp.asarray(Y)
    carry = start, optimizer.init(start)
    with in_full(products):
        program = dp.train_step(optimizer).lower(*carry, X, Y).compile()
    steps, now = stepping(program, carry, X, Y)
    return steps, lambda: [(p.W, p.b) for p in now()]


def narrow_loss(params, x, y):
    """rows_loss in mixed precision: what enters a product and what is kept is in bfloat16.

    Devices add up such a product in float32. To ask for a result in float32 too would make the
    cotangents float32, and the products of the backward pass slow ones.
    """
    x = x.astype(jnp.bfloat16)
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W.astype(jnp.bfloat16) + b.astype(jnp.bfloat16))
    W, b = params[-1]
    return optax_loss((x @ W.astype(jnp.bfloat16)).astype(jnp.float32) + b, y)


def jax_grad_step(params, X, Y, optimizer, rate, *, products=None):
    """jax.grad + optax, jitted: an example a row, W (in, out)."""
    optimizer = getattr(optax, optimizer)(rate)
    loss = narrow_loss if products else rows_loss
    start = tuple((jnp.array(p.W.T), jnp.array(p.b[:, 0])) for p in params)
    x, y = map(jnp.asarray, by_example(X, Y))

    def step(params, state, x, y):
        J, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, J

    carry = start, optimizer.init(start)
    with in_full(products):
        program = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, x, y).compile()
    steps, now = stepping(program, carry, x, y)
    return steps, lambda: [(W.T, b[:, None]) for W, b in now()]


def pytorch_step(params, X, Y, optimizer, rate):
    """torch.compile and torch.autocast, with PyTorch's fused optimizers."""
    import torch
    from torch import nn

    if jax.default_backend() not in ("cpu", "gpu"):
        raise RuntimeError(f"JAX has a {jax.default_backend()} here and PyTorch has none")
    model, device = torch_model(params)
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[optimizer](model.parameters(), lr=rate, fused=True)
    x, y = (torch.tensor(array, device=device) for array in by_example(X, Y))
    cross_entropy = nn.CrossEntropyLoss()

    def loss(x, y):
        with torch.autocast(device, torch.bfloat16):
            return cross_entropy(model(x), y)

    torch.compiler.reset()
    mode = "reduce-overhead" if on_gpu() else "default"
    loss = torch.compile(loss, dynamic=False, mode=mode)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(x, y).backward()
            optimizer.step()
        if on_gpu():
            torch.cuda.synchronize()

    def now():
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        pairs = [(layer.weight, layer.bias[:, None]) for layer in linears]
        return [tuple(jnp.asarray(p.detach().cpu().numpy()) for p in pair) for pair in pairs]

    return steps, now


CONTENDERS = {
    BASE: partial(deepprop_step, products="bfloat16"),
    "jax.grad, bfloat16": partial(jax_grad_step, products="bfloat16"),
    "PyTorch compiled, bfloat16": pytorch_step,
    "deepprop, float32": deepprop_step,
    "jax.grad, float32": jax_grad_step,
}


def float32_cost(params, weights, X, Y):
    """J of the network with these parameters, in float32."""
    layers = [(p.W, p.b) for p in params]
    assert [(W.shape, b.shape) for W, b in weights] == [(W.shape, b.shape) for W, b in layers]
    network = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(weights))
    with in_full(None):
        return float(jax.jit(lambda p: dp.cost(dp.forward(p, X)[1], Y))(network))


def start(params, X, Y, optimizer, rate):
    """Make the contenders and check them: the steps of each, costs after the check, and notes."""
    running, costs, notes = {}, {}, []
    for name, make in CONTENDERS.items():
        try:
            steps, now = make(params, X, Y, optimizer, rate)
            steps(CHECK_STEPS)
        except Exception as error:
            if name == BASE:
                raise
            why = (str(error).strip() or "no message").splitlines()[0]
            notes.append(f"{name} is left out: {type(error).__name__}: {why}")
            print(notes[-1], flush=True)
            continue
        running[name], costs[name] = steps, float32_cost(params, now(), X, Y)
    return running, costs, notes


def check_costs(before, costs):
    """Raise unless all reached the same cost, and one that tells training from none."""
    if not before - costs[BASE] > 3 * TOLERANCE * before:
        raise SystemExit(f"{CHECK_STEPS} steps change the cost too little: {before}, {costs}")
    if not max(abs(J - costs[BASE]) for J in costs.values()) <= TOLERANCE * before:
        raise SystemExit(f"after {CHECK_STEPS} steps from {before} the costs differ: {costs}")


def product_rate(repeats=3):
    """A function that gives the best operations a second of large products in bfloat16.

    Of three sizes, of each as many in a row as have the operations of one of the largest. The
    factors are random: with many zeros a device takes less power, and may be faster.
    """
    largest = 512 if jax.default_backend() == "cpu" else 16384

    def multiply(P, Q):
        return jnp.matmul(P, Q, preferred_element_type=jnp.float32)

    def draw(n):
        return [jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2)]

    sizes = [largest // 4, largest // 2, largest]
    factors = {n: draw(n) for n in sizes}
    multiply = jax.jit(multiply)

    def seconds(n):
        begin = time.perf_counter()
        for _ in range((largest // n) ** 3):
            product = multiply(*factors[n])
        product.block_until_ready()
        return time.perf_counter() - begin

    for n in sizes:
        seconds(n)
    return lambda: 2 * largest**3 / min(seconds(n) for n in sizes for _ in range(repeats))


def measure(network, optimizer, rounds):
    """Seconds a step of each contender and the product's rate, round by round; costs; notes."""
    sizes, batch_size, count = network
    X, Y = data(sizes, batch_size)
    params = dp.init_params(jax.random.key(0), sizes)
    before = float32_cost(params, [(p.W, p.b) for p in params], X, Y)
    running, costs, notes = start(params, X, Y, optimizer, RATES[optimizer] / sizes[0])
    check_costs(before, costs)

    names, rng, rate_now = list(running), np.random.default_rng(0), product_rate()
    seconds, rates = {name: [] for name in names}, []
    for _ in range(rounds):
        for i in rng.permutation(len(names) + 1):
            if i == len(names):
                rates.append(rate_now())
                continue
            running[names[i]](1)
            begin = time.perf_counter()
            running[names[i]](count)
            seconds[names[i]].append((time.perf_counter() - begin) / count)
    seconds = {name: np.array(values) for name, values in seconds.items()}
    return seconds, np.array(rates), (before, costs), notes


def table(results):
    head = ["network, batch", "optimizer", "", "ms a step: median (min to max)"]
    head += ["share of the product rate (goal: 80 %)", "time by deepprop's, bfloat16"]
    rows = []
    for (network, optimizer), (seconds, rates, *_) in results.items():
        for name, its in seconds.items():
            rows.append([
                f"{network.shape()}, {network.batch_size}",
                optimizer,
                name,
                spread(1e3 * its, ",.3f"),
                spread(network.operations() / its / rates, ".1%"),
                spread(its / seconds[BASE], ".2f"),
            ])  # fmt: skip
    return markdown(head, rows)


def checks(results):
    head = ["network, batch", "optimizer", "matrix product, TFLOP/s: median (min to max)"]
    head += ["J at the start", f"deepprop's, {CHECK_STEPS} steps later", "furthest from it"]
    rows = []
    for (network, optimizer), (_, rates, (before, costs), _) in results.items():
        furthest = max(costs, key=lambda name: abs(costs[name] - costs[BASE]))
        rows.append([
            f"{network.shape()}, {network.batch_size}",
            optimizer,
            spread(rates / 1e12, ",.2f"),
            f"{before:.4f}",
            f"{costs[BASE]:.4f}",
            f"{costs[furthest]:.4f} ({furthest})",
        ])  # fmt: skip
    return markdown(head, rows)


def text(results, rounds, steps):
    trial = jax.default_backend() == "cpu"
    warning = "**A trial of the script on a CPU: these numbers say nothing.**\n\n" if trial else ""
    notes = [note for *_, said in results.values() for note in said]
    said = "".join(f"\n{note}.\n" for note in dict.fromkeys(notes))
    return f"""# Wide layers with products in bfloat16, {today()}

{warning}{setting()}.

relu layers and softmax, {rounds} rounds of {steps} steps; in each, the contenders in a new order. Ratios and
shares are of one round: median (min to max). Parameters, optimizer and data are in float32. In the
rows of bfloat16 the factors of matrix products and the activations are in bfloat16, and sums of
products in float32; deepprop's dW comes out in float32, that of the others in bfloat16. In the rows
of float32 products are in full float32, no TensorFloat-32; their share too is of the rate in
bfloat16. The rate is that of the best of three large square products in bfloat16, in the same round.
The operations of a step are those of its matrix products.

{table(results)}
{said}
## The rate, and the check before

All must reach deepprop's cost after {CHECK_STEPS} steps, within {TOLERANCE:.1%} of that at the start. J is computed in
float32 from the parameters of each.

{checks(results)}
"""


def arguments(cpu):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = partial(str.split, sep=",")
    parser.add_argument("--widths", type=numbers, default=["128", "256"] if cpu else ["4096", "8192"],
                        help="units a layer, with commas (default: 4096,8192)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128 if cpu else 4096)
    parser.add_argument("--optimizers", type=numbers, default=list(RATES),
                        help=f"with commas (default: {','.join(RATES)})")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=10, help="that a round times (default: 10)")
    parser.add_argument("--anyway", action="store_true", help="run on a CPU, to try the script")
    parser.add_argument("--out", type=folder, help="folder (default: results; on a CPU none)")
    args = parser.parse_args()
    if unknown := set(args.optimizers) - set(RATES):
        parser.error(f"there is no optimizer {', '.join(unknown)}")
    return args


def main():
    cpu = jax.default_backend() == "cpu"
    args = arguments(cpu)
    if cpu and not args.anyway:
        raise SystemExit(
            "This table is meant for a GPU or a TPU: a CPU runs it only with --anyway."
        )
    out = args.out or (None if cpu or args.anyway else folder(RESULTS))
    results = {}
    for width in map(int, args.widths):
        sizes = (*[width] * args.layers, 10)
        for optimizer in args.optimizers:
            network = Network(sizes, args.batch, args.steps)
            results[network, optimizer] = measure(network, optimizer, args.rounds)
            one = {(network, optimizer): results[network, optimizer]}
            print(f"\n{table(one)}\n", flush=True)
    written = text(results, args.rounds, args.steps)
    if out is None:
        print(written)
    else:
        write(written, "wide", out)


if __name__ == "__main__":
    main()
