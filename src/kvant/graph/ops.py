"""One typed, immutable record of attributes for each operator.

The records are msgspec structs with a tag, so a file's header decodes straight into them and anything unknown is
refused. Shapes follow PyTorch: activations are N x C x spatial, weights as in ``torch.nn``. ``clamp`` is the fused
activation in real values, ``(0.0, None)`` for ReLU: the runtime turns it into integer bounds of the output's type.
Inputs are listed as ``[x, weight, bias?]``; how many an operator takes is written in ``ARITY``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kvant.graph.dims import Dim

Clamp = tuple[float | None, float | None]


class Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="op", tag=str.lower):
    """Base of all operator records."""

    @property
    def kind(self) -> str:
        """The operator's name as the file spells it, such as ``conv``."""
        return type(self).__name__.lower()


class Conv(Op, frozen=True):
    """Convolution over 1 or 2 spatial axes. Inputs: x (N, C, *S), weight (O, C / groups, *K), bias (O) optional."""

    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    clamp: Clamp | None = None


class ConvTranspose(Op, frozen=True):
    """Transposed convolution over 1 or 2 axes. Inputs: x (N, C, *S), weight (O, C / groups, *K), bias (O) optional.

    The weight is laid out as in ``Conv``, output channels first (PyTorch stores C first).
    """

    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    clamp: Clamp | None = None


class Linear(Op, frozen=True):
    """y = x weight^T + bias. Inputs: x (..., K), weight (N, K), bias (N) optional.

    ``dynamic``: x is float32, and each of its rows is quantized by itself, to 8 bits, when it is multiplied.
    """

    clamp: Clamp | None = None
    dynamic: bool = False


class MatMul(Op, frozen=True):
    """Product of two activations, batch axes broadcast. Inputs: a (..., M, K), b (..., K, N)."""

    clamp: Clamp | None = None


class BatchNorm(Op, frozen=True):
    """Inference batch norm over axis 1. Inputs: x, gamma, beta, mean, variance (each (C)). Only in float graphs."""

    eps: float
    clamp: Clamp | None = None


BinaryFunction = Literal["add", "sub", "mul", "div", "min", "max"]


class Binary(Op, frozen=True):
    """Element-wise function of two tensors, broadcast as NumPy does. Inputs: a, b."""

    fn: BinaryFunction
    clamp: Clamp | None = None


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One instruction of a ``Pointwise`` program: push the input, push a constant, or apply a function to the stack."""

    fn: str
    a: float = 0.0
    b: float = 0.0


class Pointwise(Op, frozen=True):
    """A function of one tensor's element, as a postfix program. Only in float graphs: it becomes a ``Table``.

    Inputs: x, and for a per-channel function (PReLU) one parameter vector along ``axis``.
    """

    program: tuple[Step, ...]
    axis: int | None = None


class Table(Op, frozen=True):
    """Look-up: y = table[q - lowest q]. Inputs: x, table (entries) or, along ``axis``, table (C, entries)."""

    axis: int | None = None


class Concat(Op, frozen=True):
    """Join along ``axis``. Inputs: one or more tensors; integers move, so all share one type and scale."""

    axis: int


class Slice(Op, frozen=True):
    """x[..., start:stop:step, ...] along ``axis``, negative bounds as in Python; ``stop=None`` is the end."""

    axis: int
    start: Dim = 0
    stop: Dim | None = None
    step: int = 1


class Reshape(Op, frozen=True):
    """Same elements, new shape; one entry may be -1."""

    shape: tuple[Dim, ...]


class Transpose(Op, frozen=True):
    """Axis i of the output is axis ``permutation[i]`` of the input."""

    permutation: tuple[int, ...]


class Expand(Op, frozen=True):
    """Broadcast to ``shape``; -1 keeps an axis."""

    shape: tuple[Dim, ...]


class Pad(Op, frozen=True):
    """Pad each axis by ``begin`` and ``end`` (negative crops). ``value`` is real, used by mode constant."""

    begin: tuple[Dim, ...]
    end: tuple[Dim, ...]
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant"
    value: float = 0.0


class MaxPool(Op, frozen=True):
    """Maximum over windows of the trailing spatial axes; padding never wins."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil_mode: bool = False


class AveragePool(Op, frozen=True):
    """Mean over windows of the trailing spatial axes, PyTorch's rules for ``ceil_mode`` and ``count_include_pad``."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None


class AdaptivePool(Op, frozen=True):
    """Pool the trailing axes to ``output_size``; window i covers floor(i * n / m) .. ceil((i + 1) * n / m)."""

    fn: Literal["average", "max"]
    output_size: tuple[Dim, ...]


class Reduce(Op, frozen=True):
    """Mean, sum, maximum or minimum over ``axes`` (non-negative, sorted)."""

    fn: Literal["mean", "sum", "max", "min"]
    axes: tuple[int, ...]
    keepdims: bool = False


class Resize(Op, frozen=True):
    """Interpolate the trailing spatial axes to ``size`` or by ``scale`` (exactly one is given), PyTorch's rules.

    ``nearest`` takes source floor(i / scale); ``nearest-exact`` floor((i + 0.5) / scale); ``linear`` is bilinear over
    two axes. With ``scale`` the output has floor(n * scale) elements and coordinates use ``scale``; with ``size`` they
    use output / input.
    """

    mode: Literal["nearest", "nearest-exact", "linear"]
    size: tuple[Dim, ...] | None = None
    scale: tuple[float, ...] | None = None
    align_corners: bool = False


class Softmax(Op, frozen=True):
    """Softmax along ``axis``. Inputs: x and, on integers, the table of exponentials (docs/numerics.md)."""

    axis: int


class LayerNorm(Op, frozen=True):
    """Normalize over the last ``rank`` axes. Inputs: x, gamma, beta (both of the normalized shape)."""

    rank: int
    eps: float


class GroupNorm(Op, frozen=True):
    """Normalize groups of channels (axis 1) and all later axes. Inputs: x, gamma (C), beta (C)."""

    groups: int
    eps: float


class Gather(Op, frozen=True):
    """Take slices along ``axis``. Inputs: x, indices (int64). An embedding is a gather from a constant, axis 0."""

    axis: int


class ArgMax(Op, frozen=True):
    """Index (int64) of the first maximum along ``axis``."""

    axis: int
    keepdims: bool = False


class GatherElements(Op, frozen=True):
    """An element for each index: out[i, j, k] = x[i, indices[i, j, k], k] along ``axis`` 1 of 3.

    Inputs: x, indices (int64) of the same rank; other axes of the indices have x's size, or 1 to serve all of it.
    """

    axis: int


class TopK(Op, frozen=True):
    """Indices (int64) of the ``count`` largest, or smallest, elements along ``axis``, these first.

    Of equal elements the one with the lowest index comes first. The elements themselves are a ``GatherElements``.
    """

    axis: int
    count: Dim
    largest: bool = True


class CumSum(Op, frozen=True):
    """Sums of all elements along ``axis`` up to each one, of integers with a scale or of int64 (modulo 2**64)."""

    axis: int


IntFunction = Literal["add", "sub", "mul", "div", "mod", "min", "max"]


class IntBinary(Op, frozen=True):
    """Element-wise function of two int64 tensors, broadcast as NumPy does, modulo 2**64. Inputs: a, b.

    ``div`` rounds down and ``mod`` has the sign of b, as in Python; dividing by 0 gives 0 for both.
    """

    fn: IntFunction


class Real(Op, frozen=True):
    """int64 -> the nearest float32."""


class GridSample(Op, frozen=True):
    """The image x at the places that a grid names, PyTorch's rules. Inputs: x (N, C, H, W), grid (N, H', W', 2).

    The last axis of the grid holds column and row; -1 and 1 are the centres of the outermost pixels if
    ``align_corners``, else their outer edges. ``padding`` says what lies outside.
    """

    mode: Literal["bilinear", "nearest", "bicubic"]
    padding: Literal["zeros", "border", "reflection"] = "zeros"
    align_corners: bool = False


class Quantize(Op, frozen=True):
    """float32 -> the output's integer type."""


class Dequantize(Op, frozen=True):
    """Integer -> float32: scale * (q - zero_point)."""


class Requantize(Op, frozen=True):
    """Integer -> integer of another scale, zero point or width."""


AnyOp = (
    Conv | ConvTranspose | Linear | MatMul | BatchNorm | Binary | Pointwise | Table | Concat | Slice | Reshape
    | Transpose | Expand | Pad | MaxPool | AveragePool | AdaptivePool | Reduce | Resize | Softmax | LayerNorm
    | GroupNorm | Gather | ArgMax | GatherElements | TopK | CumSum | IntBinary | Real | GridSample | Quantize
    | Dequantize | Requantize
)  # fmt: skip

# Smallest and largest number of inputs; None is no limit.
ARITY: dict[type[Op], tuple[int, int | None]] = {
    Conv: (2, 3), ConvTranspose: (2, 3), Linear: (2, 3), MatMul: (2, 2), BatchNorm: (5, 5), Binary: (2, 2),
    Pointwise: (1, 2), Table: (2, 2), Concat: (1, None), Slice: (1, 1), Reshape: (1, 1), Transpose: (1, 1),
    Expand: (1, 1), Pad: (1, 1), MaxPool: (1, 1), AveragePool: (1, 1), AdaptivePool: (1, 1), Reduce: (1, 1),
    Resize: (1, 1), Softmax: (1, 2), LayerNorm: (3, 3), GroupNorm: (3, 3), Gather: (2, 2), ArgMax: (1, 1),
    GatherElements: (2, 2), TopK: (1, 1), CumSum: (1, 1), IntBinary: (2, 2), Real: (1, 1), GridSample: (2, 2),
    Quantize: (1, 1), Dequantize: (1, 1), Requantize: (1, 1),
}  # fmt: skip

# Operators that multiply an activation by a weight and accumulate in integers.
WEIGHTED = (Conv, ConvTranspose, Linear)
# Operators whose output holds the very integers of their (first) input.
MOVES = (Concat, Slice, Reshape, Transpose, Expand, Pad, MaxPool, Gather, GatherElements)
# Operators that came with the feature "places" of files.
PLACES = (GatherElements, TopK, CumSum, IntBinary, Real, GridSample)
# Operators whose output are places or counts: int64, whatever they read.
COUNTS = (ArgMax, TopK, IntBinary)
