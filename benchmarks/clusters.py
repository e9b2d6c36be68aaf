"""How long a step takes on machines that are described by a few numbers: formulas, no measurement.

What a step does comes as `programs.Counts`. Bytes and operations are of one device; rates are a
second, of one device, and of links one way.
"""

from math import ceil, log2
from typing import NamedTuple


class Hardware(NamedTuple):
    name: str
    rates: dict  # of products, by the type of their factors
    hbm: float  # bytes
    node: int  # devices that are joined by the fast links
    sides: int  # 1: a ring; 3: a torus, with as many steps as its sides are long
    inside: float  # bytes between devices of a node
    inside_apart: float  # the same, for a group that does not fill a block of 64, or has gaps
    between: float  # bytes from a device to other nodes
    start: float  # seconds, of an exchange
    hop_inside: float  # seconds, of one of its steps
    hop_between: float
    kernel: float  # seconds, to start one


class Shares(NamedTuple):
    """What is reached of the stated rates: assumed, not measured."""

    products: float = 0.6
    hbm: float = 0.8
    links: float = 0.8
    latency: float = 1.0  # times the stated seconds
    moved: float = 1.0  # times the counted bytes of memory


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
        " what it states with sparsity), 3.35 TB/s, NVLink 900 GB/s both ways, so 450 one way. The"
        " document itself could not be opened here; the figures were seen where others repeat it."
        " TF32 is what JAX takes for float32 there (docs.jax.dev, Matmul precision); full float32 is"
        " 67 TFLOP/s",
        "NVIDIA DGX H100: 8 GPUs a node, for each a ConnectX-7 of 400 Gb/s: 50 GB/s one way. The data"
        " sheet could not be opened; cards of 400 Gb/s stand in the MLPerf descriptions of systems"
        " (github.com/mlcommons/inference_results_v4.1)",
        "NCCL's own model of its time (github.com/NVIDIA/nccl, src/graph/tuning.cc, at 01afd20): 8.4"
        " us a ring, 3.4 us a step over NVLink, 8.5 us a step of a tree over the network. Its numbers"
        " are of the A100's time",
        "2 us to start a kernel: assumed",
    ],
    V5P.name: [
        "Google Cloud, TPU v5p (cloud.google.com/tpu/docs/v5p): 459 TFLOP/s of bfloat16, 2765 GB/s,"
        " 1200 GB/s of links both ways, so 600 one way; a 3D torus; at most 6144 chips a slice, so"
        " that 16384 are 4 slices of 4096; between slices 50 Gb/s a chip. All read there. JAX takes"
        " bfloat16 for float32 products (docs.jax.dev, Matmul precision)",
        "300 GB/s for groups of fewer than 64, which have no way around, and where neighbours of a"
        " group are not neighbours in the torus: reckoned, not stated",
        "1 us an exchange and a step, 10 us between slices, 0.5 us a kernel: assumed, with no source",
    ],
}


def ring(size, n, rate, hop):
    """Seconds to add up `size` bytes over n devices in a ring: each byte goes around twice."""
    return 2 * (n - 1) / n * size / rate + 2 * (n - 1) * hop


def torus(size, n, rate, hop):
    """The same where three rings, one a direction, carry a third each, with shorter ways."""
    return 2 * (n - 1) / n * size / rate + 6 * (n ** (1 / 3) - 1) * hop


def tree(size, n, rate, hop):
    """The same bytes as of a ring, in as many steps as a tree is high: up and down."""
    return 2 * (n - 1) / n * size / rate + 2 * ceil(log2(n)) * hop


def all_reduce(hardware, size, n, stride, shares, piped=False):
    """Seconds to add up `size` bytes over n devices that lie `stride` apart.

    First inside each node, so that each device has the sum of its part; then these parts between
    nodes, each device over its own link; then inside again. Piped: in pieces, so that links inside
    and between are busy at the same time.
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
    """Seconds of an exchange, as often as it runs. A gather or a scatter is half an all-reduce."""
    if exchange.kind not in ("all-reduce", "all-gather", "reduce-scatter"):
        raise ValueError(f"no time is known for {exchange.kind}")
    half = 1 if exchange.kind == "all-reduce" else 0.5
    return exchange.times * half * all_reduce(hardware, exchange.bytes, n, stride, shares, piped)


class Step(NamedTuple):
    """Seconds."""

    products: float
    memory: float  # of what is no product
    kernels: float
    model: float  # exchanges over the axis "model", for which the next layer waits
    data: float  # over the axis "data", of gradients
    piped: float  # the same, inside and between nodes at the same time
    backward: float  # share of the products

    @property
    def alone(self):
        """Without any exchange."""
        return self.products + self.memory + self.kernels

    @property
    def apart(self):
        """Nothing at the same time: the upper bound."""
        return self.alone + self.model + self.data

    @property
    def together(self):
        """Gradients are exchanged in pieces during the backward pass, while it lasts: the lower."""
        return self.alone + self.model + max(0.0, self.piped - self.backward * self.products)


def step_time(hardware, counts, kind, data, model, backward, shares=Shares()):  # noqa: B008
    """The seconds of a step with counts of one device, on data times model devices."""
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
