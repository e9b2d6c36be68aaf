"""Counting what a compiled program does, from its text: products, memory, kernels and exchanges.

The body of a loop is counted as often as the loop runs; XLA's own cost analysis counts it once. An
exchange is a collective operation between devices, such as an all-reduce.
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
    """A collective operation."""

    kind: str
    bytes: int  # what each device has after a gather; otherwise what each one contributes
    group: tuple  # the devices of the first group
    times: int  # per step

    def axis(self, model):
        """Return the mesh axis of the group, from the distance of its devices.

        On the axis "model" the devices of a group are neighbours, `model` of them. On the axis
        "data" they are `model` apart.
        """
        if len(self.group) == 1 or self.group[1] - self.group[0] == model:
            return "data"
        if self.group != tuple(range(model)):
            raise ValueError(f"the group is on neither axis: {self.group}")
        return "model"


class Counts(NamedTuple):
    """The counts of one device and one step."""

    flops: int  # of matrix products, two per multiplication
    product_bytes: int  # read and written by kernels with products
    other_bytes: int  # read and written by other kernels, without exchanges
    kernels: int
    exchanges: tuple

    @property
    def bytes(self):
        """Return the bytes of all kernels."""
        return self.product_bytes + self.other_bytes


class Instruction(NamedTuple):
    """A line of a program."""

    name: str
    type: str
    kind: str
    operands: list
    rest: str
    is_root: bool


def size_of(type_text):
    """Return the bytes of an array, or of all arrays in a tuple."""
    total = 0
    for kind, shape in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", type_text):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += prod(dimensions(shape)) * bits // 8
    return total


def dimensions(shape):
    """Return the numbers in a text such as "2,4"."""
    return [int(n) for n in shape.split(",") if n]


def shape_of(type_text):
    """Return the shape of an array from its type, such as "f32[2,4]"."""
    return dimensions(re.search(r"\[([\d,]*)\]", type_text)[1])


def closing(text, at):
    """Return where the bracket that opens at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket is never closed: {text}")


def parsed(line):
    """Return the Instruction on this line, or None if there is none."""
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
    """Return the instructions of each computation by name, and the name of the entry."""
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
    """Return the name of the computation that an instruction calls as `what`, such as "body"."""
    return re.search(rf"{what}=%?([\w.-]+)", instruction.rest)[1]


def runs(all_of_them, name, times=1):
    """Yield (instruction, its computation, how often it runs), except those inside kernels."""
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
            raise ValueError(f"the branch of a conditional is unknown: {instruction.name}")


def product_flops(instruction, beside):
    """Return the operations of a matrix product; `beside` has the instructions around it."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
    left = shape_of(beside[instruction.operands[0]].type)
    return 2 * prod(shape_of(instruction.type)) * prod(left[i] for i in dimensions(contracted))


def traffic(instruction, beside, inside):
    """Return the bytes that a kernel reads and writes.

    Of a slice this is the slice alone, and of an update in place only the new part.
    """
    if instruction.kind == "fusion":
        return fusion_traffic(inside)
    sizes = [size_of(beside[name].type) for name in instruction.operands]
    if instruction.kind == "dynamic-slice":
        return 2 * size_of(instruction.type)
    if instruction.kind == "dynamic-update-slice":
        return 2 * sizes[1]
    return sum(sizes) + size_of(instruction.type)


def fusion_traffic(inside):
    """Return the same for a fused kernel, from the instructions inside."""
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
    """Return (user, whether as its first operand) for each user; bitcasts are looked through."""
    found = []
    for user in inside.values():
        if name in user.operands:
            if user.kind == "bitcast" and not user.is_root:
                found += readers(user.name, inside)
            else:
                found.append((user, user.operands[0] == name))
    return found


def written(root, inside):
    """Return the bytes that a fused kernel writes, from its last instruction."""
    if root.kind == "tuple":
        return sum(written(inside[name], inside) for name in root.operands)
    if root.kind == "bitcast":
        return written(inside[root.operands[0]], inside)
    if root.kind == "dynamic-update-slice":
        return size_of(inside[root.operands[1]].type)
    return size_of(root.type)


def group_of(rest):
    """Return the first group of devices, in any of the notations of XLA."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(dimensions(found[1]))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        if "device_ids" in found[1]:
            raise ValueError(f"the order of the devices is not the default: {found[0]}")
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
    """Return the Exchange of a collective instruction."""
    kind = instruction.kind.removesuffix("-start")
    given = sum(size_of(beside[name].type) for name in instruction.operands)
    group = group_of(instruction.rest)
    whole = given * len(group) if kind == "all-gather" else given
    return Exchange(kind, whole, group, times)


def counts(text):
    """Return the Counts of the program with this text."""
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
    """Compile the training step of a network with m examples on a mesh, without making an array.

    The shardings come from `deepprop.place`, applied to a small network with as many layers.
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
    """Return the sharding over these axes of a mesh."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def abstract(array, sharding, mesh):
    """Return shape, dtype and sharding; an array without one, as Adam's count, is everywhere."""
    there = sharding if isinstance(sharding, NamedSharding) else over(mesh)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=there)


def parameters(sizes):
    """Return the number of parameters in all W, in W[1], and in all W and b."""
    W = [n * k for k, n in pairwise(sizes)]
    return sum(W), W[0], sum(W) + sum(sizes[1:])


def closed_flops(sizes, m, model=1, stack=False):
    """Return the operations of a step: 6 per example and weight, for Z, dA and dW.

    Those of dA[0] are subtracted, as it is not computed. The result is the sum over the devices on
    the axis "model"; if the last layer is not divided, each of them computes it.
    """
    W, first, _ = parameters(sizes)
    whole = (model - 1) * sizes[-1] * sizes[-2] if len(sizes) % 2 == 0 and not stack else 0
    return m * (6 * (W + whole) - 2 * first)


def closed_exchanges(sizes, m, model, stack=False):
    """Return the bytes that are exchanged over each axis, in float32, with m examples.

    Over "data" these are the gradients of the parameters on a device, and J. Over "model" they are
    Z[l] of every second layer in the forward pass, and dA below every second layer in the backward
    pass, as `deepprop.place` divides the layers; for a stack, A twice and dA once per layer, and
    Z[L].
    """
    L, layers = len(sizes) - 1, list(enumerate(pairwise(sizes), start=1))
    if model == 1:
        return {"data": 4 * (parameters(sizes)[2] + 1), "model": 0}
    if stack:  # XLA computes dW[L] on the device that has the rows of A[L-1]
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
    """Return the counts on the line through two programs: low at t = 0, high at t = 1."""

    def between(a, b):
        return a + t * (b - a)

    pairs = list(zip(low.exchanges, high.exchanges, strict=True))
    if any((a.kind, a.group, a.times) != (b.kind, b.group, b.times) for a, b in pairs):
        raise ValueError("the two programs do not have the same exchanges")
    exchanges = tuple(a._replace(bytes=between(a.bytes, b.bytes)) for a, b in pairs)
    return Counts(*map(between, low[:4], high[:4]), exchanges)
