"""Which algorithm computes each convolution: the fastest by a cost model or a trial, within a budget of memory.

All algorithms give the same bits. Winograd and the number-theoretic transform multiply less but need larger weights.
Late ones keep weights as small as the file has them and transform them in each run, into memory that layers share; what
is left of the budget keeps transformed weights, first of the layers where a byte saves the most time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvant.runtime.steps import Conv, Weights

DIRECT, WINOGRAD, TRANSFORM, XNOR = "direct", "winograd", "transform", "xnor"
WINOGRAD_LATE, TRANSFORM_LATE = "winograd-late", "transform-late"
LATE = {WINOGRAD: WINOGRAD_LATE, TRANSFORM: TRANSFORM_LATE}
# Fewer channels than this of a sign convolution's group fill too little of a word of bits.
_LEAST_BITS = 8


@dataclass(frozen=True)
class Speed:
    """What the machine does in a second.

    Attributes:
        direct: 8-bit products of the direct kernels, on one thread of the processor that was measured.
        products: 16-bit products of the others there.
        pace: how many times as much a thread of this machine does.
    """

    direct: float
    products: float
    pace: float = 1.0


# Of each instruction set, as the library calls it, measured with benchmarks/kernels.py. Those of avxvnni and neondot
# are not measured, but follow from the products of an instruction. Portable kernels are direct ones.
SPEEDS = {
    "portable": Speed(90e9, 70e9),
    "neondot": Speed(180e9, 70e9),
    "avx2": Speed(90e9, 70e9),
    "avxvnni": Speed(180e9, 90e9),
    "avx512vnni": Speed(225e9, 115e9),
}
# Bytes of weights a second that a thread gets from beyond its own cache, whatever the pace.
_BANDWIDTH = 25e9
# Seconds to transform one channel of one tile, in and out, and one channel's kernel of one output.
_WINOGRAD_CHANNEL, _WINOGRAD_KERNEL = 5e-9, 4e-9
_TRANSFORM_CHANNEL, _TRANSFORM_KERNEL = 21e-9, 60e-9


@dataclass(frozen=True)
class Costs:
    """What layers take by an algorithm.

    Attributes:
        bytes: of a layer's weights, None if the algorithm cannot compute it.
        room: bytes that runs of the layer need for weights, in memory that all layers share.
        seconds: time of the layer, whose weights take so many bytes.
    """

    bytes: Callable[[Conv, str], int | None]
    room: Callable[[Conv, str], int]
    seconds: Callable[[Conv, str, int], float]


@dataclass(frozen=True)
class Choice:
    """The algorithm of one layer, the bytes of its weights, and its multiply-accumulates at the example size."""

    node: str
    algorithm: str
    bytes: int
    macs: int


def choose(layers: Sequence[tuple[str, Conv]], budget: float, costs: Costs) -> dict[Weights, Choice]:
    """The algorithm of every layer.

    Args:
        layers: convolutions at the example size, with their nodes.
        budget: bytes that all weights and their room may take; direct ones are used even where they take more.
        costs: of algorithms.
    """
    chosen = {work.weights: _smallest(node, work, costs) for node, work in layers}
    left = budget - sum(choice.bytes for choice in chosen.values())
    open_layers = [(node, work) for node, work in layers if chosen[work.weights].algorithm != XNOR]
    left -= _choose_late(open_layers, left, costs, chosen)
    _choose_kept(open_layers, left, costs, chosen)
    return chosen


def _smallest(node: str, work: Conv, costs: Costs) -> Choice:
    bits = costs.bytes(work, XNOR) if of_signs(work) else None
    if bits is not None:
        return Choice(node, XNOR, bits, _macs(work))
    return Choice(node, DIRECT, costs.bytes(work, DIRECT) or 0, _macs(work))


def _choose_late(layers: Sequence[tuple[str, Conv]], left: float, costs: Costs, chosen: dict[Weights, Choice]) -> float:
    """Take late algorithms where they are faster; the bytes that takes, with the largest room that one needs."""
    taken, room = 0, 0
    for node, work in layers:
        for algorithm in LATE.values():
            size, now = costs.bytes(work, algorithm), chosen[work.weights]
            if size is None or costs.seconds(work, algorithm, size) >= costs.seconds(work, now.algorithm, now.bytes):
                continue
            most = max(room, costs.room(work, algorithm))
            if taken + size - now.bytes + most <= left:
                taken, room = taken + size - now.bytes, most
                chosen[work.weights] = Choice(node, algorithm, size, now.macs)
    return taken + room


def _choose_kept(layers: Sequence[tuple[str, Conv]], left: float, costs: Costs, chosen: dict[Weights, Choice]) -> None:
    """Keep transformed weights where that is faster, first where a byte saves the most time."""
    upgrades = []
    for node, work in layers:
        now = chosen[work.weights]
        for algorithm in LATE:
            size = costs.bytes(work, algorithm)
            if size is not None:
                saved = costs.seconds(work, now.algorithm, now.bytes) - costs.seconds(work, algorithm, size)
                upgrades.append((saved / max(size - now.bytes, 1), node, algorithm, work, size))
    for saved, node, algorithm, work, size in sorted(upgrades, key=lambda entry: (-entry[0], entry[1], entry[2])):
        now = chosen[work.weights]
        better = saved > 0 and costs.seconds(work, algorithm, size) < costs.seconds(work, now.algorithm, now.bytes)
        if better and size - now.bytes <= left:
            left -= size - now.bytes
            chosen[work.weights] = Choice(node, algorithm, size, now.macs)


def of_signs(work: Conv) -> bool:
    """Whether a layer multiplies signs, enough of them for bit operations to be worth it."""
    return work.weights.signs and work.channels // work.weights.groups >= _LEAST_BITS


def seconds(work: Conv, algorithm: str, weight_bytes: int, speed: Speed) -> float:
    """The estimated time of a layer on one thread: the cost model."""
    from_memory = weight_bytes / _BANDWIDTH
    if algorithm == DIRECT:
        return max(_macs(work) / speed.direct / speed.pace, from_memory)
    winograd = algorithm in (WINOGRAD, WINOGRAD_LATE)
    # Winograd makes 4 x 4 outputs of 6 x 6 products; the transform 17 - K by 17 - L of 16 x 16 modulo two primes.
    side = (4, 4) if winograd else (17 - work.kernel[0], 17 - work.kernel[1])
    tiles = work.batch * math.prod(-(-size // out) for size, out in zip(work.output_size, side, strict=True))
    points = work.batch * math.prod(map(winograd_points, work.output_size)) if winograd else 512 * tiles
    kernels = work.channels * work.output_channels
    channels = tiles * (work.channels + work.output_channels)
    transforms = channels * (_WINOGRAD_CHANNEL if winograd else _TRANSFORM_CHANNEL)
    if algorithm in LATE.values():
        transforms += kernels * (_WINOGRAD_KERNEL if winograd else _TRANSFORM_KERNEL)
    return max(points * kernels / speed.products / speed.pace, from_memory) + transforms / speed.pace


def winograd_points(size: int) -> int:
    """Points along one axis: 6 for 4 outputs, 4 for a rest of 1 or 2."""
    return size // 4 * 6 + (0, 4, 4, 6)[size % 4]


def _macs(work: Conv) -> int:
    return work.batch * math.prod(work.output_size) * work.weights.values.size
