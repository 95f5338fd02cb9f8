"""What a plan's steps multiply and add up: records of convolutions, linear layers and matrix products.

See ``kvant.runtime.steps``, of which they are a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
