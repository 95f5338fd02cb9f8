"""Reference: convolution, linear layers included, and matrix products. Sums are exact integers, then requantized."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import steps
from kvant.runtime.reference.elementwise import centred, requantize, settle

Array = npt.NDArray[Any]
# float64 holds every integer up to here, so sums below it are exact in any order, and BLAS computes them fast.
_EXACT_IN_FLOAT64 = 2**53


def _carrier(bound: int) -> type[np.float64 | np.int64]:
    """The dtype that sums with this bound are computed in: exact either way."""
    return np.float64 if bound < _EXACT_IN_FLOAT64 else np.int64


def conv(work: steps.Conv, x: Array, *added: Array) -> Array:
    """``sum (qx - zx) * qw + qbias`` over channels and kernel taps; padding contributes 0.

    Here channels come first, as in the formula; only the input and the result have them last.
    """
    q = _requantized(work, x)
    return add(work, q, *added) if work.added else q


def conv_pair(work: steps.ConvPair, x: Array, *added: Array) -> Array:
    """One after the other."""
    return conv(work.pointwise, conv(work.depthwise, x), *added)


def add(work: steps.Conv, q: Array, added: Array) -> Array:
    """What ``elementwise.binary`` does."""
    if work.added is None:
        raise TypeError("nothing is added to this convolution")
    own = centred(q, work.target.zero_point).astype(np.float32) * np.float32(work.added.multiplier)
    other = centred(added, work.added.zero_point).astype(np.float32) * np.float32(work.added.added_multiplier)
    return settle(own + other.reshape(own.shape), work.added.target)


def _requantized(work: steps.Conv, x: Array) -> Array:
    carrier = _carrier(work.weights.bound)
    size, groups = work.size, work.weights.groups
    pixels = centred(x, work.weights.zero_point).astype(carrier).reshape(work.batch, *size, groups, -1)
    inputs = pixels.transpose(0, 3, 4, 1, 2)
    sums = _transposed(work, inputs) if work.transposed else _direct(work, inputs)
    sums = sums.reshape(work.batch, work.output_channels, -1).transpose(0, 2, 1) + work.weights.bias.astype(carrier)
    return requantize(sums, work.weights.multipliers, work.target)


def _taps(work: steps.Conv, carrier: np.dtype[Any]) -> Array:
    """The weights as (KH, KW, groups, O / groups, C / groups)."""
    groups = work.weights.groups
    shaped = work.weights.values.astype(carrier).reshape(groups, -1, work.channels // groups, *work.kernel)
    return shaped.transpose(3, 4, 0, 1, 2)


def _contract(weight: Array, pixels: Array) -> Array:
    """(groups, O, C) times (N, groups, C, P) -> (N, groups, O, P)."""
    return weight * pixels if weight.shape[-1] == 1 else weight @ pixels


def _direct(work: steps.Conv, inputs: Array) -> Array:
    """Tap (i, j) of the kernel sees the padded input shifted by (i, j) dilations, every stride-th pixel."""
    (oh, ow), (sh, sw), (dh, dw) = work.output_size, work.strides, work.dilations
    reach = [
        (out - 1) * stride + (kernel - 1) * dilation + 1
        for out, stride, kernel, dilation in zip(
            work.output_size, work.strides, work.kernel, work.dilations, strict=True
        )
    ]
    padded_size = [max(far, pad + size) for far, pad, size in zip(reach, work.pads, work.size, strict=True)]
    padded = np.zeros((*inputs.shape[:3], *padded_size), inputs.dtype)
    padded[..., work.pads[0] : work.pads[0] + work.size[0], work.pads[1] : work.pads[1] + work.size[1]] = inputs
    weights = _taps(work, inputs.dtype)
    sums = np.zeros((work.batch, *weights.shape[2:4], oh * ow), inputs.dtype)
    for i, j in product(range(work.kernel[0]), range(work.kernel[1])):
        rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
        columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
        sums += _contract(weights[i, j], padded[..., rows, columns].reshape(*inputs.shape[:3], -1))
    return sums


def _transposed(work: steps.Conv, inputs: Array) -> Array:
    """Every input pixel adds its multiple of the kernel to a canvas, of which the padding is cut away."""
    (h, w), (sh, sw), (dh, dw) = work.size, work.strides, work.dilations
    weights = _taps(work, inputs.dtype)
    canvas_size = [
        max((size - 1) * stride + (kernel - 1) * dilation + 1, pad + out)
        for size, stride, kernel, dilation, pad, out in zip(
            work.size, work.strides, work.kernel, work.dilations, work.pads, work.output_size, strict=True
        )
    ]
    canvas = np.zeros((work.batch, *weights.shape[2:4], *canvas_size), inputs.dtype)
    pixels = inputs.reshape(*inputs.shape[:3], -1)
    for i, j in product(range(work.kernel[0]), range(work.kernel[1])):
        rows = slice(i * dh, i * dh + (h - 1) * sh + 1, sh)
        columns = slice(j * dw, j * dw + (w - 1) * sw + 1, sw)
        canvas[..., rows, columns] += _contract(weights[i, j], pixels).reshape(*canvas.shape[:3], h, w)
    (top, left), (oh, ow) = work.pads, work.output_size
    return canvas[..., top : top + oh, left : left + ow]


def matmul(work: steps.MatMul, a: Array, b: Array) -> Array:
    """``sum (qa - za) * (qb - zb)`` for each pair of matrices of the broadcast batch."""
    carrier = _carrier(work.bound)
    left: Array = centred(a, work.zero_a).astype(carrier).reshape(-1, work.m, work.k)
    right: Array = centred(b, work.zero_b).astype(carrier).reshape(-1, work.k, work.n)
    sums = left[work.index_a] @ right[work.index_b]
    return requantize(sums, work.multiplier, work.target)
