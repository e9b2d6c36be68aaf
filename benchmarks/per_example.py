"""Gradients of single examples, side by side: one gradient of a batch, every example's clipped.

    pip install -e '.[peers]' && python benchmarks/per_example.py

First the results of all, from the same parameters and data, must agree with deepprop's. Then they
take turns, in a new order each round, so that the machine's drift cancels: two calls, of which the
second is timed, as the first warms up what the contender before displaced.
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
from clippers import BASE, CLOSE, CONTENDERS, NEAR
from contenders import on_gpu, temporary_bytes
from report import RESULTS, folder, markdown, setting, spread, today, write
from torch_clippers import C
from training import each, share_of_others

import deepprop as dp

SIZES = [5120, 2560, 1280, 10]  # of Opacus's own benchmark of ghost clipping, with a head
SLOW = 1.0  # seconds; above it a contender has fewer rounds
STATUS = Path("/proc/self/status")


def problem(sizes, batch_size):
    """Parameters, X and Y. Half the targets are near what the network says: some norms are below C."""
    params = dp.init_params(jax.random.key(0), sizes)
    rng = np.random.default_rng(0)
    X = 0.1 * rng.standard_normal((sizes[0], batch_size), dtype=np.float32)
    A = np.asarray(dp.predict(params, X))
    drawn = np.eye(sizes[-1], dtype=np.float32)[:, rng.integers(sizes[-1], size=batch_size)]
    far = np.where(np.arange(batch_size) % 2, 1, 0.1).astype(np.float32)
    return params, X, A + far * (drawn - A)


def memory_of(params, batch_size):
    """What every g_i takes, twice: for itself and for what is made of it."""
    return 2 * batch_size * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def physical_memory():
    if on_gpu():
        return jax.devices()[0].memory_stats()["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def small_enough(contenders, params, batch_size, share):
    """The contenders whose memory is within this share of the machine's; a line for each other."""
    need, limit = memory_of(params, batch_size), share * physical_memory()
    left_out = [name for name, c in contenders.items() if c.every and need > limit]
    for name in left_out:
        print(f"{name} is left out: {need / 1e9:.1f} GB are above {limit / 1e9:.1f} GB", flush=True)
    return {name: c for name, c in contenders.items() if name not in left_out}


def difference(arrays, reference):
    """The largest, of any array, by that array's largest entry."""
    pairs = [(a.reshape(r.shape), r) for a, r in zip(arrays, reference, strict=True)]
    return max(float(np.abs(a - r).max() / np.abs(r).max()) for a, r in pairs)


def check_equal(contenders, results):
    """How far each is from deepprop's of its kind, which stands first; an end where it is too far."""
    off, references = {}, {}
    for name, arrays in results.items():
        gives, tolerance = contenders[name].gives, contenders[name].tolerance
        off[name] = difference(arrays, references.setdefault(gives, arrays))
        if not off[name] <= tolerance:
            raise SystemExit(f"{name}: off by {off[name]:.1e} of the largest entry")
    return off


def seconds_of(call):
    begin = time.perf_counter()
    result = call()  # held until the end is taken
    end = time.perf_counter()
    del result
    return end - begin


def take_turns(calls, rounds, slow_rounds):
    """Of each: its seconds, round by round."""
    turns = {name: slow_rounds if seconds_of(c) > SLOW else rounds for name, c in calls.items()}
    seconds, rng = {name: [] for name in calls}, np.random.default_rng(0)
    for i in range(rounds):
        for name in rng.permutation([name for name in calls if i < turns[name]]):
            calls[name]()
            seconds[name].append(seconds_of(calls[name]))
    return {name: np.array(s) for name, s in seconds.items()}


def measure(batch_size, contenders, args):
    """Of each contender a row of the table, how far it is off, and what else was seen."""
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
    ratio = seconds / base[: len(seconds)]
    return [spread(1e3 * seconds, ",.1f"), spread(ratio, ".2f"), str(len(seconds)), f"{off:.0e}"]


def memory_and_products(name, compiled, batch_size):
    if compiled is None:
        peak = peak_growth(name, batch_size)
        return ["—" if peak is None else f"{peak / 1e6:,.0f}", "—"]
    products = compiled.as_text().count(" dot(")  # 0 where they have another name, as on a GPU
    return [f"{temporary_bytes(compiled) / 1e6:,.0f}", str(products or "—")]


def peak_growth(name, batch_size):
    """Peak temporary bytes of a call in a process of its own; None where that is not known."""
    if on_gpu() or not STATUS.exists():
        return None
    command = [sys.executable, __file__, str(batch_size), "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def resident(which):
    """VmRSS, which is resident now, or VmHWM, the most that was, in bytes."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(which)]
    return 1024 * int(line.split()[1])


def print_peak(name, batch_size):
    """Of a first call at this size: growth of the resident memory, less the result's own."""
    make = CONTENDERS[name].make
    make(*problem([8, 8, 4], 8)).call()  # libraries set themselves up
    running = make(*problem(SIZES, batch_size))
    Path("/proc/self/clear_refs").write_text("5")  # the most that was begins anew
    before = resident("VmRSS")
    result = running.call()
    growth = resident("VmHWM") - before
    print(max(0, growth - sum(array.nbytes for array in running.arrays(result))))


def text(measured, args):
    head = [
        "batch",
        "gives",
        "",
        "ms: median (min to max)",
        f"time by {BASE}'s: median (min to max)",
    ]
    head += ["rounds", "off by", "peak temporary MB", "matrix products"]
    rows = [row for rows, *_ in measured for row in rows]
    full = " Matrix products in full float32 for all, no TensorFloat-32." if on_gpu() else ""
    machine = [[str(m), f"{clipped:.0%}", "—" if busy is None else f"{busy:.0%}"]
               for _, _, (m, clipped, busy) in measured]  # fmt: skip
    return f"""# Gradients of single examples, {today()}

{setting()}. {threads()}

One gradient of a batch on {"-".join(map(str, SIZES))}, relu and softmax cross-entropy, float32,
forward pass included, no optimizer and no noise. Largest norm of an example's gradient: {C}.
In each round the contenders are in a new order, and the one timed call of each comes after one that
is not; those above {SLOW:g} s have fewer rounds.{full}

{markdown(head, rows)}

- "plain" is the gradient of the mean loss, "clipped" 1/m sum_i min(1, C / ||g_i||) g_i, "norms" all
  ||g_i||, "squares" 1/m sum_i g_i^2. A ratio is of one round.
- "off by" is the largest difference from deepprop's result of that kind, by the largest entry of the
  same array. More than {CLOSE:.0e} ends the benchmark; {NEAR:.0e} for the two that take PyTorch's norm
  of every g_i, which adds up 13 million squares in float32 and is itself that far from float64's.
- Peak temporary memory, beside arguments and results: for deepprop and JAX what XLA reserves for the
  compiled program; for PyTorch the growth of the resident memory during one call in a process of
  its own, less the result's. "—" is not measured: where every g_i is made and twice that is more
  than {args.memory:.0%} of the machine's memory, nothing was.
- Matrix products are the dots in what XLA compiled.
- PyTorch runs eagerly. Opacus and optax's per_example_global_norm_clip clip without adding noise;
  differentially_private_aggregate draws it even where it multiplies it by 0.

## The machine and the data

{markdown(["batch", "examples above the largest norm", "processors used by other programs"], machine)}
"""


def threads():
    try:
        import torch
    except ImportError:
        return ""
    return f"PyTorch has its default of {torch.get_num_threads()} threads."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batches", nargs="*", type=int, default=[32, 128], metavar="BATCH")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--slow-rounds", type=int, default=3, help=f"of those above {SLOW:g} s")
    parser.add_argument("--memory", type=float, default=0.5, metavar="SHARE",
                        help="of the machine's that every g_i, twice, may take (default: 0.5)")  # fmt: skip
    parser.add_argument("--out", type=folder, default=RESULTS)
    parser.add_argument("--peak", choices=CONTENDERS, metavar="NAME",
                        help="print this contender's growth of the resident memory alone")  # fmt: skip
    return parser.parse_args()


def main():
    args = arguments()
    if args.peak:
        return print_peak(args.peak, args.batches[0])
    if on_gpu():  # PyTorch's default; JAX's would be TensorFloat-32
        jax.config.update("jax_default_matmul_precision", "highest")
    there = each(CONTENDERS, lambda contender: importlib.import_module(contender.package))
    contenders = {name: CONTENDERS[name] for name in there}
    measured = [measure(batch_size, contenders, args) for batch_size in args.batches]
    write(text(measured, args), "per-example", args.out)


if __name__ == "__main__":
    main()
