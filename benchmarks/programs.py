"""What a compiled program does: products, memory, kernels and exchanges, read from its text.

A loop's body counts as often as the loop runs, which XLA's own cost analysis does not do.
"""

import re
from itertools import pairwise
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import deepprop as dp

EXCHANGES = ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
NO_WORK = ["parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"]
NO_WORK += ["after-all", "while", "call", "conditional", "opt-barrier"]


class Exchange(NamedTuple):
    kind: str
    bytes: int  # of the whole: what each device has after a gather, else what each gives
    group: tuple  # the devices of one group
    times: int  # a step

    def axis(self, model):
        """Over which axis of a mesh with `model` neighbours, by the distance in the group."""
        if len(self.group) == 1 or self.group[1] - self.group[0] == model:
            return "data"
        if self.group != tuple(range(model)):
            raise ValueError(f"a group of neither axis: {self.group}")
        return "model"


class Counts(NamedTuple):
    """Of one device and one step."""

    flops: int  # of matrix products: two a multiplication
    product_bytes: int  # which the kernels with products read and write
    other_bytes: int  # which the others do; exchanges have their own
    kernels: int
    exchanges: tuple

    @property
    def bytes(self):
        return self.product_bytes + self.other_bytes


class Instruction(NamedTuple):
    name: str
    type: str
    kind: str
    operands: list
    rest: str
    is_root: bool


def size_of(type_text):
    """Bytes of an array, or of all in a tuple."""
    total = 0
    for kind, shape in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", type_text):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += prod(dimensions(shape)) * bits // 8
    return total


def dimensions(shape):
    return [int(n) for n in shape.split(",") if n]


def shape_of(type_text):
    return dimensions(re.search(r"\[([\d,]*)\]", type_text)[1])


def closing(text, at):
    """Where the parenthesis that opens at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"never closed: {text}")


def parsed(line):
    head = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if not head:
        return None
    line, root = line[head.end() :], bool(head[1])
    cut = closing(line, 0) + 1 if line[0] == "(" else line.index(" ")
    type_text, line = line[:cut], line[cut + 1 :]
    begin = line.index("(")
    end = closing(line, begin)
    operands = re.findall(r"%([\w.-]+)", line[begin:end])
    return Instruction(head[2], type_text, line[:begin], operands, line[end:], root)


def computations(text):
    """The instructions of each computation by name, and the name of the first that runs."""
    found, entry, name = {}, None, None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            found[name] = {}
            entry = name if head[1] else entry
        elif name and (instruction := parsed(line)):
            found[name][instruction.name] = instruction
    return found, entry


def called(instruction, what):
    return re.search(rf"{what}=%?([\w.-]+)", instruction.rest)[1]


def runs(all_of_them, name, times=1):
    """(instruction, its computation, how often it runs), of all but what is inside kernels."""
    for instruction in all_of_them[name].values():
        yield instruction, all_of_them[name], times
        if instruction.kind == "while":
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.rest)
            if not count:
                raise ValueError(f"a loop of unknown length: {instruction.name}")
            yield from runs(all_of_them, called(instruction, "body"), times * int(count[1]))
        elif instruction.kind == "call":
            yield from runs(all_of_them, called(instruction, "to_apply"), times)
        elif instruction.kind == "conditional":
            raise ValueError(f"which branch is taken is not known: {instruction.name}")


def product_flops(instruction, beside):
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
    left = shape_of(beside[instruction.operands[0]].type)
    return 2 * prod(shape_of(instruction.type)) * prod(left[i] for i in dimensions(contracted))


def traffic(instruction, beside, inside):
    """Bytes that a kernel reads and writes: of a slice, the slice alone; in place, what is new."""
    if instruction.kind == "fusion":
        return fusion_traffic(inside)
    sizes = [size_of(beside[name].type) for name in instruction.operands]
    if instruction.kind == "dynamic-slice":
        return 2 * size_of(instruction.type)
    if instruction.kind == "dynamic-update-slice":
        return 2 * sizes[1]
    return sum(sizes) + size_of(instruction.type)


def fusion_traffic(inside):
    total = 0
    for parameter in (i for i in inside.values() if i.kind == "parameter"):
        users = readers(parameter.name, inside)
        if users and all(u.kind == "dynamic-slice" and first for u, first in users):
            total += sum(size_of(u.type) for u, _ in users)
        elif users and all(u.kind == "dynamic-update-slice" and first for u, first in users):
            continue  # in place
        else:
            total += size_of(parameter.type)
    return total + written(next(i for i in inside.values() if i.is_root), inside)


def readers(name, inside):
    """Who reads it, and whether as the first operand; through what only renames it."""
    found = []
    for user in inside.values():
        if name in user.operands:
            if user.kind == "bitcast" and not user.is_root:
                found += readers(user.name, inside)
            else:
                found.append((user, user.operands[0] == name))
    return found


def written(root, inside):
    if root.kind == "tuple":
        return sum(written(inside[name], inside) for name in root.operands)
    if root.kind == "bitcast":
        return written(inside[root.operands[0]], inside)
    if root.kind == "dynamic-update-slice":
        return size_of(inside[root.operands[1]].type)
    return size_of(root.type)


def group_of(rest):
    """The first group of devices, from any of the ways in which XLA writes them."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(dimensions(found[1]))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        if "device_ids" in found[1]:
            raise ValueError(f"devices in an order of their own: {found[0]}")
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        over = re.findall(r"'([^']+)'", found[2])
        order = [*(name for name in sizes if name not in over), *over]
        ids = np.arange(prod(sizes.values())).reshape(*sizes.values())
        ids = ids.transpose([list(sizes).index(name) for name in order])
        return tuple(ids.reshape(-1, prod(sizes[name] for name in over))[0].tolist())
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    ids = np.arange(prod(dimensions(found[2]))).reshape(dimensions(found[2]))
    ids = ids.transpose(dimensions(found[3])) if found[3] else ids
    return tuple(ids.reshape(dimensions(found[1]))[0].tolist())


def exchange_of(instruction, beside, times):
    kind = instruction.kind.removesuffix("-start")
    given = sum(size_of(beside[name].type) for name in instruction.operands)
    group = group_of(instruction.rest)
    whole = given * len(group) if kind == "all-gather" else given
    return Exchange(kind, whole, group, times)


def counts(text):
    """What the program with this text does, on one device."""
    all_of_them, entry = computations(text)
    flops = product_bytes = other_bytes = kernels = 0
    exchanges = []
    for instruction, beside, times in runs(all_of_them, entry):
        if instruction.kind in NO_WORK or instruction.kind.endswith("-done"):
            continue
        if instruction.kind.removesuffix("-start") in EXCHANGES:
            exchanges.append(exchange_of(instruction, beside, times))
            continue
        fused = instruction.kind == "fusion"
        inside = all_of_them[called(instruction, "calls")] if fused else {}
        among = inside if fused else beside
        products = [i for i in (inside.values() if fused else [instruction]) if i.kind == "dot"]
        flops += times * sum(product_flops(i, among) for i in products)
        moved = times * traffic(instruction, beside, inside)
        product_bytes += moved if products else 0
        other_bytes += 0 if products else moved
        kernels += times
    return Counts(flops, product_bytes, other_bytes, kernels, tuple(exchanges))


def compiled_step(sizes, mesh, m, **options):
    """The compiled training step of a network with m examples on a mesh, with no array made.

    Where each array lies is asked of `deepprop.place`, with a small network of as many layers.
    """
    optimizer = optax.adam(1e-3)
    small = {n: 8 * (i + 1) * mesh.shape["model"] for i, n in enumerate(dict.fromkeys(sizes))}

    def start(sizes):
        params = dp.init_params(jax.random.key(0), sizes, **options)
        return params, optimizer.init(params)

    params, _ = jax.eval_shape(lambda: start([small[n] for n in sizes]))
    params = dp.place(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), params), mesh)
    like = params, optimizer.init(params)
    large = jax.eval_shape(lambda: start(sizes))
    params, state = jax.tree.map(lambda a, small: abstract(a, small.sharding, mesh), large, like)
    X, Y = (
        jax.ShapeDtypeStruct((n, m), jnp.float32, sharding=over(mesh, None, "data"))
        for n in (sizes[0], sizes[-1])
    )
    return dp.train_step(optimizer).lower(params, state, X, Y).compile()


def over(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def abstract(array, sharding, mesh):
    """Its shape, type and place; what lies on no mesh, such as Adam's count, lies on all of it."""
    there = sharding if isinstance(sharding, NamedSharding) else over(mesh)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=there)


def parameters(sizes):
    """Of all W, of W[1], and of all W and b."""
    W = [n * k for k, n in pairwise(sizes)]
    return sum(W), W[0], sum(W) + sum(sizes[1:])


def closed_flops(sizes, m, model=1, stack=False):
    """6 an example and weight, for Z, dA and dW; less dA[0], which is not computed.

    Of all devices on the axis "model"; a last layer that is whole each of them computes.
    """
    W, first, _ = parameters(sizes)
    whole = (model - 1) * sizes[-1] * sizes[-2] if len(sizes) % 2 == 0 and not stack else 0
    return m * (6 * (W + whole) - 2 * first)


def closed_exchanges(sizes, m, model, stack=False):
    """Bytes over each axis, from float32 gradients and activations of m examples.

    Data: the parameters that a device holds, and J. Model: Z[l] of every second layer up, dA below
    every second layer down, as `deepprop.place` divides them; of a stack, for each layer A twice
    and dA once, and Z[L].
    """
    L, layers = len(sizes) - 1, list(enumerate(pairwise(sizes), start=1))
    if model == 1:
        return {"data": 4 * (parameters(sizes)[2] + 1), "model": 0}
    if stack:  # XLA makes dW[L] too where the rows of A[L-1] lie
        held = sum((n * k + n) / model for l, (k, n) in layers if l < L)
        held += sizes[-1] * sizes[-2] / model + sizes[-1]
        return {"data": int(4 * (held + 1)), "model": 4 * m * (3 * (L - 2) * sizes[1] + sizes[-1])}
    held = moved = 0
    for l, (k, n) in layers:
        whole = l == L and l % 2
        held += n * k + n if whole else n * k / model + (n / model if l % 2 else n)
        moved += n if l % 2 == 0 else k if l > 1 and not whole else 0
    return {"data": int(4 * (held + 1)), "model": 4 * m * moved}


def line(low, high, t):
    """The counts on the line through two programs: low at t = 0, high at t = 1."""

    def between(a, b):
        return a + t * (b - a)

    pairs = list(zip(low.exchanges, high.exchanges, strict=True))
    if any((a.kind, a.group, a.times) != (b.kind, b.group, b.times) for a, b in pairs):
        raise ValueError("the programs exchange different things")
    exchanges = tuple(a._replace(bytes=between(a.bytes, b.bytes)) for a, b in pairs)
    return Counts(*map(between, low[:4], high[:4]), exchanges)
