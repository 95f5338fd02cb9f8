"""Maximum, average and adaptive pooling over one or two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kvant.capture.builder import Activation, Builder, Operand, Size, ints, need_activation
from kvant.capture.operators.shape import reshape_to
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


def _pooled(x: Operand, rank: int) -> Activation:
    x = need_activation(x, "the operand")
    if x.rank != rank + 2:
        raise UnsupportedError(f"an input without a batch axis, of shape {tuple(x.shape)}")
    return x


def _max_pool(rank: int, pairs: bool) -> None:
    def handler(
        t: Builder,
        x: Operand,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
    ) -> Activation | list[Activation | None]:
        x = _pooled(x, rank)
        kernel, pads = ints(kernel_size, rank), ints(padding, rank)
        op = ops.MaxPool(kernel, ints(stride or kernel, rank), pads, pads, ints(dilation, rank), ceil_mode)
        pooled = t.emit(op, x)
        # The indices, which only unpooling reads, are not available: whoever takes them gets None and is refused.
        return [pooled, None] if pairs else pooled

    suffix = "_with_indices" if pairs else ""
    handles(f"max_pool{rank}d{suffix}.default")(handler)


def _average_pool(rank: int) -> None:
    def handler(
        t: Builder,
        x: Operand,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None = None,
    ) -> Activation:
        x = _pooled(x, rank)
        kernel, pads = ints(kernel_size, rank), ints(padding, rank)
        strides = ints(stride or kernel, rank)
        return t.emit(ops.AveragePool(kernel, strides, pads, pads, ceil_mode, count_include_pad, divisor_override), x)

    handles(f"avg_pool{rank}d.default")(handler)


@handles("avg_pool3d.default")
def avg_pool3d(
    t: Builder,
    x: Operand,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Operand:
    """Over the first of three axes alone, which is what local response normalization does: two axes are enough."""
    x = _pooled(x, 3)
    kernel, pads = ints(kernel_size, 3), ints(padding, 3)
    strides = ints(stride or kernel, 3)
    if kernel[1:] != (1, 1) or strides[1:] != (1, 1) or any(pads):
        raise UnsupportedError("average pooling over three axes")
    *lead, height, width = x.shape
    flat = need_activation(reshape_to(t, x, (*lead, height * width)), "the operand")
    pool = ops.AveragePool(kernel[:2], strides[:2], (0, 0), (0, 0), ceil_mode, count_include_pad, divisor_override)
    pooled = t.emit(pool, flat, shape=(*t.shape[:-2], height * width))
    return reshape_to(t, pooled, t.shape)


def _adaptive_pool(rank: int, fn: Literal["average", "max"], *operators: str) -> None:
    def handler(t: Builder, x: Operand, output_size: Sequence[Size]) -> Activation | list[Activation | None]:
        pooled = _adaptive(t, _pooled(x, rank), fn, rank)
        return [pooled, None] if fn == "max" else pooled

    handles(*operators)(handler)


def _adaptive(t: Builder, x: Activation, fn: Literal["average", "max"], rank: int) -> Activation:
    if all(isinstance(size, int) and size == 1 for size in t.shape[-rank:]):
        axes = tuple(range(x.rank - rank, x.rank))
        return t.emit(ops.Reduce("mean" if fn == "average" else "max", axes, keepdims=True), x)
    return t.emit(ops.AdaptivePool(fn, t.dims(t.shape[-rank:])), x)


for _rank in (1, 2):
    _max_pool(_rank, pairs=False)
    _max_pool(_rank, pairs=True)
    _average_pool(_rank)
_adaptive_pool(1, "average", "adaptive_avg_pool1d.default")
_adaptive_pool(2, "average", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
_adaptive_pool(1, "max", "adaptive_max_pool1d.default")
_adaptive_pool(2, "max", "adaptive_max_pool2d.default")
