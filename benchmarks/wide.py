"""Wide layers with matrix products in bfloat16, compared with the device's rate for such products.

    pip install -e '.[peers]' && python -m benchmarks wide

Every contender trains the same network on the same batch from the same parameters. First, all must
reach the same cost within a few steps, up to the rounding of bfloat16. Then they take turns, in a
new order in each round. In the same rounds the device multiplies large matrices, and the rate of a
step is reported as a share of that rate.

The table is for a GPU or a TPU. `--anyway` runs small widths on a CPU, to try out the script.
"""

import argparse
import contextlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deepprop as dp
from benchmarks.contenders import by_example, on_gpu, optax_loss, rows_loss, torch_model
from benchmarks.report import RESULTS, Network, folder, markdown, setting, spread, today, write
from benchmarks.training import data

BASE = "deepprop, bfloat16"
RATES = {
    "sgd": 2.0,
    "adam": 0.05,
}  # divided by the width, so that a step changes Z equally at every width
CHECK_STEPS = 5
TOLERANCE = float(jnp.finfo(jnp.bfloat16).eps)  # relative to the initial cost


def full_float32(compute_dtype):
    """Switch TensorFloat-32 and bfloat16 off for products of float32; without effect on others."""
    return contextlib.nullcontext() if compute_dtype else jax.default_matmul_precision("highest")


def stepping(program, carry, x, y):
    """Return steps(count), which runs steps and waits for them, and now(), the parameters.

    program(params, state, x, y) returns new parameters and a new state first.
    """

    def steps(count):
        nonlocal carry
        for _ in range(count):
            carry = program(*carry, x, y)[:2]
        jax.block_until_ready(carry)

    return steps, lambda: carry[0]


def deepprop_step(params, X, Y, optimizer, rate, *, compute_dtype=None):
    """Compile dp.train_step."""
    optimizer = getattr(optax, optimizer)(rate)
    start = dp.with_compute_dtype(jax.tree.map(jnp.copy, params), compute_dtype)
    X, Y = jnp.asarray(X), jnp.asarray(Y)
    carry = start, optimizer.init(start)
    with full_float32(compute_dtype):
        program = dp.train_step(optimizer).lower(*carry, X, Y).compile()
    steps, now = stepping(program, carry, X, Y)
    return steps, lambda: [(p.W, p.b) for p in now()]


def narrow_loss(params, x, y):
    """Return rows_loss in mixed precision: factors of products and activations are in bfloat16.

    Devices add up such a product in float32. Asking for its result in float32 would make the
    cotangents float32 too, and thereby the products of the backward pass slow.
    """
    x = x.astype(jnp.bfloat16)
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W.astype(jnp.bfloat16) + b.astype(jnp.bfloat16))
    W, b = params[-1]
    return optax_loss((x @ W.astype(jnp.bfloat16)).astype(jnp.float32) + b, y)


def jax_grad_step(params, X, Y, optimizer, rate, *, compute_dtype=None):
    """Compile a step of jax.grad and optax: one example per row, W (in, out)."""
    optimizer = getattr(optax, optimizer)(rate)
    loss = narrow_loss if compute_dtype else rows_loss
    start = tuple((jnp.array(p.W.T), jnp.array(p.b[:, 0])) for p in params)
    x, y = map(jnp.asarray, by_example(X, Y))

    def step(params, state, x, y):
        J, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, J

    carry = start, optimizer.init(start)
    with full_float32(compute_dtype):
        program = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, x, y).compile()
    steps, now = stepping(program, carry, x, y)
    return steps, lambda: [(W.T, b[:, None]) for W, b in now()]


def pytorch_step(params, X, Y, optimizer, rate):
    """Compile a step with torch.compile and torch.autocast; PyTorch's optimizers are fused."""
    import torch
    from torch import nn

    if jax.default_backend() not in ("cpu", "gpu"):
        raise RuntimeError(f"JAX has a {jax.default_backend()} here, but PyTorch has none")
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
    BASE: partial(deepprop_step, compute_dtype="bfloat16"),
    "jax.grad, bfloat16": partial(jax_grad_step, compute_dtype="bfloat16"),
    "PyTorch compiled, bfloat16": pytorch_step,
    "deepprop, float32": deepprop_step,
    "jax.grad, float32": jax_grad_step,
}


def float32_cost(params, weights, X, Y):
    """Return J of the network with these weights, in float32."""
    layers = [(p.W, p.b) for p in params]
    assert [(W.shape, b.shape) for W, b in weights] == [(W.shape, b.shape) for W, b in layers]
    network = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(weights))
    with full_float32(None):
        return float(jax.jit(lambda p: dp.cost(dp.forward(p, X)[1], Y))(network))


def start(params, X, Y, optimizer, rate):
    """Make the contenders and run a few steps: return their steps, their costs, and notes."""
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
    """End the benchmark unless all reach the same cost, well below the initial one."""
    if not before - costs[BASE] > 3 * TOLERANCE * before:
        raise SystemExit(f"{CHECK_STEPS} steps reduce the cost too little: {before}, {costs}")
    if not max(abs(J - costs[BASE]) for J in costs.values()) <= TOLERANCE * before:
        raise SystemExit(f"the costs differ after {CHECK_STEPS} steps from {before}: {costs}")


def product_rate(repeats=3):
    """Return a function that measures the best operations per second of products in bfloat16.

    It tries three sizes, with as many products in a row as add up to the operations of one of the
    largest. The factors are random, because with many zeros a device uses less power and may be
    faster.
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
    """Return the seconds per step and the product rate, round by round; costs; notes."""
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
    """Return the table of times and of shares of the product rate."""
    head = ["network, batch", "optimizer", "", "ms per step: median (min to max)"]
    head += ["share of the product rate (goal: 80 %)", "time relative to deepprop's, bfloat16"]
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
    """Return the table of product rates and of the costs that were compared."""
    head = ["network, batch", "optimizer", "matrix product, TFLOP/s: median (min to max)"]
    head += ["J at the start", f"deepprop's, {CHECK_STEPS} steps later", "furthest from that"]
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
    """Return the report."""
    trial = jax.default_backend() == "cpu"
    warning = "**A trial of the script on a CPU: these numbers mean nothing.**\n\n" if trial else ""
    notes = [note for *_, said in results.values() for note in said]
    said = "".join(f"\n{note}.\n" for note in dict.fromkeys(notes))
    return f"""# Wide layers with products in bfloat16, {today()}

{warning}{setting()}.

relu layers and softmax, {rounds} rounds of {steps} steps, each in a new order of the contenders. Ratios and
shares are taken within a round: median (min to max). Parameters, optimizer and data are in float32.
In the bfloat16 rows, the factors of matrix products and the activations are in bfloat16, and sums of
products in float32; dW is in float32 for deepprop and in bfloat16 for the others. In the float32
rows, products are in full float32, without TensorFloat-32; their share is of the bfloat16 rate as
well. That rate is the best of three large square products in bfloat16 in the same round. The
operations of a step are those of its matrix products.

{table(results)}
{said}
## The product rate, and the check

After {CHECK_STEPS} steps, all must agree with deepprop's cost within {TOLERANCE:.1%} of the initial cost. J is computed
in float32 from the parameters of each.

{checks(results)}
"""


def arguments(cpu):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = partial(str.split, sep=",")
    parser.add_argument("--widths", type=numbers, default=["128", "256"] if cpu else ["4096", "8192"],
                        help="units per layer, separated by commas (default: 4096,8192)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128 if cpu else 4096)
    parser.add_argument("--optimizers", type=numbers, default=list(RATES),
                        help=f"separated by commas (default: {','.join(RATES)})")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=10, help="steps per round (default: 10)")
    parser.add_argument("--anyway", action="store_true", help="run on a CPU, to try out the script")
    parser.add_argument("--out", type=folder, help="folder (default: results; none on a CPU)")
    args = parser.parse_args()
    if unknown := set(args.optimizers) - set(RATES):
        parser.error(f"unknown optimizer: {', '.join(unknown)}")
    return args


def main():
    cpu = jax.default_backend() == "cpu"
    args = arguments(cpu)
    if cpu and not args.anyway:
        raise SystemExit(
            "This benchmark is for a GPU or a TPU; with --anyway it runs on a CPU as a trial."
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
