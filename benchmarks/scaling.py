"""What to expect from many devices: computed from compiled programs, not measured.

    pip install -e . && python -m benchmarks scaling

Training steps are compiled for devices of the host, without making an array. programs.py counts
what they compute, move and exchange, and clusters.py turns the counts into seconds, with the rates
that vendors state.
"""

import argparse
from functools import cache
from typing import NamedTuple

import jax

import deepprop as dp
from benchmarks.clusters import H100, SOURCES, V5P, Shares, step_time
from benchmarks.programs import (
    closed_exchanges,
    closed_flops,
    compiled_step,
    counts,
    line,
    parameters,
)
from benchmarks.report import RESULTS, folder, markdown, setting, today, write

HOST_DEVICES = 32
MODEL = 8  # devices on the axis "model"
DEVICES = [8, 64, 1024, 16384]
KINDS = ["float32", "bfloat16"]
WHOLE = 64  # strong scaling: the whole batch, as a multiple of the batch of a device


class Network(NamedTuple):
    """A network and its batch."""

    name: str
    sizes: tuple
    batch: int  # per device
    stack: bool = False

    def options(self):
        """Return the options of init_params."""
        return {"residual": True, "stack": True} if self.stack else {}

    def backward(self):
        """Return the share of the backward pass in the products: dA and dW, of Z, dA and dW."""
        W, first, _ = parameters(self.sizes)
        return (2 * W - first) / (3 * W - first)


NETWORKS = [
    Network("8 layers of 8192", (8192,) * 9, 512),
    Network("16 layers of 4096", (4096,) * 17, 512),
    Network("stack of 256 residual layers of 1024", (784, *[1024] * 257, 10), 512, stack=True),
    Network("784-256-128-10", (784, 256, 128, 10), 128),
]
LAYOUTS = {"data": 1, "data x model": MODEL}  # devices on the axis "model"


@cache
def program(network, data, model, local, kind="float32"):
    """Compile the step with `local` examples on each of the `data` parts."""
    narrow = {} if kind == "float32" else {"compute_dtype": kind}
    mesh = dp.mesh(data=data, model=model)
    return compiled_step(network.sizes, mesh, data * local, **network.options(), **narrow)


@cache
def counted(network, data, model, local, kind="float32"):
    """Return the counts of that program."""
    return counts(program(network, data, model, local, kind).as_text())


@cache
def counted_at(network, model, local):
    """Return the counts for any number of examples, from the line through two programs."""
    data, m = (8, network.batch) if model == 1 else (2, MODEL * network.batch)
    two = [counted(network, data, model, k * m) for k in (1, 2)]
    return line(*two, local / m - 1)


def step(hardware, network, kind, model, devices, local, shares=Shares()):  # noqa: B008
    """Return the parts of a step with `local` examples per part of the data."""
    model = min(model, devices)
    known = counted_at(network, model, local)
    return step_time(hardware, known, kind, devices // model, model, network.backward(), shares)


def bounds(numbers):
    """Return two shares in per cent, the lower one first."""
    low, high = (100 * n for n in sorted(numbers))
    form = ".0f" if high >= 10 else ".1f" if high >= 1 else ".1g"
    return (
        f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}} to {high:{form}}"
    )


def weak(hardware, network, kind, model, devices):
    """Return the time on one device relative to many, each with its own batch: both bounds."""
    one = step(hardware, network, kind, 1, 1, network.batch).alone
    many = step(hardware, network, kind, model, devices, model * network.batch)
    return one / many.apart, one / many.together


def strong(hardware, network, kind, model, devices):
    """Return the speedup over one device with the whole batch, per device: both bounds."""
    whole = WHOLE * network.batch
    if whole * model < devices:
        return None
    one = step(hardware, network, kind, 1, 1, whole).alone
    many = step(hardware, network, kind, model, devices, whole * model // devices)
    return one / many.apart / devices, one / many.together / devices


def machines():
    """Return the machines and the factors of products; a TPU uses bfloat16 for float32 as well."""
    return [
        (H100, "float32", "float32"),
        (H100, "bfloat16", "bfloat16"),
        (V5P, "bfloat16", "either"),
    ]


def cases():
    """Yield the names and the arguments of each row."""
    for network in NETWORKS:
        for layout, model in LAYOUTS.items():
            for hardware, kind, factors in machines():
                names = [network.name, layout, hardware.name, factors]
                yield names, hardware, network, kind, model


def weak_table():
    """Return the table of weak scaling."""
    rows = []
    for names, *case in cases():
        hardware, network, kind, model = case
        one = step(hardware, network, kind, 1, 1, network.batch)
        at = step(hardware, network, kind, model, 1024, model * network.batch)
        parts = [at.products, at.memory, at.kernels, at.model, at.data]
        cells = [bounds(weak(*case, devices)) for devices in DEVICES]
        rates = [f"{100 * used(*case[:3], t):.2g}" for t in (one.alone, at.apart)]
        rows.append(
            [*names, milli(one.alone), *cells, ", ".join(rates), " + ".join(map(milli, parts))]
        )
    head = ["network", "layout", "", "factors", "ms on 1"]
    head += [f"% on {devices}" for devices in DEVICES]
    head += ["% of the stated rate on 1, on 1024"]
    return markdown([*head, "ms on 1024: products + memory + kernels + model + data"], rows)


def used(hardware, network, kind, seconds):
    """Return the share of the stated product rate, with the batch of a device."""
    return closed_flops(network.sizes, network.batch) / hardware.rates[kind] / seconds


def milli(seconds):
    """Return seconds as milliseconds, in text."""
    return f"{1e3 * seconds:.3g}"


def strong_table():
    """Return the table of strong scaling."""
    rows = []
    for names, *case in cases():
        found = [strong(*case, devices) for devices in DEVICES]
        one = step(*case[:3], 1, 1, WHOLE * case[1].batch).alone
        cells = ["—" if both is None else bounds(both) for both in found]
        rows.append([*names, f"{WHOLE * case[1].batch:,}", milli(one), *cells])
    head = ["network", "layout", "", "factors", "batch", "ms on 1"]
    return markdown([*head, *(f"% on {devices}" for devices in DEVICES)], rows)


def least_batch(hardware, network, kind, devices, share):
    """Return the least power of 2 of examples per device with this efficiency, without overlap."""
    for power in range(21):
        at = step(hardware, network, kind, 1, devices, 2**power)
        if at.alone / at.apart >= share:
            return f"{2**power:,}"
    return "—"


def batch_table():
    """Return the table of the batches that are needed."""
    rows = []
    for network in NETWORKS:
        for hardware, kind, factors in machines():
            cells = [
                least_batch(hardware, network, kind, devices, share)
                for devices in (8, 1024, 16384)
                for share in (0.5, 0.9)
            ]
            rows.append([network.name, hardware.name, factors, *cells])
    head = [f"{share} % on {devices}" for devices in (8, 1024, 16384) for share in (50, 90)]
    return markdown(["network", "", "factors", *head], rows)


CHANGED = {
    "as above": Shares(),
    "0.4 of the product rate": Shares(products=0.4),
    "0.8 of the product rate": Shares(products=0.8),
    "0.5 of the link rate": Shares(links=0.5),
    "all of the link rate": Shares(links=1.0),
    "28 bytes per parameter for Adam, not 40": Shares(moved=0.7),
    "a quarter of all latencies": Shares(latency=0.25),
    "four times all latencies": Shares(latency=4.0),
}


def changed_table():
    """Return the table of weak scaling on 1024 H100 under other assumptions."""
    rows = []
    for what, shares in CHANGED.items():
        cells = []
        for network in NETWORKS:
            for model in LAYOUTS.values():
                one = step(H100, network, "bfloat16", 1, 1, network.batch, shares).alone
                at = step(H100, network, "bfloat16", model, 1024, model * network.batch, shares)
                cells.append(bounds((one / at.apart, one / at.together)))
        rows.append([what, *cells])
    head = [f"{n.name}, {layout}" for n in NETWORKS for layout in LAYOUTS]
    return markdown(["", *head], rows)


def hardware_table():
    """Return the table of the machines, and the sources of its numbers."""
    head = ["", "products, TFLOP/s: float32, bfloat16", "memory, GB/s", "devices per node"]
    head += [
        "in a node, GB/s in one direction",
        "between, GB/s",
        "us: exchange, step in a node, step between nodes",
    ]
    rows = []
    for h in (H100, V5P):
        rates = ", ".join(f"{h.rates[kind] / 1e12:g}" for kind in KINDS)
        links = f"{h.inside / 1e9:g}"
        links += "" if h.inside == h.inside_apart else f"; {h.inside_apart / 1e9:g} for some groups"
        times = ", ".join(f"{1e6 * s:g}" for s in (h.start, h.hop_inside, h.hop_between))
        cells = [rates, f"{h.hbm / 1e9:g}", f"{h.node:,}", links, f"{h.between / 1e9:g}"]
        rows.append([h.name, *cells, f"{times}; a kernel {1e6 * h.kernel:g}"])
    lines = [f"- {name}: {source}." for name, found in SOURCES.items() for source in found]
    return markdown([*head[:-1], head[-1] + "; a kernel"], rows) + "\n\n" + "\n".join(lines)


def over(known, axis, model):
    """Return the number of exchanges over an axis, and their bytes."""
    of_axis = [e for e in known.exchanges if e.axis(model) == axis]
    return sum(e.times for e in of_axis), sum(e.times * e.bytes for e in of_axis)


def counted_table():
    """Return the table of what a step does on one device."""
    rows = []
    for network in NETWORKS:
        for layout, model in LAYOUTS.items():
            data, local = (8, network.batch) if model == 1 else (2, MODEL * network.batch)
            known = counted(network, data, model, local)
            memory = program(network, data, model, local).memory_analysis()
            size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            cells = [f"{parameters(network.sizes)[2]:,}", f"{known.flops / 1e9:,.2f}"]
            cells += [f"{known.product_bytes / 1e9:.3f}", f"{known.other_bytes / 1e9:.3f}"]
            cells += [f"{known.kernels:,}", f"{size / 1e9:.2f}"]
            for axis in ("data", "model"):
                count, exchanged_bytes = over(known, axis, model)
                cells.append(f"{count:,}: {exchanged_bytes / 1e6:,.2f}" if count else "—")
            rows.append([f"{network.name}, {network.batch}", layout, *cells])
    head = ["network, batch per device", "layout", "parameters", "GFLOP of products"]
    head += ["GB of products", "GB of the rest", "kernels", "GB in memory"]
    return markdown([*head, "exchanges over data: MB", "over model: MB"], rows)


def meshes():
    """Yield the meshes that show that only the groups depend on the number of devices."""
    for network in NETWORKS:
        for data in (2, 8, 32):
            yield network, data, 1, network.batch
        for data in (2, 4):
            yield network, data, MODEL, MODEL * network.batch


def checks_table():
    """Return the table of counts and of their differences from the closed form."""
    rows = []
    for network, data, model, local in meshes():
        known = counted(network, data, model, local)
        due = closed_exchanges(network.sizes, local, model, network.stack)
        cells = []
        for axis in ("data", "model"):
            count, size = over(known, axis, model)
            cells += [f"{count:,}", f"{size:,}", f"{size - due[axis]:,}"]
        flops = known.flops * model - closed_flops(network.sizes, local, model, network.stack)
        groups = {e.axis(model): len(e.group) for e in known.exchanges}
        rows.append([
            network.name, f"{data} x {model}", ", ".join(f"{a} {n}" for a, n in groups.items()),
            *cells, f"{flops:,}",
        ])  # fmt: skip
    head = [
        "network",
        "data x model",
        "devices per group",
        "over data",
        "bytes",
        "minus closed form",
    ]
    head += ["over model", "bytes", "minus closed form", "flops minus closed form"]
    return markdown(head, rows)


def analysis_table():
    """Return the table of other checks: XLA's cost analysis, the line at 2 examples, bfloat16."""
    rows = []
    for network in NETWORKS:
        wide = counted(network, 8, 1, network.batch)
        found = program(network, 8, 1, network.batch).cost_analysis()
        exchanges = 2 * sum(e.times * e.bytes for e in wide.exchanges)  # read and written
        few, guess = counted(network, 8, 1, 2), counted_at(network, 1, 2)
        narrow = counted(network, 8, 1, network.batch, "bfloat16")
        rows.append([
            network.name,
            f"{wide.flops / found['flops']:.3f}",
            f"{(wide.bytes + exchanges) / found['bytes accessed']:.3f}",
            f"{guess.flops / few.flops:.3f}",
            f"{guess.bytes / few.bytes:.3f}",
            f"{narrow.flops / wide.flops:.3f}",
            "the same" if exchanged(narrow) == exchanged(wide) else "different",
            f"{narrow.bytes / wide.bytes:.2f}",
        ])  # fmt: skip
    head = ["network", "flops / XLA's", "bytes / XLA's", "line at 2 examples: flops", "bytes"]
    return markdown([*head, "bfloat16: flops / float32's", "exchanges", "bytes"], rows)


def exchanged(known):
    """Return the kinds, bytes and numbers of all exchanges."""
    return sorted((e.kind, e.bytes, e.times) for e in known.exchanges)


def found(network, kind, model, devices, of=weak, hardware=H100):
    """Return the bounds of weak or strong scaling for a sentence."""
    both = of(hardware, NETWORKS[network], kind, model, devices)
    return "no" if both is None else bounds(both)


def read():
    """Return what the tables say, in a few lines."""
    half, most = (least_batch(H100, NETWORKS[0], "bfloat16", 1024, share) for share in (0.5, 0.9))
    at = step(H100, NETWORKS[0], "bfloat16", 1, 1024, 512)
    stack = step(H100, NETWORKS[2], "bfloat16", 1, 1024, 512)
    return f"""\
- With a fixed batch per device, 8 layers of 8192, H100, bfloat16, data parallel: {found(0, "bfloat16", 1, 8)} % on 8 devices,
  {found(0, "bfloat16", 1, 64)} % on 64, and hardly less up to 16,384: {found(0, "bfloat16", 1, 16384)} %. With 512 examples per device the
  gradients take {milli(at.piped)} to {milli(at.data)} ms and everything else {milli(at.alone)}, of which the products take {milli(at.products)} and Adam's
  memory most of the rest. The backward pass is too short to hide much of the exchange.
- The remedy is a larger batch per device: {half} for half the speed of as many single devices, {most} for
  90 %, without overlap. That is {int(most.replace(",", "")) * 1024:,} examples per step on 1024; whether such a batch still trains well is another
  question, for `gradient_noise_scale`.
- With the units divided over the 8 devices of a node, and 8 times the batch each, on 1024 (in brackets:
  data parallel only): {found(0, "bfloat16", MODEL, 1024)} ({found(0, "bfloat16", 1, 1024)}) % for layers of 8192, because each device has 1/8 of the gradient to
  exchange and of Adam's work; {found(1, "bfloat16", MODEL, 1024)} ({found(1, "bfloat16", 1, 1024)}) % for 4096; and {found(2, "bfloat16", MODEL, 1024)} ({found(2, "bfloat16", 1, 1024)}) % for the stack, which gathers
  A twice per layer.
- A stack exchanges each layer's gradient by itself: of {milli(stack.piped)} to {milli(stack.data)} ms for {over(counted_at(NETWORKS[2], 1, 512), "data", 1)[0]} exchanges, most is latency,
  so this line depends on the assumed latency.
- It does not pay for small networks: 784-256-128-10 takes {1e3 * float(milli(step(H100, NETWORKS[3], "float32", 1, 1, 128).alone)):.0f} us on one H100, nearly all of it to start kernels;
  a batch of 8,192 is {8 * min(strong(H100, NETWORKS[3], "float32", 1, 8)):.1f} times as fast on 8 devices, and {64 * min(strong(H100, NETWORKS[3], "float32", 1, 64)):.1f} times on 64.
- A fixed whole batch does not scale far: with 32,768 examples and layers of 8192, {found(0, "bfloat16", 1, 8, strong)} % of the
  ideal speedup on 8, {found(0, "bfloat16", 1, 64, strong)} % on 64, {found(0, "bfloat16", 1, 1024, strong)} % on 1024 and {found(0, "bfloat16", 1, 16384, strong)} % on 16,384, where each
  device has 2 examples, while Adam and the gradients cost as much as before."""


def text():
    """Return the report."""
    return f"""# What to expect from many devices, {today()}

{setting()}.

**Computed, not measured.** No accelerator and no network link was used. Training steps (forward,
`manual_backward`, Adam) were compiled for up to {HOST_DEVICES} devices of the host, and what they compute, move and
exchange was counted. The rates that vendors state, and the assumptions below, turn that into seconds.

## What the tables say

{read()}

## Assumptions

- Products reach {Shares().products:g} of the stated rate, memory {Shares().hbm:g}, and links {Shares().links:g}. These shares are chosen, not
  measured; the table of other assumptions shows what depends on them.
- A step consists of products (the longer of the times to compute them and to move their bytes), the
  memory traffic of all other kernels, the start of each kernel, and exchanges. Kernels do not overlap.
- Bytes are those of the program for the host in float32: each operand is read and each result
  written, without a cache. An accelerator's compiler may need fewer: Adam has three kernels here and
  moves 40 bytes per parameter, where 28 are needed. With bfloat16 the host widens numbers that others
  do not, so its bytes are taken to be those of float32, and only its products to be faster.
- An all-reduce has three parts: a ring in the node, a tree between nodes in which each device has its
  own link and its own part, and a ring in the node. A ring of n moves 2 (n - 1) / n of the bytes in
  2 (n - 1) steps; a tree as many bytes in 2 log2 n steps; a torus of side s needs 6 (s - 1) steps. A
  gather takes half of that. The devices of a node are neighbours; links are not shared, and none is
  slow.
- "Data" is `dp.mesh(data=N)`; "data x model" is `dp.mesh(data=N // 8, model=8)`, with the 8 in one
  node. Nothing overlaps with exchanges over "model". There are two bounds. Either gradients are
  exchanged after the backward pass, one part after the other; or in pieces during the products of the
  backward pass, so that links in and between nodes are busy at the same time. The program for the
  host has one all-reduce after the backward pass, and for a stack one per layer in its loop.
- Reading data, saving, faults and waiting for the slowest device take no time here.

## Machines

{hardware_table()}

## A step of one device

As compiled for 8 devices, or for 2 x 8. "GB in memory" are the arguments and the temporary memory of
the program.

{counted_table()}

## Weak scaling

The batch per device is fixed. The table has the time on one device relative to the time on N, in per
cent, from no overlap to gradients exchanged in pieces during the backward pass. It can exceed 100 if
Adam's memory is divided as well. A TPU slice of 8 is slower than one of 64, because it has no
wrap-around links.

{weak_table()}

## Strong scaling

The whole batch is fixed. The table has the speedup over one device, divided by N, in per cent, even
if one device could not hold that batch. "—" means fewer examples than parts.

{strong_table()}

## The batch that a device needs

Data parallel, without overlap: the least power of 2 of examples per device for which the time without
exchanges is 50 or 90 % of the whole. This says nothing about how well the device itself is used: 1 is
enough if Adam alone takes that long.

{batch_table()}

## Other assumptions

Weak scaling on 1024 H100, bfloat16, in per cent.

{changed_table()}

## Checks

What the programs do, compared with the closed form: 6 operations per example and weight, without
those for dA[0]; over "data" the bytes of the gradients and J; over "model" those of Z and dA. The
number of exchanges and their bytes do not depend on the number of devices. That is why the tables can
go beyond {HOST_DEVICES}.

{checks_table()}

The counts relative to XLA's cost analysis of the same program (which includes elementwise operations,
and counts the body of a loop once); the straight line through two batches relative to the program for
2 examples per device; and bfloat16.

{analysis_table()}

Not checked, for lack of such machines: all times above, the shares that are reached, the latencies,
the exchange during the backward pass, and what a compiler for GPUs or TPUs makes of the step. The
devices of one host share its processors, so their times would say nothing about this.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=folder, default=RESULTS)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    write(text(), "scaling", args.out)
