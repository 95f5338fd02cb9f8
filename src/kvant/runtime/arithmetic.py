"""The numbers that steps carry: multipliers, clamp bounds, and the proof that accumulators hold their sums.

Everything derived from scales is computed in float64 and rounded once to float32 (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvant.errors import AccumulatorOverflowError, GraphError
from kvant.graph import TensorType
from kvant.graph.ops import Clamp

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Target:
    """The integers that a step writes: ``min(max(rne(v) + zero_point, low), high)`` as ``dtype``."""

    dtype: str
    zero_point: int
    low: int
    high: int


def scale_of(type: TensorType) -> float:
    """The scale of an activation's type, as the float64 that equals the float32."""
    if type.quantization is None:
        raise GraphError(f"a tensor of type {type.dtype} has no scale")
    return float(np.float32(type.quantization.scale[0]))


def zero_of(type: TensorType) -> int:
    """The zero point of a type; 0 for one without quantization."""
    return 0 if type.quantization is None else type.quantization.zero_point


@lru_cache(maxsize=4096)
def target_of(type: TensorType, clamp: Clamp | None = None) -> Target:
    """Zero point and bounds of a quantized output: its type's range, narrowed by a fused activation."""
    low, high = type.integer_range()
    if type.dtype not in ("uint8", "int16"):
        raise GraphError(f"an output of type {type.dtype} cannot be requantized; activations are uint8 or int16")
    zero = zero_of(type)
    least, most = clamp or (None, None)
    bounds = (
        low if least is None else quantize_real(least, type),
        high if most is None else quantize_real(most, type),
    )
    return Target(type.dtype, zero, *bounds)


def quantize_real(value: float, type: TensorType) -> int:
    """``clamp(rne(float32(value) / scale) + zero_point)``: the integer that stands for a real number."""
    low, high = type.integer_range()
    with np.errstate(over="ignore"):
        rounded = np.rint(np.float32(value) / np.float32(scale_of(type))) + np.float32(zero_of(type))
    return int(min(max(rounded, low), high))


def multiplier(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Float32:
    """``float32(numerator / denominator)``, the quotient in float64, as an array.

    Raises:
        GraphError: the quotient is beyond float32, so the scales cannot be meant.
    """
    with np.errstate(over="ignore"):
        value = np.asarray(np.divide(numerator, denominator, dtype=np.float64)).astype(np.float32)
    if not np.isfinite(value).all():
        raise GraphError("the scales of its tensors are so far apart that their quotient is not a float32")
    return value


def furthest(type: TensorType) -> int:
    """Largest ``|q - zero_point|`` over the integers of a type."""
    low, high = type.integer_range()
    zero = zero_of(type)
    return max(abs(low - zero), abs(high - zero))


def accumulator_bound(x: TensorType, weight: npt.NDArray[np.int8 | np.int16], bias: Int64) -> int:
    """A proven bound of ``|sum (qx - zx) qw + qbias|`` over all inputs and output channels.

    Args:
        weight: output channels first.
        bias: one entry for each output channel.

    Raises:
        AccumulatorOverflowError: not even int64 can hold the sum.

    >>> from kvant.graph import Quantization
    >>> x = TensorType("uint8", Quantization((1.0,), 128))
    >>> accumulator_bound(x, np.array([[127, -3]], np.int8), np.array([5]))
    32773
    """
    reach, largest_bias = furthest(x), int(np.abs(bias).max(initial=0))
    # Most layers are far from int32's end: then there is no need to read all weights.
    bound = -reach * int(np.iinfo(weight.dtype).min) * (weight.size // max(len(weight), 1)) + largest_bias
    if bound <= INT32_MAX:
        return bound
    sums = np.abs(weight.reshape(weight.shape[0], -1).astype(np.int64)).sum(axis=1)
    bound = max(reach * int(total) + abs(int(entry)) for total, entry in zip(sums, bias, strict=True))
    if bound > INT64_MAX:
        raise AccumulatorOverflowError(f"its accumulator can reach {bound}, more than int64 holds")
    return bound


def exact_terms(largest_product: int) -> int:
    """How many products of at most this size surely sum up within int32."""
    return max(1, INT32_MAX // max(1, largest_product))
