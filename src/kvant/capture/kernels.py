"""torch's float32 version of every operator of a float graph: record of attributes -> function of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvant.capture.products import convolution
from kvant.capture.programs import compile_program
from kvant.graph import TensorType, evaluate, ops, slice_bounds
from kvant.graph.ops import Clamp

Bindings = Mapping[str, int]
Kernel = Callable[[list[Tensor], Bindings], Tensor]
# What makes a kernel: the operator's record, and its inputs' values where they are constants.
Factory = Callable[[Any, Sequence[Tensor | None]], Kernel]
Function = Callable[[Tensor], Tensor]


def clamped(clamp: Clamp | None) -> Function:
    """The fused activation, in place: it is applied to a kernel's own result only."""
    if clamp is None or clamp == (None, None):
        return lambda y: y
    if clamp == (0.0, None):
        return torch.relu_
    low, high = clamp
    return lambda y: y.clamp_(low, high)


def _spatial(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Paddings as F.pad takes them: pairs, the last axis first."""
    return [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]


def _conv(op: ops.Conv, constants: Sequence[Tensor | None]) -> Kernel:
    function = convolution(op, constants[1])
    activate = clamped(op.clamp)
    # torch's own padding is symmetric; the smaller of both sides goes there, the rest is padded before.
    inner = tuple(map(min, op.pads_begin, op.pads_end))
    extra = _spatial(
        [size - least for size, least in zip(op.pads_begin, inner, strict=True)],
        [size - least for size, least in zip(op.pads_end, inner, strict=True)],
    )
    padded = any(extra)

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        x, weight, *bias = given
        x = F.pad(x, extra) if padded else x
        return activate(function(x, weight, bias[0] if bias else None, op.strides, inner, op.dilations, op.groups))

    return kernel


def _conv_transpose(op: ops.ConvTranspose, constants: Sequence[Tensor | None]) -> Kernel:
    function = (F.conv_transpose1d, F.conv_transpose2d)[len(op.strides) - 1]
    activate = clamped(op.clamp)
    weight = constants[1]
    # torch wants the input's channels first.
    prepared = None if weight is None else _inputs_first(weight, op.groups)
    inner = tuple(map(min, op.pads_begin, op.pads_end))
    crop = _spatial(
        [least - size for size, least in zip(op.pads_begin, inner, strict=True)],
        [least - size for size, least in zip(op.pads_end, inner, strict=True)],
    )

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        x, weight, *bias = given
        weight = _inputs_first(weight, op.groups) if prepared is None else prepared
        offset = bias[0] if bias else None
        y = function(x, weight, offset, op.strides, inner, op.output_padding, op.groups, op.dilations)
        return activate(F.pad(y, crop) if any(crop) else y)

    return kernel


def _inputs_first(weight: Tensor, groups: int) -> Tensor:
    """(O, C / groups, *K) as torch's (C, O / groups, *K)."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1).contiguous()


def _linear(op: ops.Linear, constants: Sequence[Tensor | None]) -> Kernel:
    activate = clamped(op.clamp)
    if op.dynamic:
        return lambda given, bindings: activate(F.linear(_rows_in_8_bits(given[0]), *given[1:]))
    return lambda given, bindings: activate(F.linear(*given))


def _rows_in_8_bits(x: Tensor) -> Tensor:
    """``x`` (..., K), each row rounded as the runtime rounds it; gradients pass as if nothing was rounded."""
    low, high = x.detach().amin(-1, keepdim=True).clamp_max(0), x.detach().amax(-1, keepdim=True).clamp_min(0)
    scale = (high / 255 - low / 255).clamp_min(2.0**-100)
    zero_point = (-low / scale).round().clamp_max(255)
    rounded = torch.clamp((x.detach() / scale).round(), -zero_point, 255 - zero_point) * scale
    return x + (rounded - x.detach()) if x.requires_grad else rounded


def _matmul(op: ops.MatMul, constants: Sequence[Tensor | None]) -> Kernel:
    activate = clamped(op.clamp)
    return lambda given, bindings: activate(torch.matmul(given[0], given[1]))


def _batch_norm(op: ops.BatchNorm, constants: Sequence[Tensor | None]) -> Kernel:
    activate = clamped(op.clamp)

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        x, gamma, beta, mean, variance = given
        return activate(F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, op.eps))

    return kernel


_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "min": torch.minimum, "max": torch.maximum,
}  # fmt: skip


def _binary(op: ops.Binary, constants: Sequence[Tensor | None]) -> Kernel:
    function, activate = _BINARY[op.fn], clamped(op.clamp)
    return lambda given, bindings: activate(function(given[0], given[1]))


def _pointwise(op: ops.Pointwise, constants: Sequence[Tensor | None]) -> Kernel:
    program = compile_program(op.program)

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        if len(given) == 1:
            return program(given[0], None)
        x, parameter = given
        behind = x.dim() - 1 - (op.axis or 0)
        return program(x, parameter.reshape(-1, *[1] * behind))

    return kernel


def _concat(op: ops.Concat, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: torch.cat(given, op.axis)


def _slice(op: ops.Slice, constants: Sequence[Tensor | None]) -> Kernel:
    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        bounds = slice_bounds(op, given[0].shape[op.axis], bindings)
        return given[0][(slice(None),) * op.axis + (slice(*bounds),)]

    return kernel


def _reshape(op: ops.Reshape, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: given[0].reshape([evaluate(dim, bindings) for dim in op.shape])


def _transpose(op: ops.Transpose, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: given[0].permute(op.permutation)


def _expand(op: ops.Expand, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: given[0].expand([evaluate(dim, bindings) for dim in op.shape])


def _pad(op: ops.Pad, constants: Sequence[Tensor | None]) -> Kernel:
    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        begin = [evaluate(dim, bindings) for dim in op.begin]
        end = [evaluate(dim, bindings) for dim in op.end]
        if op.mode == "constant":
            return F.pad(given[0], _spatial(begin, end), "constant", op.value)
        # These modes take the trailing axes only.
        first = next(axis for axis in range(len(begin)) if begin[axis] or end[axis])
        return F.pad(given[0], _spatial(begin[first:], end[first:]), op.mode)

    return kernel


def _max_pool(op: ops.MaxPool, constants: Sequence[Tensor | None]) -> Kernel:
    function = (F.max_pool1d, F.max_pool2d)[len(op.kernel) - 1]
    # torch pads both sides alike, and by no more than half the window.
    direct = op.pads_begin == op.pads_end
    extra = _spatial(op.pads_begin, op.pads_end)

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        if direct:
            return function(given[0], op.kernel, op.strides, op.pads_begin, op.dilations, op.ceil_mode)
        x = F.pad(given[0], extra, "constant", -math.inf)
        return function(x, op.kernel, op.strides, 0, op.dilations, op.ceil_mode)

    return kernel


def _average_pool(op: ops.AveragePool, constants: Sequence[Tensor | None]) -> Kernel:
    pads, rest = op.pads_begin, (op.ceil_mode, op.count_include_pad)
    if len(op.kernel) == 2:
        return lambda given, bindings: F.avg_pool2d(given[0], op.kernel, op.strides, pads, *rest, op.divisor)
    return lambda given, bindings: F.avg_pool1d(given[0], op.kernel, op.strides, pads, *rest)


_ADAPTIVE: dict[tuple[str, int], Callable[..., Tensor]] = {
    ("average", 1): F.adaptive_avg_pool1d, ("average", 2): F.adaptive_avg_pool2d,
    ("max", 1): F.adaptive_max_pool1d, ("max", 2): F.adaptive_max_pool2d,
}  # fmt: skip


def _adaptive_pool(op: ops.AdaptivePool, constants: Sequence[Tensor | None]) -> Kernel:
    function = _ADAPTIVE[op.fn, len(op.output_size)]
    return lambda given, bindings: function(given[0], [evaluate(dim, bindings) for dim in op.output_size])


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin,
}  # fmt: skip


def _reduce(op: ops.Reduce, constants: Sequence[Tensor | None]) -> Kernel:
    function = _REDUCE[op.fn]
    return lambda given, bindings: function(given[0], dim=op.axes, keepdim=op.keepdims)


def _resize(op: ops.Resize, constants: Sequence[Tensor | None]) -> Kernel:
    axes = len(op.size if op.size is not None else op.scale or ())
    mode = {1: "linear", 2: "bilinear"}[axes] if op.mode == "linear" else op.mode
    align = op.align_corners if op.mode == "linear" else None

    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        size = None if op.size is None else [evaluate(dim, bindings) for dim in op.size]
        scale = None if op.scale is None else list(op.scale)
        return F.interpolate(given[0], size, scale, mode, align)

    return kernel


def _softmax(op: ops.Softmax, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: torch.softmax(given[0], op.axis)


def _layer_norm(op: ops.LayerNorm, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: F.layer_norm(given[0], given[1].shape, given[1], given[2], op.eps)


def _group_norm(op: ops.GroupNorm, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: F.group_norm(given[0], op.groups, given[1], given[2], op.eps)


def _from_the_front(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


def _gather(op: ops.Gather, constants: Sequence[Tensor | None]) -> Kernel:
    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        x, indices = given
        taken = x.index_select(op.axis, _from_the_front(indices.reshape(-1).long(), x.shape[op.axis]))
        return taken.reshape(*x.shape[: op.axis], *indices.shape, *x.shape[op.axis + 1 :])

    return kernel


def _argmax(op: ops.ArgMax, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: torch.argmax(given[0], op.axis, op.keepdims)


def _gather_elements(op: ops.GatherElements, constants: Sequence[Tensor | None]) -> Kernel:
    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        x, indices = given
        shape = (*x.shape[: op.axis], indices.shape[op.axis], *x.shape[op.axis + 1 :])
        return x.gather(op.axis, _from_the_front(indices, x.shape[op.axis]).expand(shape))

    return kernel


def _top_k(op: ops.TopK, constants: Sequence[Tensor | None]) -> Kernel:
    def kernel(given: list[Tensor], bindings: Bindings) -> Tensor:
        order = torch.sort(given[0], dim=op.axis, descending=op.largest, stable=True).indices
        return order.narrow(op.axis, 0, evaluate(op.count, bindings))

    return kernel


def _cum_sum(op: ops.CumSum, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: given[0].cumsum(op.axis)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, torch.div(a, torch.where(b == 0, 1, b), rounding_mode="floor"))


_INTEGERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "min": torch.minimum, "max": torch.maximum, "div": _divided,
    "mod": lambda a, b: torch.where(b == 0, 0, a - b * _divided(a, b)),
}  # fmt: skip


def _int_binary(op: ops.IntBinary, constants: Sequence[Tensor | None]) -> Kernel:
    function = _INTEGERS[op.fn]
    return lambda given, bindings: function(*given)


def _real(op: ops.Real, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: given[0].to(torch.float32)


def _grid_sample(op: ops.GridSample, constants: Sequence[Tensor | None]) -> Kernel:
    return lambda given, bindings: F.grid_sample(given[0], given[1], op.mode, op.padding, op.align_corners)


def _requantize(op: ops.Requantize, constants: Sequence[Tensor | None]) -> Kernel:
    # A view, so that it has a gradient of its own.
    return lambda given, bindings: given[0].view_as(given[0])


def dequantizer(given: TensorType) -> Kernel:
    """What turns integers of type ``given`` into the reals they stand for."""
    if given.quantization is None:
        raise TypeError(f"{given.dtype} without a scale stands for no reals")
    scale, zero = given.quantization.scale[0], given.quantization.zero_point
    return lambda values, bindings: values[0].to(torch.float32).sub_(zero).mul_(scale)


KERNELS: dict[type, Factory] = {
    ops.Conv: _conv, ops.ConvTranspose: _conv_transpose, ops.Linear: _linear, ops.MatMul: _matmul,
    ops.BatchNorm: _batch_norm, ops.Binary: _binary, ops.Pointwise: _pointwise, ops.Concat: _concat,
    ops.Slice: _slice, ops.Reshape: _reshape, ops.Transpose: _transpose, ops.Expand: _expand, ops.Pad: _pad,
    ops.MaxPool: _max_pool, ops.AveragePool: _average_pool, ops.AdaptivePool: _adaptive_pool,
    ops.Reduce: _reduce, ops.Resize: _resize, ops.Softmax: _softmax, ops.LayerNorm: _layer_norm,
    ops.GroupNorm: _group_norm, ops.Gather: _gather, ops.ArgMax: _argmax, ops.Requantize: _requantize,
    ops.GatherElements: _gather_elements, ops.TopK: _top_k, ops.CumSum: _cum_sum, ops.IntBinary: _int_binary,
    ops.Real: _real, ops.GridSample: _grid_sample,
}  # fmt: skip
