"""What is chosen by index or by size, running sums, and images at computed places."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.operators.indexing import int64_indices
from kvant.capture.operators.shape import expand, same_shape, slice_axis
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops

# Modes and paddings by their numbers in ATen's operators.
_MODES: tuple[Literal["bilinear", "nearest", "bicubic"], ...] = ("bilinear", "nearest", "bicubic")
_PADDINGS: tuple[Literal["zeros", "border", "reflection"], ...] = ("zeros", "border", "reflection")


@handles("grid_sampler_2d.default", "grid_sampler.default")
def grid_sample(
    t: Builder, x: Operand, grid: Operand, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Activation:
    if len(x.shape) != 4:
        raise UnsupportedError("sampling of volumes; images (N, C, H, W) are sampled")
    op = ops.GridSample(_MODES[interpolation_mode], _PADDINGS[padding_mode], align_corners)
    return t.emit(op, x, grid)


@handles("gather.default")
def gather(t: Builder, x: Operand, dim: int, index: Operand) -> Operand:
    if isinstance(x, Tensor) and bool((x == x.reshape(-1)[:1]).all()):
        # All elements are the same: no index matters.
        return expand(t, x.reshape(-1)[:1].reshape([1] * len(t.shape)))
    axis = dim % len(x.shape)
    for other, size in enumerate(index.shape):
        if other != axis and not same_shape([x.shape[other]], [size]):
            x = _first(t, x, other, size)
    return _pick(t, x, axis, int64_indices(_unspread(t, index, axis), x.shape[axis]))


def _first(t: Builder, x: Operand, axis: int, size: Size) -> Operand:
    if isinstance(x, Tensor) and isinstance(size, int):
        return x.narrow(axis, 0, size)
    return slice_axis(t, x, axis, 0, t.dim(size), size)


def _pick(t: Builder, x: Operand, axis: int, index: Operand) -> Activation:
    shape = (*x.shape[:axis], index.shape[axis], *x.shape[axis + 1 :])
    return t.emit(ops.GatherElements(axis), x, index, shape=shape)


def _unspread(t: Builder, index: Operand, axis: int) -> Operand:
    """``index`` with one entry along each axis but ``axis`` along which it repeats itself."""
    if isinstance(index, Activation):
        return t.spread.get(index.name, index)
    for other in range(index.dim()):
        first = index.narrow(other, 0, 1)
        if other != axis and torch.equal(first.expand_as(index), index):
            index = first
    return index


def _best(t: Builder, x: Activation, dim: int, count: Size, largest: bool) -> Activation:
    if x.dtype != torch.float32:
        raise UnsupportedError(f"a choice by size among {str(x.dtype).removeprefix('torch.')}")
    axis = x.axis(dim)
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return t.emit(ops.TopK(axis, t.dim(count), largest), x, shape=shape)


@handles("topk.default")
def top_k(t: Builder, x: Activation, k: Size, dim: int, largest: bool) -> list[Activation]:
    places = _best(t, x, dim, k, largest)
    return [_pick(t, x, x.axis(dim), places), places]


@handles("sort.default", "sort.stable")
def sort(t: Builder, x: Activation, dim: int = -1, descending: bool = False) -> list[Activation]:
    return top_k(t, x, x.shape[x.axis(dim)], dim, descending)


@handles("argsort.default", "argsort.stable")
def argsort(t: Builder, x: Activation, dim: int = -1, descending: bool = False) -> Activation:
    return _best(t, x, dim, x.shape[x.axis(dim)], descending)


@handles("cumsum.default")
def cum_sum(t: Builder, x: Operand, dim: int, dtype: torch.dtype | None) -> Activation:
    x = need_activation(x, "the operand")
    if x.dtype == torch.bool:
        x = t.counted(x)
    sums = t.emit(ops.CumSum(x.axis(dim)), x, shape=x.shape)
    return t.real(sums) if sums.dtype == torch.int64 and t.dtype == torch.float32 else sums
