"""What a plan is made of: one neutral record for each kind of work, all shapes and numbers resolved.

A step says what is computed, not how: the reference and the native back end each have one function for each record.
Activations are row-major arrays, images with their channels last; a step that works along one axis sees its tensor as
(outer, size, inner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvant.graph.ops import BinaryFunction
from kvant.runtime.arithmetic import Float32, Int64, Target
from kvant.runtime.places import CumSum, GridSample, IntBinary, Pick, Real, TopK
from kvant.runtime.weighted import (
    Addend,
    AnyWeights,
    Conv,
    ConvPair,
    DynamicLinear,
    DynamicWeights,
    FloatConv,
    FloatWeights,
    Geometry,
    MatMul,
    Pair,
    Weights,
)

__all__ = [
    "Addend", "AnyWeights", "ArgMax", "Binary", "Concat", "Conv", "ConvPair", "Copy", "Dequantize", "DynamicLinear",
    "DynamicWeights", "Extreme", "FloatConv", "FloatWeights", "Gather", "Geometry", "Index", "MatMul", "MaxPool",
    "MeanPool", "Normalize", "Pair", "Quantize", "Rescale", "Resize", "Softmax", "Step", "Sum", "Table", "Taps",
    "Weights", "Windows", "Work", "convolutions", "layers_of",
]  # fmt: skip


@dataclass(frozen=True)
class Quantize:
    """float32 -> integers: (outer, channels, inner) -> (outer, inner, channels).

    ``given`` names the graph's input that it reads, if it reads one: NaN and infinity are refused there.
    """

    outer: int
    channels: int
    inner: int
    scale: float
    target: Target
    given: str = ""


@dataclass(frozen=True)
class Dequantize:
    """Integers -> float32."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Rescale:
    """Integers -> integers of another scale."""

    zero_point: int
    multiplier: float
    target: Target


@dataclass(frozen=True)
class Table:
    """Look-up, seen as (outer, channels, inner); inputs x, table (channels or 1, entries). Entry 0 is ``lowest``."""

    outer: int
    channels: int
    inner: int
    lowest: int


@dataclass(frozen=True)
class Binary:
    """Element-wise function of two tensors.

    ``shape`` and the two strides (in elements, 0 where an operand is broadcast) are those of the output with
    neighbouring axes joined where both operands allow it.
    """

    fn: BinaryFunction
    shape: tuple[int, ...]
    strides_a: tuple[int, ...]
    strides_b: tuple[int, ...]
    zero_a: int
    zero_b: int
    multiplier_a: float
    multiplier_b: float
    target: Target


@dataclass(frozen=True)
class Copy:
    """Elements move: out[i, j, ...] = x[offset + i * strides[0] + j * strides[1] ...], strides in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Concat:
    """Join (outer, sizes[i]) arrays side by side."""

    outer: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Index:
    """Out[i, j, ...] = x[tables[0][i], tables[1][j], ...]; an entry of -1 takes ``fill``."""

    shape: tuple[int, ...]
    tables: tuple[Int64, ...]
    fill: float


@dataclass(frozen=True, eq=False)
class Windows:
    """Window i of one axis covers start[i], start[i] + step, ... below stop[i]; all positions are inside the input."""

    start: Int64
    stop: Int64
    step: int


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Maximum of windows, seen as (outer, H, W, inner)."""

    outer: int
    size: Pair
    inner: int
    rows: Windows
    columns: Windows


@dataclass(frozen=True, eq=False)
class MeanPool:
    """Requantized sums of windows, seen as (outer, H, W, inner); ``multipliers`` has an entry for each output pixel."""

    outer: int
    size: Pair
    inner: int
    rows: Windows
    columns: Windows
    zero_point: int
    multipliers: Float32
    target: Target


@dataclass(frozen=True)
class Sum:
    """Requantized sums along the middle of (outer, size, inner)."""

    outer: int
    size: int
    inner: int
    zero_point: int
    multiplier: float
    target: Target


@dataclass(frozen=True)
class Extreme:
    """Maximum or minimum along the middle of (outer, size, inner); integers move."""

    fn: Literal["max", "min"]
    outer: int
    size: int
    inner: int


@dataclass(frozen=True, eq=False)
class Taps:
    """Linear interpolation along one axis: x[lower] * (one - weight) + x[upper] * weight."""

    lower: Int64
    upper: Int64
    weight: Int64
    one: int


@dataclass(frozen=True, eq=False)
class Resize:
    """Linear interpolation, seen as (outer, H, W, inner)."""

    outer: int
    size: Pair
    inner: int
    rows: Taps
    columns: Taps
    zero_point: int
    multiplier: float
    target: Target


@dataclass(frozen=True)
class Softmax:
    """Softmax along the middle of (outer, size, inner); inputs x, table of exponentials."""

    outer: int
    size: int
    inner: int
    inverse_scale: float
    target: Target


@dataclass(frozen=True)
class Normalize:
    """Layer and group norm, seen as (rows, size): each row is normalized; inputs x, gamma, beta (float32).

    Element j of row i takes entry (i % groups) * (size / inner) + j / inner of gamma and beta.
    """

    rows: int
    groups: int
    size: int
    inner: int
    scale: float
    eps: float
    zero_point: int
    output_scale: float
    target: Target


@dataclass(frozen=True)
class Gather:
    """Out[i, j] = x[i, indices[j]] for x seen as (outer, size, inner); inputs x, indices (int64)."""

    outer: int
    size: int
    inner: int
    count: int


@dataclass(frozen=True)
class ArgMax:
    """Position (int64) of the first maximum along the middle of (outer, size, inner)."""

    outer: int
    size: int
    inner: int


Work = (
    Quantize | Dequantize | Rescale | Table | Binary | Conv | ConvPair | MatMul | Copy | Concat | Index | MaxPool
    | MeanPool | Sum | Extreme | Resize | Softmax | Normalize | Gather | ArgMax | FloatConv | DynamicLinear
    | Pick | TopK | CumSum | IntBinary | Real | GridSample
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Step:
    """One piece of work: what to do, the tensors it reads, the tensor it writes, and the node it belongs to."""

    work: Work
    inputs: tuple[str, ...]
    output: str
    node: str


def convolutions(work: Work) -> list[Conv]:
    """The convolutions of a piece of work."""
    if isinstance(work, ConvPair):
        return [work.depthwise, work.pointwise]
    return [work] if isinstance(work, Conv) else []


def layers_of(step: Step) -> list[tuple[str, Conv]]:
    """The convolutions of a step, each with its node."""
    nodes = (step.work.node, step.node) if isinstance(step.work, ConvPair) else (step.node,)
    return list(zip(nodes, convolutions(step.work), strict=False))
