"""Maximum, average and adaptive pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from kvant.capture.builder import Activation, Builder, Operand, Size, ints, need_activation
from kvant.capture.operators.volumes import planes_then_depth
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
        pooled = _windows(t, x, op)
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
        if rank == 3 and divisor_override is not None:
            raise UnsupportedError("a divisor of its own over three axes")
        op = ops.AveragePool(kernel, strides, pads, pads, ceil_mode, count_include_pad, divisor_override)
        return _windows(t, x, op)

    handles(f"avg_pool{rank}d.default")(handler)


def _windows(t: Builder, x: Activation, op: ops.MaxPool | ops.AveragePool) -> Activation:
    if len(op.kernel) < 3:
        return t.emit(op, x)
    names = ("kernel", "strides", "pads_begin", "pads_end", "dilations")
    fields = {name: getattr(op, name) for name in names if hasattr(op, name)}
    plane = replace(op, **{name: values[1:] for name, values in fields.items()})
    # Along the second axis a window of one element.
    line = replace(op, **{name: (values[0], int("pads" not in name)) for name, values in fields.items()})
    return planes_then_depth(t, x, plane, line)


def _adaptive_pool(rank: int, fn: Literal["average", "max"], *operators: str) -> None:
    def handler(t: Builder, x: Operand, output_size: Sequence[Size]) -> Activation | list[Activation | None]:
        pooled = _adaptive(t, _pooled(x, rank), fn, rank)
        return [pooled, None] if fn == "max" else pooled

    handles(*operators)(handler)


def _adaptive(t: Builder, x: Activation, fn: Literal["average", "max"], rank: int) -> Activation:
    if all(isinstance(size, int) and size == 1 for size in t.shape[-rank:]):
        axes = tuple(range(x.rank - rank, x.rank))
        return t.emit(ops.Reduce("mean" if fn == "average" else "max", axes, keepdims=True), x)
    if rank == 3:
        *_, depth, height, width = t.shape
        plane, line = ((height, width), (depth, height * width))
        return planes_then_depth(t, x, ops.AdaptivePool(fn, t.dims(plane)), ops.AdaptivePool(fn, t.dims(line)))
    return t.emit(ops.AdaptivePool(fn, t.dims(t.shape[-rank:])), x)


for _rank in (1, 2, 3):
    _max_pool(_rank, pairs=False)
    _max_pool(_rank, pairs=True)
    _average_pool(_rank)
_adaptive_pool(1, "average", "adaptive_avg_pool1d.default")
_adaptive_pool(2, "average", "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
_adaptive_pool(3, "average", "adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default")
_adaptive_pool(1, "max", "adaptive_max_pool1d.default")
_adaptive_pool(2, "max", "adaptive_max_pool2d.default")
_adaptive_pool(3, "max", "adaptive_max_pool3d.default")
