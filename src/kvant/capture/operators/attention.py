"""Softmax and scaled dot-product attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvant.capture.builder import MASKED, Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.elementwise import binary, where
from kvant.capture.operators.shape import swap
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops
from kvant.graph.ops import Step


@handles("softmax.int", "_softmax.default")
def softmax(t: Builder, x: Operand, dim: int) -> Activation:
    x = need_activation(x, "the operand")
    return t.emit(ops.Softmax(x.axis(dim)), x, shape=x.shape)


@handles("log_softmax.int", "_log_softmax.default")
def log_softmax(t: Builder, x: Operand, dim: int) -> Activation:
    """What lies between ``x`` and its maximum, less the logarithm of the sum of its exponentials.

    The logarithm of a softmax would have lost all that lies far below: integers that end at 1 make zeros of it.
    """
    x = need_activation(x, "the operand")
    axis = x.axis(dim)
    kept: tuple[Size, ...] = tuple(1 if at == axis else size for at, size in enumerate(x.shape))
    largest = t.emit(ops.Reduce("max", (axis,), keepdims=True), x, shape=kept)
    below = t.emit(ops.Binary("sub"), x, largest, shape=x.shape)
    total = t.emit(ops.Reduce("sum", (axis,), keepdims=True), t.pointwise(below, Step("exp")), shape=kept)
    return t.emit(ops.Binary("sub"), below, t.pointwise(total, Step("log")), shape=x.shape)


@handles("scaled_dot_product_attention.default")
def attention(
    t: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool = False,
) -> Activation:
    if dropout_p:
        raise UnsupportedError("dropout that is active in evaluation mode")
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        raise UnsupportedError("grouped-query attention")
    width = query.shape[-1]
    if not isinstance(width, int):
        raise UnsupportedError("attention over a dynamic number of features", static=True)
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    scores_shape: tuple[Size, ...] = (*query.shape[:-1], key.shape[-2])
    scores: Operand = t.emit(ops.MatMul(), query, swap(t, key, -1, -2), shape=scores_shape)
    scores = binary(t, "mul", scores, factor)
    mask = _causal(t, query, key) if is_causal else attn_mask
    if mask is not None and not _allows_all(mask):
        scores = binary(t, "add", scores, additive(t, mask))
    return t.emit(ops.MatMul(), softmax(t, scores, -1), value)


def _causal(t: Builder, query: Operand, key: Operand) -> Tensor:
    rows, columns = query.shape[-2], key.shape[-2]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise UnsupportedError("causal attention over a dynamic length", static=True)
    return torch.ones(rows, columns, dtype=torch.bool).tril()


def _allows_all(mask: Operand) -> bool:
    return isinstance(mask, Tensor) and mask.dtype == torch.bool and bool(mask.all())


def additive(t: Builder, mask: Operand) -> Operand:
    """A mask to be added before a softmax: a boolean one, True where attention is allowed, becomes 0 and ``MASKED``."""
    return where(t, mask, 0.0, MASKED) if mask.dtype == torch.bool else mask
