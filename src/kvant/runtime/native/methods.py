"""Which algorithm computes each convolution: the fastest by a cost model, within a budget of memory.

All algorithms give the same bits. Winograd and the number-theoretic transform multiply less but need larger weights, so
they go first to the layers where a byte saves the most time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvant.runtime.steps import Conv, Weights

DIRECT, WINOGRAD, TRANSFORM = "direct", "winograd", "transform"
# Multiply-accumulates a second of the direct kernels, and bytes a second of weights that no cache holds; only their
# ratio to each other and to the gains matters.
_DIRECT_RATE = 200e9
_BANDWIDTH = 15e9


@dataclass(frozen=True)
class Choice:
    """The algorithm of one layer, the bytes of its weights, and its multiply-accumulates at the example size."""

    node: str
    algorithm: str
    bytes: int
    macs: int


def choose(
    layers: Sequence[tuple[str, Conv]], budget: float, bytes_of: Callable[[Conv, str], int | None]
) -> dict[Weights, Choice]:
    """The algorithm of every layer.

    Args:
        layers: convolutions at the example size, with their nodes.
        budget: bytes that all weights may take; direct ones are used even where they take more.
        bytes_of: bytes of a layer's weights for an algorithm, None if it cannot compute the layer.
    """
    chosen: dict[Weights, Choice] = {}
    upgrades: list[tuple[float, str, str, Conv, int]] = []
    for node, work in layers:
        plain = bytes_of(work, DIRECT) or 0
        chosen[work.weights] = Choice(node, DIRECT, plain, _macs(work))
        for algorithm in (WINOGRAD, TRANSFORM):
            size = bytes_of(work, algorithm)
            saved = seconds(work, DIRECT, plain) - seconds(work, algorithm, size or 0)
            if size is not None and saved > 0:
                upgrades.append((saved / max(size - plain, 1), node, algorithm, work, size))
    left = budget - sum(choice.bytes for choice in chosen.values())
    for _, node, algorithm, work, size in sorted(upgrades, key=lambda entry: (-entry[0], entry[1], entry[2])):
        now = chosen[work.weights]
        better = seconds(work, algorithm, size) < seconds(work, now.algorithm, now.bytes)
        if better and size - now.bytes <= left:
            left -= size - now.bytes
            chosen[work.weights] = Choice(node, algorithm, size, now.macs)
    return chosen


def seconds(work: Conv, algorithm: str, weight_bytes: int) -> float:
    """The estimated time of a layer on one thread."""
    macs = _macs(work)
    if algorithm == WINOGRAD:
        gain = 1.6 if work.channels >= 128 else 1.4
        return macs / (_DIRECT_RATE * gain * _filled(work, 4))
    if algorithm == TRANSFORM:
        # The gain grows with the kernel: 16 x 16 points give (17 - K)^2 outputs of K^2 products each.
        tile = 17 - work.kernel[0]
        gain = 2.5 * (tile * work.kernel[0]) ** 2 / (10 * 7) ** 2
        return macs / (_DIRECT_RATE * gain * _filled(work, tile)) + weight_bytes / _BANDWIDTH
    return macs / _DIRECT_RATE


def _macs(work: Conv) -> int:
    return work.batch * math.prod(work.output_size) * work.weights.values.size


def _filled(work: Conv, tile: int) -> float:
    """The share of tiles' outputs that are wanted."""
    wanted = math.prod(work.output_size)
    return wanted / math.prod(-(-size // tile) * tile for size in work.output_size)
