"""Operators over three spatial axes, in terms of those over two.

A convolution over depth, height and width is one over height and width of slices (N * D, C * kd, H, W), whose channels
are those of the kd neighbouring slices that its kernel reads: the same sums, in one accumulator. What pools or resizes
does so over height and width first, and then over depth.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.padding import with_zeros
from kvant.capture.operators.shape import permute_to, reshape_to, slice_axis
from kvant.graph import ops


def conv3d(t: Builder, x: Activation, weight: Tensor, biases: Sequence[Tensor], op: ops.Conv) -> Activation:
    """``op`` over the three last axes of ``x`` (N, C, D, H, W)."""
    x = with_zeros(t, x, {2: (op.pads_begin[0], op.pads_end[0])})
    plane = ops.Conv(op.strides[1:], op.pads_begin[1:], op.pads_end[1:], op.dilations[1:], op.groups)
    return _by_slices(t, x, weight, biases, plane, op.strides[0], op.dilations[0])


def conv_transpose3d(
    t: Builder, x: Activation, weight: Tensor, biases: Sequence[Tensor], op: ops.ConvTranspose
) -> Activation:
    """``op`` over the three last axes: along depth an ordinary convolution by the mirrored kernel.

    It reads slices between which there are ``stride - 1`` slices of zeros.
    """
    between = op.strides[0] - 1
    batch, channels, depth, height, width = x.shape
    if between:
        apart = need_activation(reshape_to(t, x, (batch, channels, depth, 1, height, width)), "the operand")
        spread = with_zeros(t, apart, {3: (0, between)})
        x = need_activation(
            reshape_to(t, spread, (batch, channels, depth * (between + 1), height, width)), "the operand"
        )
    reach = op.dilations[0] * (weight.shape[2] - 1)
    end = reach - op.pads_end[0] + op.output_padding[0] - between
    x = with_zeros(t, x, {2: (reach - op.pads_begin[0], end)})
    plane = ops.ConvTranspose(
        op.strides[1:], op.pads_begin[1:], op.pads_end[1:], op.output_padding[1:], op.dilations[1:], op.groups
    )
    return _by_slices(t, x, weight.flip(2), biases, plane, 1, op.dilations[0])


def _by_slices(
    t: Builder,
    x: Activation,
    weight: Tensor,
    biases: Sequence[Tensor],
    plane: ops.Conv | ops.ConvTranspose,
    stride: int,
    gap: int,
) -> Activation:
    """Convolve ``x`` by ``weight`` (O, C / groups, kd, kh, kw): ``plane`` says how over height and width."""
    batch, channels, depth, height, width = t.shape
    slices = _slices(t, x, weight.shape[2], stride, gap, depth)
    flat = weight.detach().flatten(1, 2).contiguous()
    y = t.emit(plane, slices, flat, *biases, shape=(batch * depth, channels, height, width))
    apart = reshape_to(t, y, (batch, depth, channels, height, width))
    return need_activation(permute_to(t, apart, (0, 2, 1, 3, 4)), "the volume")


def _slices(t: Builder, x: Activation, kernel: int, stride: int, gap: int, depth: Size) -> Activation:
    """(N * depth, C * kernel, H, W): what the kernel reads of ``x`` at each of its places along depth."""
    batch, channels, _, height, width = x.shape
    read: list[Operand] = []
    for first in range(0, kernel * gap, gap):
        stop = t.dim(first + (depth - 1) * stride + 1)
        part = x if kernel == stride == 1 else slice_axis(t, x, 2, first, stop, depth, stride)
        read.append(reshape_to(t, part, (batch, channels, 1, depth, height, width)))
    joined = t.emit(ops.Concat(2), *read, shape=(batch, channels, kernel, depth, height, width))
    turned = permute_to(t, joined, (0, 3, 1, 2, 4, 5))
    return need_activation(reshape_to(t, turned, (batch * depth, channels * kernel, height, width)), "the slices")


Separable = ops.MaxPool | ops.AveragePool | ops.AdaptivePool | ops.Resize


def planes_then_depth(t: Builder, x: Activation, plane: Separable, line: Separable) -> Activation:
    """``plane`` over height and width of ``x`` (N, C, D, H, W), then ``line`` over depth and one axis that it keeps."""
    batch, channels, depth, height, width = x.shape
    *_, new_depth, new_height, new_width = t.shape
    flat = reshape_to(t, x, (batch, channels * depth, height, width))
    done = t.emit(plane, flat, shape=(batch, channels * depth, new_height, new_width))
    rows = reshape_to(t, done, (batch, channels, depth, new_height * new_width))
    y = t.emit(line, rows, shape=(batch, channels, new_depth, new_height * new_width))
    return need_activation(reshape_to(t, y, t.shape), "the volume")
