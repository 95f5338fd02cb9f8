"""Convolutions and transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, ints, need_activation, need_constant
from kvant.capture.operators.volumes import conv3d, conv_transpose3d
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


def _check(x: Operand, weight: Operand, bias: Operand | None) -> tuple[Activation, Tensor, list[Tensor]]:
    x, weight = need_activation(x, "the convolution's input"), need_constant(weight, "the convolution's weight")
    rank = weight.dim() - 2
    if x.rank != rank + 2:
        raise UnsupportedError(f"an input without a batch axis, of shape {tuple(x.shape)}")
    return x, weight, [] if bias is None else [need_constant(bias, "the convolution's bias")]


@handles("conv1d.default", "conv2d.default", "conv3d.default")
def conv(
    t: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Activation:
    x, weight, biases = _check(x, weight, bias)
    rank = weight.dim() - 2
    pads = ints(padding, rank)
    return _conv(t, x, weight, biases, ops.Conv(ints(stride, rank), pads, pads, ints(dilation, rank), groups))


def _conv(t: Builder, x: Activation, weight: Tensor, biases: list[Tensor], op: ops.Conv) -> Activation:
    if len(op.strides) == 3:
        return conv3d(t, x, weight, biases, op)
    return t.emit(op, x, weight, *biases)


@handles("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_padding(
    t: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    groups: int,
) -> Activation:
    x, weight, biases = _check(x, weight, bias)
    rank = weight.dim() - 2
    dilations = ints(dilation, rank)
    totals = (0,) * rank
    if padding == "same":
        totals = tuple(d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True))
    begin = tuple(total // 2 for total in totals)
    end = tuple(total - first for total, first in zip(totals, begin, strict=True))
    return _conv(t, x, weight, biases, ops.Conv(ints(stride, rank), begin, end, dilations, groups))


@handles("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(
    t: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Activation:
    x, weight, biases = _check(x, weight, bias)
    rank = weight.dim() - 2
    pads = ints(padding, rank)
    op = ops.ConvTranspose(
        ints(stride, rank), pads, pads, ints(output_padding, rank), ints(dilation, rank), groups
    )  # fmt: skip
    if rank == 3:
        return conv_transpose3d(t, x, _outputs_first(weight, groups), biases, op)
    return t.emit(op, x, _outputs_first(weight, groups), *biases)


def _outputs_first(weight: Tensor, groups: int) -> Tensor:
    """torch's (C, O / groups, *K) as (O, C / groups, *K)."""
    grouped = weight.detach().reshape(groups, -1, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1).contiguous()


@handles("convolution.default")
def convolution(
    t: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Activation:
    if transposed:
        return conv_transpose(t, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(t, x, weight, bias, stride, padding, dilation, groups)
