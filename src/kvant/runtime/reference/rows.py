"""Reference: reductions, softmax and norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import places, steps
from kvant.runtime.arithmetic import Float32, Int64
from kvant.runtime.reference.elementwise import centred, requantize, settle

Array = npt.NDArray[Any]
FLOAT32_MAX = float(np.finfo(np.float32).max)


def total(work: steps.Sum, x: Array) -> Array:
    """Exact sums of ``q - zero_point``, requantized; a mean's multiplier divides by the count."""
    sums = centred(x, work.zero_point).reshape(work.outer, work.size, work.inner).sum(axis=1)
    return requantize(sums, work.multiplier, work.target)


def extreme(work: steps.Extreme, x: Array) -> Array:
    """The largest or smallest integer."""
    values = x.reshape(work.outer, work.size, work.inner)
    return np.asarray(values.max(axis=1) if work.fn == "max" else values.min(axis=1))


def softmax(work: steps.Softmax, x: Array, exponentials: npt.NDArray[np.int32]) -> Array:
    """Integers from a table of exponentials and their exact sum; their quotient and 1 / scale in float32."""
    values = x.reshape(work.outer, work.size, work.inner).astype(np.int64)
    e = exponentials[values.max(axis=1, keepdims=True) - values].astype(np.int64)
    share = e.astype(np.float32) / e.sum(axis=1, keepdims=True).astype(np.float32)
    return settle(share * np.float32(work.inverse_scale), work.target)


def normalize(work: steps.Normalize, x: Array, gamma: Float32, beta: Float32) -> Array:
    """``(x - mean) / sqrt(variance + eps) * gamma + beta`` of each row, from exact integer sums."""
    q = centred(x, work.zero_point).reshape(work.rows, work.size)
    sums = q.sum(axis=1)
    factors = np.array([_factor(work, int(a), int(b)) for a, b in zip(sums, (q * q).sum(axis=1), strict=True)])
    t = (q * work.size - sums[:, None]).astype(np.float32) * factors.astype(np.float32)[:, None]
    y = t * _spread(work, gamma) + _spread(work, beta)
    return settle(y / np.float32(work.output_scale), work.target)


def _factor(work: steps.Normalize, a: int, b: int) -> float:
    """``scale / n / sqrt(variance + eps)``, in float64 in this order; the numerator of the variance is exact."""
    n = float(work.size)
    variance = float(work.size * b - a * a) * (work.scale * work.scale / (n * n)) + work.eps
    if variance == 0.0:
        return 0.0
    return min(work.scale / n * (1.0 / float(np.sqrt(variance))), FLOAT32_MAX)


def _spread(work: steps.Normalize, values: Float32) -> Float32:
    """gamma or beta for every element of every row."""
    per_row = np.repeat(values.reshape(work.groups, -1), work.inner, axis=1)
    return np.tile(per_row, (work.rows // work.groups, 1))


def arg_max(work: steps.ArgMax, x: Array) -> Int64:
    """Position of the first maximum."""
    return np.asarray(x.reshape(work.outer, work.size, work.inner).argmax(axis=1), np.int64)


def top_k(work: places.TopK, x: Array) -> Int64:
    """Positions of the first elements in a stable order."""
    values = x.reshape(work.outer, work.size, work.inner).astype(np.int64)
    order = np.argsort(-values if work.largest else values, axis=1, kind="stable")
    return np.asarray(order[:, : work.count], np.int64)


def cum_sum(work: places.CumSum, x: Array) -> Array:
    """Exact sums of ``q - zero_point``, requantized; int64 as it is, modulo 2**64."""
    sums = centred(x, work.zero_point).reshape(work.outer, work.size, work.inner).cumsum(axis=1, dtype=np.int64)
    return sums if work.target is None else requantize(sums, work.multiplier, work.target)
