"""The time of a step on machines described by a few numbers: formulas, not measurements.

`programs.Counts` says what a step does. Bytes and operations are those of one device. Rates are per
second and device, and those of links are in one direction.
"""

from math import ceil, log2
from typing import NamedTuple


class Hardware(NamedTuple):
    """A machine."""

    name: str
    rates: dict  # operations of products, by the dtype of their factors
    hbm: float  # bytes read or written in memory
    node: int  # number of devices joined by fast links
    sides: int  # 1 for a ring, 3 for a torus
    inside: float  # bytes between devices of a node
    inside_apart: float  # the same for a group that does not fill a block of 64, or has gaps
    between: float  # bytes from a device to other nodes
    start: float  # seconds to start an exchange
    hop_inside: float  # seconds of one of its steps in a node
    hop_between: float  # seconds of one of its steps between nodes
    kernel: float  # seconds to start a kernel


class Shares(NamedTuple):
    """The shares of the stated rates that are reached: assumed, not measured."""

    products: float = 0.6
    hbm: float = 0.8
    links: float = 0.8
    latency: float = 1.0  # factor on the stated seconds
    moved: float = 1.0  # factor on the counted bytes of memory


H100 = Hardware(
    "H100 SXM", {"float32": 494.5e12, "bfloat16": 989e12}, 3.35e12,
    node=8, sides=1, inside=450e9, inside_apart=450e9, between=50e9,
    start=8.4e-6, hop_inside=3.4e-6, hop_between=8.5e-6, kernel=2e-6,
)  # fmt: skip
V5P = Hardware(
    "TPU v5p", {"float32": 459e12, "bfloat16": 459e12}, 2.765e12,
    node=4096, sides=3, inside=600e9, inside_apart=300e9, between=6.25e9,
    start=1e-6, hop_inside=1e-6, hop_between=10e-6, kernel=0.5e-6,
)  # fmt: skip
SOURCES = {
    H100.name: [
        "NVIDIA H100 Tensor Core GPU data sheet: 989 TFLOP/s of bfloat16 and 494.5 of TF32 (half of"
        " what it states with sparsity), 3.35 TB/s, NVLink 900 GB/s in both directions, so 450 in"
        " one. The document itself could not be opened; the figures are from pages that repeat them."
        " JAX uses TF32 for float32 there (docs.jax.dev, Matmul precision); full float32 is 67"
        " TFLOP/s",
        "NVIDIA DGX H100: 8 GPUs per node, each with a ConnectX-7 of 400 Gb/s: 50 GB/s in one direction."
        " The data sheet could not be opened; MLPerf's descriptions of systems list cards of 400 Gb/s"
        " (github.com/mlcommons/inference_results_v4.1)",
        "NCCL's model of its own time (github.com/NVIDIA/nccl, src/graph/tuning.cc, at 01afd20): 8.4"
        " us per ring, 3.4 us per step over NVLink, 8.5 us per step of a tree over the network. The"
        " numbers date from the A100",
        "2 us to start a kernel: assumed",
    ],
    V5P.name: [
        "Google Cloud, TPU v5p (cloud.google.com/tpu/docs/v5p): 459 TFLOP/s of bfloat16, 2765 GB/s,"
        " 1200 GB/s of links in both directions, so 600 in one; a 3D torus; at most 6144 chips per"
        " slice, so that 16384 are 4 slices of 4096; between slices 50 Gb/s per chip. All read there."
        " JAX uses bfloat16 for float32 products (docs.jax.dev, Matmul precision)",
        "300 GB/s for groups of fewer than 64, which have no wrap-around links, and for groups whose"
        " neighbours are not neighbours in the torus: an estimate, not stated by the vendor",
        "1 us per exchange and per step, 10 us between slices, 0.5 us per kernel: assumed, without a"
        " source",
    ],
}


def ring(size, n, rate, hop):
    """Return the seconds to sum `size` bytes over a ring of n; each byte goes around twice."""
    return 2 * (n - 1) / n * size / rate + 2 * (n - 1) * hop


def torus(size, n, rate, hop):
    """Return the same for a torus: three rings, one per direction, carry a third each."""
    return 2 * (n - 1) / n * size / rate + 6 * (n ** (1 / 3) - 1) * hop


def tree(size, n, rate, hop):
    """Return the same for a tree: as many bytes as in a ring, in a step up and down per level."""
    return 2 * (n - 1) / n * size / rate + 2 * ceil(log2(n)) * hop


def all_reduce(hardware, size, n, stride, shares, piped=False):
    """Return the seconds to sum `size` bytes over n devices that are `stride` apart.

    The devices of a node sum first, after which each has the sum of its part. Then the parts are
    summed between nodes, each over its device's link, and distributed in the node again. If piped,
    this is done in pieces, so that the links in and between nodes are busy at the same time.
    """
    if n == 1:
        return 0.0
    near = max(1, min(n, hardware.node // stride))
    filled = stride == 1 and near >= 64
    rate = hardware.inside if filled else hardware.inside_apart
    around = ring if hardware.sides == 1 else torus
    hops = hardware.hop_inside * shares.latency, hardware.hop_between * shares.latency
    inside = around(size, near, rate * shares.links, hops[0])
    between = tree(size / near, ceil(n / near), hardware.between * shares.links, hops[1])
    together = max if piped else sum
    return together([inside, between]) + hardware.start * shares.latency


def wire(hardware, exchange, n, stride, shares, piped=False):
    """Return the seconds of an exchange in a step; a gather or a scatter is half an all-reduce."""
    if exchange.kind not in ("all-reduce", "all-gather", "reduce-scatter"):
        raise ValueError(f"the time of {exchange.kind} is unknown")
    half = 1 if exchange.kind == "all-reduce" else 0.5
    return exchange.times * half * all_reduce(hardware, exchange.bytes, n, stride, shares, piped)


class Step(NamedTuple):
    """The parts of a step, in seconds."""

    products: float
    memory: float  # of all other kernels
    kernels: float  # to start them
    model: float  # exchanges over the axis "model", for which the next layer waits
    data: float  # exchanges of gradients over the axis "data"
    piped: float  # the same, in and between nodes at the same time
    backward: float  # the share of the backward pass in the products

    @property
    def alone(self):
        """Return the time without exchanges."""
        return self.products + self.memory + self.kernels

    @property
    def apart(self):
        """Return the upper bound: nothing happens at the same time."""
        return self.alone + self.model + self.data

    @property
    def together(self):
        """Return the lower bound: gradients are exchanged during the backward pass, in pieces."""
        return self.alone + self.model + max(0.0, self.piped - self.backward * self.products)


def step_time(hardware, counts, kind, data, model, backward, shares=Shares()):  # noqa: B008
    """Return the Step on data x model devices, from the counts of one device."""
    hbm = hardware.hbm * shares.hbm / shares.moved
    products = counts.flops / (hardware.rates[kind] * shares.products)
    over = {"data": 0.0, "model": 0.0, "piped": 0.0}
    groups = {"data": (data, model), "model": (model, 1)}
    for exchange in counts.exchanges:
        axis = exchange.axis(model)
        over[axis] += wire(hardware, exchange, *groups[axis], shares)
        if axis == "data":
            over["piped"] += wire(hardware, exchange, *groups[axis], shares, piped=True)
    return Step(
        max(products, counts.product_bytes / hbm),
        counts.other_bytes / hbm,
        counts.kernels * hardware.kernel * shares.latency,
        over["model"],
        over["data"],
        over["piped"],
        backward,
    )
