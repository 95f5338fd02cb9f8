"""Batch, layer, group, instance and root-mean-square normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, need_activation, need_constant
from kvant.capture.operators.elementwise import binary
from kvant.capture.operators.reduction import reduce
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops
from kvant.graph.ops import Step


def _affine(weight: Operand | None, bias: Operand | None, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale and offset as constants: one and zero where a layer has none."""
    gamma = torch.ones(tuple(shape)) if weight is None else need_constant(weight, "the weight")
    beta = torch.zeros(tuple(shape)) if bias is None else need_constant(bias, "the bias")
    return gamma, beta


@handles("batch_norm.default")
def batch_norm(
    t: Builder,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    training: bool,
    eps: float,
) -> Activation:
    if training or running_mean is None or running_var is None:
        raise UnsupportedError("batch norm with the statistics of the batch at hand")
    mean, variance = need_constant(running_mean, "the mean"), need_constant(running_var, "the variance")
    gamma, beta = _affine(weight, bias, mean.shape)
    return t.emit(ops.BatchNorm(float(eps)), need_activation(x, "the operand"), gamma, beta, mean, variance)


@handles("_native_batch_norm_legit_no_training.default")
def native_batch_norm(
    t: Builder,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand,
    running_var: Operand,
    eps: float,
) -> list[Activation | None]:
    return [batch_norm(t, x, weight, bias, running_mean, running_var, False, eps), None, None]


@handles("layer_norm.default")
def layer_norm(
    t: Builder, x: Operand, normalized_shape: Sequence[int], weight: Operand | None, bias: Operand | None, eps: float
) -> Activation:
    if not all(isinstance(size, int) for size in normalized_shape):
        raise UnsupportedError("layer norm over a dynamic size", static=True)
    gamma, beta = _affine(weight, bias, normalized_shape)
    return t.emit(ops.LayerNorm(len(normalized_shape), float(eps)), need_activation(x, "the operand"), gamma, beta)


@handles("native_layer_norm.default")
def native_layer_norm(
    t: Builder, x: Operand, normalized_shape: Sequence[int], weight: Operand | None, bias: Operand | None, eps: float
) -> list[Activation | None]:
    return [layer_norm(t, x, normalized_shape, weight, bias, eps), None, None]


@handles("group_norm.default")
def group_norm(
    t: Builder, x: Operand, num_groups: int, weight: Operand | None, bias: Operand | None, eps: float
) -> Activation:
    x = need_activation(x, "the operand")
    gamma, beta = _affine(weight, bias, (x.fixed(1),))
    return t.emit(ops.GroupNorm(num_groups, float(eps)), x, gamma, beta)


@handles("native_group_norm.default")
def native_group_norm(
    t: Builder, x: Operand, weight: Operand | None, bias: Operand | None, group: int, eps: float
) -> list[Activation | None]:
    return [group_norm(t, x, group, weight, bias, eps), None, None]


@handles("instance_norm.default")
def instance_norm(
    t: Builder,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    use_input_stats: bool,
    eps: float,
) -> Activation:
    if not use_input_stats:
        return batch_norm(t, x, weight, bias, running_mean, running_var, False, eps)
    x = need_activation(x, "the operand")
    return group_norm(t, x, x.fixed(1), weight, bias, eps)


@handles("rms_norm.default")
def rms_norm(
    t: Builder, x: Operand, normalized_shape: Sequence[int], weight: Operand | None, eps: float | None
) -> Operand:
    x = need_activation(x, "the operand")
    epsilon = torch.finfo(torch.float32).eps if eps is None else float(eps)
    axes = tuple(range(x.rank - len(normalized_shape), x.rank))
    squares = reduce(t, t.pointwise(x, Step("square")), "mean", axes, True)
    factor = t.pointwise(squares, Step("const", epsilon), Step("add"), Step("rsqrt"))
    normalized = binary(t, "mul", x, factor)
    return normalized if weight is None else binary(t, "mul", normalized, weight)
