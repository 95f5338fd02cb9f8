"""Reference: weighted layers of float32. Sums are float64, in an order that is part of the definition."""

from __future__ import annotations

from itertools import product

import numpy as np

from kvant.runtime import steps
from kvant.runtime.arithmetic import Float32, Float64

# Rows smaller than this get the scale of this: quotients stay finite.
SMALLEST_SCALE = np.float32(2.0**-100)


def _settle(values: Float64, bias: Float32, low: float, high: float) -> Float32:
    """The sum and the bias in float64, bounded, then rounded once."""
    return np.minimum(np.maximum(values + bias.astype(np.float64), low), high).astype(np.float32)


def conv(work: steps.FloatConv, x: Float32) -> Float32:
    """Products exact in float64, added one by one: kernel rows, then columns, then channels of the group."""
    groups, kh, kw, depth, outputs = work.weights.values.shape
    (oh, ow), (sh, sw), (dh, dw) = work.output_size, work.strides, work.dilations
    pixels = x.astype(np.float64).reshape(work.batch, *work.size, groups, depth)
    needed = [(oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1]
    behind = [max(0, most - pad - size) for most, pad, size in zip(needed, work.pads, work.size, strict=True)]
    padded = np.pad(pixels, [(0, 0), *zip(work.pads, behind, strict=True), (0, 0), (0, 0)])
    weights = work.weights.values.astype(np.float64)
    sums = np.zeros((work.batch, oh, ow, groups, outputs))
    for i, j, c in product(range(kh), range(kw), range(depth)):
        seen = padded[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw, :, c]
        sums += seen[..., None] * weights[:, i, j, c]
    return _settle(sums.reshape(-1, groups * outputs), work.weights.bias, work.low, work.high)


def dynamic_linear(work: steps.DynamicLinear, x: Float32) -> Float32:
    """Each row becomes 8-bit integers by a scale and a zero point of its own; their sums with the weights are exact."""
    rows = x.reshape(work.rows, -1)
    levels, zero = np.float32(255), np.float32(0)
    low = np.minimum(rows.min(axis=1, keepdims=True), zero)
    high = np.maximum(rows.max(axis=1, keepdims=True), zero)
    scale = np.maximum(high / levels - low / levels, SMALLEST_SCALE)
    zero_point = np.minimum(np.rint(-low / scale), levels)
    q = np.minimum(np.maximum(np.rint(rows / scale), -zero_point), levels - zero_point).astype(np.int64)
    sums = q @ work.weights.values.astype(np.int64).T
    values = sums.astype(np.float64) * (scale.astype(np.float64) * work.weights.scales.astype(np.float64))
    return _settle(values, work.weights.bias, work.low, work.high)
