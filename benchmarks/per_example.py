"""Clipped gradients: the time and memory of several libraries for one gradient of a batch.

    pip install -e '.[peers]' && python -m benchmarks per_example

First, the results of all contenders from the same parameters and data must agree with deepprop's.
Then they take turns, in a new order in each round, so that slow changes of the machine cancel. A
turn is two calls, of which the second is timed: the first refills the caches that the previous
contender has displaced.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import deepprop as dp
from benchmarks.clippers import BASE, CLOSE, CONTENDERS, NEAR
from benchmarks.contenders import on_gpu, temporary_bytes
from benchmarks.report import RESULTS, folder, markdown, setting, spread, today, write
from benchmarks.torch_clippers import C
from benchmarks.training import each, share_of_others

ROOT = Path(__file__).parents[1]

SIZES = [5120, 2560, 1280, 10]  # as in Opacus's benchmark of ghost clipping, with an output layer
SLOW = 1.0  # seconds; a slower contender has fewer rounds
STATUS = Path("/proc/self/status")


def problem(sizes, batch_size):
    """Return parameters, X and Y; half of Y is close to A[L], so that some norms are below C.

    No Z is as close to relu's kink as float32 rounds it (1e-8): two libraries that sum in different
    orders could be on different sides of it, and then their gradients differ, and both are right.
    """
    rng = np.random.default_rng(0)
    X = 0.1 * rng.standard_normal((sizes[0], batch_size), dtype=np.float32)
    for seed in range(100):
        params = dp.init_params(jax.random.key(seed), sizes)
        A, cache = map(jax.device_get, dp.forward(params, X))
        if min(np.abs(Z).min() for Z in cache.Z[:-1]) > 1e-7:
            break
    drawn = np.eye(sizes[-1], dtype=np.float32)[:, rng.integers(sizes[-1], size=batch_size)]
    far = np.where(np.arange(batch_size) % 2, 1, 0.1).astype(np.float32)
    return params, X, A + far * (drawn - A)


def memory_of(params, batch_size):
    """Return the bytes of every g_i, twice: for itself and for the clipped one."""
    return 2 * batch_size * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def physical_memory():
    """Return the bytes of memory of the device."""
    if on_gpu():
        return jax.devices()[0].memory_stats()["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def small_enough(contenders, params, batch_size, share):
    """Return the contenders that need at most this share of the memory; print the others."""
    need, limit = memory_of(params, batch_size), share * physical_memory()
    left_out = [name for name, c in contenders.items() if c.every and need > limit]
    for name in left_out:
        print(f"{name} is left out: {need / 1e9:.1f} GB exceed {limit / 1e9:.1f} GB", flush=True)
    return {name: c for name, c in contenders.items() if name not in left_out}


def difference(arrays, reference):
    """Return the largest difference of any array, relative to the array's largest entry."""
    pairs = [(a.reshape(r.shape), r) for a, r in zip(arrays, reference, strict=True)]
    return max(float(np.abs(a - r).max() / np.abs(r).max()) for a, r in pairs)


def check_equal(contenders, results):
    """Return how far each is from deepprop's, the first of its kind; end if one is too far."""
    off, references = {}, {}
    for name, arrays in results.items():
        gives, tolerance = contenders[name].gives, contenders[name].tolerance
        off[name] = difference(arrays, references.setdefault(gives, arrays))
        if not off[name] <= tolerance:
            raise SystemExit(f"{name}: off by {off[name]:.1e} of the largest entry")
    return off


def seconds_of(call):
    """Return the seconds that one call takes."""
    begin = time.perf_counter()
    result = call()  # its memory must not be freed before the clock stops
    end = time.perf_counter()
    del result
    return end - begin


def take_turns(calls, rounds, slow_rounds):
    """Return the seconds of each contender, round by round."""
    turns = {name: slow_rounds if seconds_of(c) > SLOW else rounds for name, c in calls.items()}
    seconds, rng = {name: [] for name in calls}, np.random.default_rng(0)
    for i in range(rounds):
        for name in rng.permutation([name for name in calls if i < turns[name]]):
            calls[name]()
            seconds[name].append(seconds_of(calls[name]))
    return {name: np.array(s) for name, s in seconds.items()}


def measure(batch_size, contenders, args):
    """Return a row per contender, the largest difference, and a row about machine and data."""
    params, X, Y = problem(SIZES, batch_size)
    these = small_enough(contenders, params, batch_size, args.memory)
    running = each(these, lambda contender: contender.make(params, X, Y))
    results = each(running, lambda its: its.arrays(its.call()))
    if BASE not in results:
        raise SystemExit(f"{BASE} failed")
    off = check_equal(contenders, results)
    lengths = results.get("deepprop per_example_norms", [np.zeros(0)])[0]
    del results
    others = share_of_others()
    seconds = take_turns({name: running[name].call for name in off}, args.rounds, args.slow_rounds)
    busy = others()
    compiled = {name: running[name].compiled for name in off}
    del running
    rows = []
    for name, contender in contenders.items():
        cells = ["—"] * 6
        if name in off:
            cells = figures(seconds[name], seconds[BASE], off[name])
            cells += memory_and_products(name, compiled[name], batch_size)
        rows.append([str(batch_size), contender.gives, name, *cells])
    return rows, max(off.values()), (batch_size, np.mean(lengths > C), busy)


def figures(seconds, base, off):
    """Return the cells of time, ratio, rounds and difference."""
    ratio = seconds / base[: len(seconds)]
    return [spread(1e3 * seconds, ",.1f"), spread(ratio, ".2f"), str(len(seconds)), f"{off:.0e}"]


def memory_and_products(name, compiled, batch_size):
    """Return the cells of peak temporary memory and of matrix products."""
    if compiled is None:
        peak = peak_growth(name, batch_size)
        return ["—" if peak is None else f"{peak / 1e6:,.0f}", "—"]
    products = compiled.as_text().count(" dot(")  # 0 if they have another name, as on a GPU
    return [f"{temporary_bytes(compiled) / 1e6:,.0f}", str(products or "—")]


def peak_growth(name, batch_size):
    """Return the peak temporary bytes of a call in a new process; None if they are unknown."""
    if on_gpu() or not STATUS.exists():
        return None
    command = [sys.executable, "-m", "benchmarks", "per_example", str(batch_size), "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def resident(which):
    """Return VmRSS, the resident bytes now, or VmHWM, their peak."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(which)]
    return 1024 * int(line.split()[1])


def print_peak(name, batch_size):
    """Print the growth of resident memory in the first call at this size, without the result."""
    make = CONTENDERS[name].make
    make(
        *problem([8, 8, 4], 8)
    ).call()  # a small call first, in which libraries initialise themselves
    running = make(*problem(SIZES, batch_size))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    result = running.call()
    growth = resident("VmHWM") - before
    print(max(0, growth - sum(array.nbytes for array in running.arrays(result))))


def text(measured, args):
    """Return the report."""
    head = [
        "batch",
        "gives",
        "",
        "ms: median (min to max)",
        f"time relative to {BASE}'s: median (min to max)",
    ]
    head += ["rounds", "difference", "peak temporary MB", "matrix products"]
    rows = [row for rows, *_ in measured for row in rows]
    full = " All matrix products are in full float32, without TensorFloat-32." if on_gpu() else ""
    machine = [[str(m), f"{clipped:.0%}", "—" if busy is None else f"{busy:.0%}"]
               for _, _, (m, clipped, busy) in measured]  # fmt: skip
    return f"""# Gradients of single examples, {today()}

{setting()}. {threads()}

One gradient of a batch on {"-".join(map(str, SIZES))}, relu and softmax cross-entropy, float32, including
the forward pass, without optimizer and noise. Clipping norm: {C}. In each round the contenders are
in a new order, and each makes one untimed call before the timed one. Those that take more than
{SLOW:g} s have fewer rounds.{full}

{markdown(head, rows)}

- "plain" is the gradient of the mean loss, "clipped" 1/m sum_i min(1, C / ||g_i||) g_i, "norms" all
  ||g_i||, "squares" 1/m sum_i g_i^2. Ratios are taken within a round.
- "difference" is the largest difference from deepprop's result of the same kind, relative to the
  largest entry of the array. More than {CLOSE:.0e} ends the benchmark; {NEAR:.0e} for the two that use
  PyTorch's norm of every g_i, which adds up 13 million squares in float32 and is itself that far
  from the norm in float64.
- Peak temporary memory excludes arguments and results. For deepprop and JAX it is what XLA reserves
  for the compiled program; for PyTorch, by how much resident memory grows during one call in a new
  process. "—" means not measured; a contender that stores every g_i is left out if twice their size
  exceeds {args.memory:.0%} of the machine's memory.
- Matrix products are the dots in the program that XLA compiled.
- PyTorch runs eagerly. Opacus and optax's per_example_global_norm_clip clip without adding noise;
  differentially_private_aggregate draws noise even to multiply it by 0.

## The machine and the data

{markdown(["batch", "examples above the clipping norm", "processors used by other programs"], machine)}
"""


def threads():
    """Return a sentence about PyTorch's threads; "" without PyTorch."""
    try:
        import torch
    except ImportError:
        return ""
    return f"PyTorch uses its default of {torch.get_num_threads()} threads."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batches", nargs="*", type=int, default=[32, 128], metavar="BATCH")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--slow-rounds", type=int, default=3, help=f"for those above {SLOW:g} s")
    parser.add_argument("--memory", type=float, default=0.5, metavar="SHARE",
                        help="of the memory that twice every g_i may take (default: 0.5)")  # fmt: skip
    parser.add_argument("--out", type=folder, default=RESULTS)
    parser.add_argument("--peak", choices=CONTENDERS, metavar="NAME",
                        help="only print the peak temporary memory of this contender")  # fmt: skip
    return parser.parse_args()


def main():
    args = arguments()
    if args.peak:
        return print_peak(args.peak, args.batches[0])
    if on_gpu():  # as PyTorch by default; JAX would use TensorFloat-32
        jax.config.update("jax_default_matmul_precision", "highest")
    there = each(CONTENDERS, lambda contender: importlib.import_module(contender.package))
    contenders = {name: CONTENDERS[name] for name in there}
    measured = []
    for batch_size in args.batches:
        measured.append(measure(batch_size, contenders, args))
        write(text(measured, args), "per-example", args.out)  # as they come
