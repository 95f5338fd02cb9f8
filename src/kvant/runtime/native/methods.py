"""Which algorithm computes each convolution: the fastest by a cost model or a trial, within a budget of memory.

All algorithms give the same bits. Winograd and the number-theoretic transform multiply less but need larger weights, so
they go first to the layers where a byte saves the most time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvant.runtime.steps import Conv, Weights

DIRECT, WINOGRAD, TRANSFORM, XNOR = "direct", "winograd", "transform", "xnor"
# Fewer channels than this of a sign convolution's group fill too little of a word of bits.
_LEAST_BITS = 8


@dataclass(frozen=True)
class Speed:
    """What one thread does in a second: 8-bit products of the direct kernels, and 16-bit products of the others."""

    direct: float
    products: float


# Measured with benchmarks/kernels.py; only ratios matter. Portable kernels are direct ones.
SPEEDS = {
    "avx512vnni": Speed(225e9, 115e9), "avx2": Speed(90e9, 70e9), "portable": Speed(90e9, 70e9),
    # Not measured on such processors: from the products of an instruction.
    "avxvnni": Speed(180e9, 70e9), "neondot": Speed(180e9, 70e9),
}  # fmt: skip
# Bytes of weights a second that no cache holds, and seconds to transform one channel of one tile, in and out.
_BANDWIDTH = 20e9
_WINOGRAD_CHANNEL = 5e-9
_TRANSFORM_CHANNEL = 21e-9


@dataclass(frozen=True)
class Choice:
    """The algorithm of one layer, the bytes of its weights, and its multiply-accumulates at the example size."""

    node: str
    algorithm: str
    bytes: int
    macs: int


def choose(
    layers: Sequence[tuple[str, Conv]],
    budget: float,
    bytes_of: Callable[[Conv, str], int | None],
    cost: Callable[[Conv, str, int], float],
) -> dict[Weights, Choice]:
    """The algorithm of every layer.

    Args:
        layers: convolutions at the example size, with their nodes.
        budget: bytes that all weights may take; direct ones are used even where they take more.
        bytes_of: bytes of a layer's weights for an algorithm, None if it cannot compute the layer.
        cost: seconds that a layer takes by an algorithm whose weights take so many bytes.
    """
    chosen: dict[Weights, Choice] = {}
    upgrades: list[tuple[float, str, str, Conv, int]] = []
    for node, work in layers:
        bits = bytes_of(work, XNOR) if of_signs(work) else None
        if bits is not None:
            chosen[work.weights] = Choice(node, XNOR, bits, _macs(work))
            continue
        plain = bytes_of(work, DIRECT) or 0
        chosen[work.weights] = Choice(node, DIRECT, plain, _macs(work))
        for algorithm in (WINOGRAD, TRANSFORM):
            size = bytes_of(work, algorithm)
            if size is not None:
                saved = cost(work, DIRECT, plain) - cost(work, algorithm, size)
                upgrades.append((saved / max(size - plain, 1), node, algorithm, work, size))
    left = budget - sum(choice.bytes for choice in chosen.values())
    for saved, node, algorithm, work, size in sorted(upgrades, key=lambda entry: (-entry[0], entry[1], entry[2])):
        now = chosen[work.weights]
        better = saved > 0 and cost(work, algorithm, size) < cost(work, now.algorithm, now.bytes)
        if better and size - now.bytes <= left:
            left -= size - now.bytes
            chosen[work.weights] = Choice(node, algorithm, size, now.macs)
    return chosen


def of_signs(work: Conv) -> bool:
    """Whether a layer multiplies signs, enough of them for bit operations to be worth it."""
    return work.weights.signs and work.channels // work.weights.groups >= _LEAST_BITS


def seconds(work: Conv, algorithm: str, weight_bytes: int, speed: Speed) -> float:
    """The estimated time of a layer on one thread: the cost model."""
    if algorithm == DIRECT:
        return _macs(work) / speed.direct
    winograd = algorithm == WINOGRAD
    # Winograd makes 4 x 4 outputs of 6 x 6 products; the transform 17 - K by 17 - L of 16 x 16 modulo two primes.
    side = (4, 4) if winograd else (17 - work.kernel[0], 17 - work.kernel[1])
    tiles = work.batch * math.prod(-(-size // out) for size, out in zip(work.output_size, side, strict=True))
    points = work.batch * math.prod(map(winograd_points, work.output_size)) if winograd else 512 * tiles
    products = points * work.channels * work.output_channels / speed.products
    channels = tiles * (work.channels + work.output_channels)
    transforms = channels * (_WINOGRAD_CHANNEL if winograd else _TRANSFORM_CHANNEL)
    return max(products, weight_bytes / _BANDWIDTH) + transforms


def winograd_points(size: int) -> int:
    """Points along one axis: 6 for 4 outputs, 4 for a rest of 1 or 2."""
    return size // 4 * 6 + (0, 4, 4, 6)[size % 4]


def _macs(work: Conv) -> int:
    return work.batch * math.prod(work.output_size) * work.weights.values.size
