"""What a plan is made of: one neutral record for each kind of work, all shapes and numbers resolved.

A step says what is computed, not how: the reference and the native back end each have one function for each record.
Activations are row-major arrays, images with their channels last; a step that works along one axis sees its tensor as
(outer, size, inner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant.graph.ops import BinaryFunction
from kvant.runtime.arithmetic import Float32, Int64, Target

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a convolution or linear layer, prepared once when a graph is loaded.

    Attributes:
        values: int8 or int16, output channels first: (O, C / groups, KH, KW), or (O, K) for a linear layer.
        bias: int64, (O).
        multipliers: float32, (O): scale of x times scale of the weight over scale of y.
        bound: proven bound of the accumulator's magnitude.
        terms: that many products surely sum up within int32.
        groups: groups of output channels, each with inputs of its own.
        dtype: of the input.
        zero_point: of the input.
        signs: weights are -1 and 1, and the input holds nothing but 0, 1 and 2, around a zero point of 1.
    """

    values: npt.NDArray[np.int8 | np.int16]
    bias: Int64
    multipliers: Float32
    bound: int
    terms: int
    groups: int
    dtype: str
    zero_point: int
    signs: bool = False


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """Weights of a convolution or linear layer of float32.

    Attributes:
        values: float32 (groups, KH, KW, C / groups, O / groups).
        bias: float32 (O).
    """

    values: Float32
    bias: Float32


@dataclass(frozen=True, eq=False)
class DynamicWeights:
    """Integer weights of a linear layer whose float32 inputs get a scale and a zero point for each row.

    Attributes:
        values: int16 (O, K): int8 or int16 weights.
        scales: float32 (O).
        bias: float32 (O).
        terms: that many products surely sum up within int32.
    """

    values: npt.NDArray[np.int16]
    scales: Float32
    bias: Float32
    terms: int


AnyWeights = Weights | FloatWeights | DynamicWeights


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
class Addend:
    """A tensor that a convolution adds to its results ``q``, of their dtype and shape.

    Written is ``(q - zero point of q) * multiplier + (x - zero_point) * added_multiplier`` as ``target``.
    """

    zero_point: int
    multiplier: float
    added_multiplier: float
    target: Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Geometry:
    """Convolution over two axes (one axis is lifted to two); a linear layer is one too.

    Input (batch, H, W, channels), output (batch, H', W', output channels).
    """

    batch: int
    channels: int
    size: Pair
    output_channels: int
    output_size: Pair
    kernel: Pair
    strides: Pair
    pads: Pair
    dilations: Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Geometry):
    """Convolution of integers, transposed or not.

    Where something is added, it is the second input, and the results have its ``target``.
    """

    weights: Weights
    transposed: bool
    target: Target
    added: Addend | None = None


@dataclass(frozen=True, eq=False)
class ConvPair:
    """A depthwise convolution (of ``node``) and the 1 x 1 convolution of its results; inputs as for the latter."""

    depthwise: Conv
    pointwise: Conv
    node: str


@dataclass(frozen=True, eq=False, kw_only=True)
class FloatConv(Geometry):
    """Convolution of float32; results end at ``low`` and ``high``."""

    weights: FloatWeights
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class DynamicLinear:
    """Linear layer over ``rows`` of float32, each quantized by itself to 8 bits; results end at ``low``, ``high``."""

    weights: DynamicWeights
    rows: int
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class MatMul:
    """Products of (M, K) and (K, N) matrices; ``index_a`` and ``index_b`` name the two matrices of each product."""

    m: int
    k: int
    n: int
    index_a: Int64
    index_b: Int64
    zero_a: int
    zero_b: int
    multiplier: float
    bound: int
    terms: int
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
