"""Padding and cropping in all of torch's modes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kvant.capture.builder import Activation, Builder, Operand, Size, need_activation
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import Dim, ops

_PAD_MODES = {
    "reflection_pad1d": "reflect",
    "reflection_pad2d": "reflect",
    "replication_pad1d": "replicate",
    "replication_pad2d": "replicate",
    "_pad_circular": "circular",
}


def pad_axes(t: Builder, x: Operand, pad: Sequence[Size], mode: str, value: float) -> Operand:
    """``x`` padded by pairs (before, after), the last axis first, as ``torch.nn.functional.pad`` takes them."""
    x = need_activation(x, "the operand")
    if all(isinstance(size, int) and size == 0 for size in pad):
        return x
    begin: list[Dim] = [0] * x.rank
    end: list[Dim] = [0] * x.rank
    for index in range(len(pad) // 2):
        begin[x.rank - 1 - index] = t.dim(pad[2 * index])
        end[x.rank - 1 - index] = t.dim(pad[2 * index + 1])
    if not math.isfinite(value):
        raise UnsupportedError(f"padding with {value}")
    return t.emit(ops.Pad(tuple(begin), tuple(end), mode, value), x)  # type: ignore[arg-type]


def with_zeros(t: Builder, x: Activation, around: Mapping[int, tuple[int, int]]) -> Activation:
    """``x`` with so many zeros before and after, by axis; negative numbers cut off."""
    if not any(map(any, around.values())):
        return x
    begin, end = (tuple(around.get(axis, (0, 0))[side] for axis in range(x.rank)) for side in range(2))
    shape = tuple(before + size + after for before, size, after in zip(begin, x.shape, end, strict=True))
    return t.emit(ops.Pad(begin, end), x, shape=shape)


@handles("pad.default")
def pad(t: Builder, x: Operand, pad: Sequence[Size], mode: str, value: float | None) -> Operand:
    return pad_axes(t, x, pad, mode, float(value or 0.0))


@handles("constant_pad_nd.default")
def constant_pad(t: Builder, x: Operand, pad: Sequence[Size], value: float) -> Operand:
    return pad_axes(t, x, pad, "constant", float(value))


def _register_pad(operator: str, mode: str) -> None:
    def handler(t: Builder, x: Operand, padding: Sequence[Size] | None = None, pad: Sequence[Size] = ()) -> Operand:
        return pad_axes(t, x, pad if padding is None else padding, mode, 0.0)

    handles(f"{operator}.default")(handler)


for _operator, _mode in _PAD_MODES.items():
    _register_pad(_operator, _mode)
