"""Reference: requantization, and what treats every element alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Float32, Int64, Target
from kvant.runtime.inputs import check_finite

Array = npt.NDArray[Any]


def centred(q: Array, zero_point: int) -> npt.NDArray[np.int64]:
    """``q - zero_point``, exact."""
    return q.astype(np.int64) - zero_point


def settle(value: Float32, target: Target) -> Array:
    """``min(max(rne(value) + zero_point, low), high)`` in float32, as integers. Every requantized result ends here."""
    rounded = np.rint(value) + np.float32(target.zero_point)
    return np.minimum(np.maximum(rounded, np.float32(target.low)), np.float32(target.high)).astype(target.dtype)


def requantize(accumulator: Array, multiplier: float | Float32, target: Target) -> Array:
    """An exact integer becomes float32 (to nearest, ties to even), is multiplied once in float32, and settles."""
    return settle(accumulator.astype(np.float32) * np.float32(multiplier), target)


def quantize(work: steps.Quantize, x: Float32) -> Array:
    """``clamp(rne(x / scale) + zero_point)``, the division in float32."""
    if work.given:
        check_finite(work.given, x)
    planes = x.reshape(work.outer, work.channels, work.inner).transpose(0, 2, 1)
    return settle(planes / np.float32(work.scale), work.target)


def dequantize(work: steps.Dequantize, x: Array) -> Float32:
    """``float32(q - zero_point) * scale``, one product in float32."""
    return centred(x, work.zero_point).astype(np.float32) * np.float32(work.scale)


def rescale(work: steps.Rescale, x: Array) -> Array:
    """Integers of one scale to integers of another."""
    return requantize(centred(x, work.zero_point), work.multiplier, work.target)


def table(work: steps.Table, x: Array, entries: Array) -> Array:
    """``entries[q - lowest]``, from the channel's own row where there are several."""
    position = x.reshape(work.outer, work.channels, work.inner).astype(np.int64) - work.lowest
    rows = np.arange(work.channels).reshape(1, -1, 1)
    return entries.reshape(work.channels, -1)[rows, position]


def binary(work: steps.Binary, a: Array, b: Array) -> Array:
    """A function of two tensors, read by their strides; both operands are brought to the output's scale."""
    left = centred(_strided(a, work.shape, work.strides_a), work.zero_a)
    right = centred(_strided(b, work.shape, work.strides_b), work.zero_b)
    if work.fn == "mul":
        return requantize(left * right, work.multiplier_a, work.target)
    if work.fn == "div":
        return settle(_quotient(left, right, work.multiplier_a), work.target)
    x = left.astype(np.float32) * np.float32(work.multiplier_a)
    y = right.astype(np.float32) * np.float32(work.multiplier_b)
    functions = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
    return settle(functions[work.fn](x, y), work.target)


_INTEGER_FUNCTIONS: dict[str, np.ufunc] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.floor_divide, "mod": np.remainder,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def int_binary(work: places.IntBinary, a: Int64, b: Int64) -> Int64:
    """A function of two int64 tensors, modulo 2**64; dividing by 0 gives 0."""
    left, right = _strided(a, work.shape, work.strides_a), _strided(b, work.shape, work.strides_b)
    with np.errstate(all="ignore"):
        return np.asarray(_INTEGER_FUNCTIONS[work.fn](left, right), np.int64)


def real(work: places.Real, x: Int64) -> Float32:
    """The nearest float32, ties to even."""
    return x.astype(np.float32)


def _strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """``out[i, j, ...] = x[i * strides[0] + j * strides[1] + ...]``, strides in elements."""
    return np.lib.stride_tricks.as_strided(x.reshape(-1), shape, [step * x.itemsize for step in strides])


def _quotient(a: Array, b: Array, multiplier: float) -> Float32:
    """``float32(a) / float32(b) * multiplier``; 0 / 0 is 0, and x / 0 is infinite with the sign of x."""
    divisor = np.where(b == 0, 1, b).astype(np.float32)
    quotient = a.astype(np.float32) / divisor * np.float32(multiplier)
    infinite = np.where(a == 0, np.float32(0), np.copysign(np.float32(np.inf), a.astype(np.float32)))
    return np.where(b == 0, infinite, quotient)
