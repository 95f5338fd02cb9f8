"""Windows and patches side by side (``Tensor.unfold``, ``F.unfold``), and patches joined to a map (``F.fold``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvant.capture.builder import Activation, Builder, Operand, Size, ints, need_activation
from kvant.capture.operators.indexing import take
from kvant.capture.operators.padding import with_zeros
from kvant.capture.operators.shape import permute_to, reshape_to, slice_axis
from kvant.capture.registry import UnsupportedError, handles
from kvant.graph import ops


class Window(NamedTuple):
    """What ``F.unfold`` and ``F.fold`` go by, for both axes."""

    kernel: tuple[int, ...]
    gaps: tuple[int, ...]
    pads: tuple[int, ...]
    steps: tuple[int, ...]

    def tiles(self, height: Size, width: Size) -> bool:
        """Whether its patches lie side by side and cover the map."""
        apart = self.kernel == self.steps and self.gaps == (1, 1) and not any(self.pads)
        return apart and _divides(height, self.kernel[0]) and _divides(width, self.kernel[1])


@handles("im2col.default", "col2im.default")
def patches(
    t: Builder,
    x: Operand,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Operand:
    x = need_activation(x, "the operand")
    window = Window(*(ints(value, 2) for value in (kernel_size, dilation, padding, stride)))
    joins = len(t.shape) > x.rank
    if x.rank != (3 if joins else 4):
        raise UnsupportedError(f"an input without a batch axis, of shape {tuple(x.shape)}")
    return _joined(t, x, window) if joins else _cut(t, x, window)


def _cut(t: Builder, x: Activation, window: Window) -> Operand:
    """(N, C, H, W) as (N, C * kh * kw, patches): a strided slice for each place of the kernel."""
    kernel, gaps, pads, steps = window
    x = with_zeros(t, x, {2 + axis: (pad, pad) for axis, pad in enumerate(pads)})
    batch, channels, height, width = x.shape
    rows, columns = (
        (x.shape[2 + axis] - gaps[axis] * (kernel[axis] - 1) - 1) // steps[axis] + 1 for axis in range(2)
    )  # fmt: skip
    if window.tiles(height, width):
        split = reshape_to(t, x, (batch, channels, rows, kernel[0], columns, kernel[1]))
        return reshape_to(t, permute_to(t, split, (0, 1, 3, 5, 2, 4)), t.shape)
    read: list[Operand] = []
    for row in range(kernel[0]):
        part = _every(t, x, 2, row * gaps[0], steps[0], rows)
        for column in range(kernel[1]):
            cut = _every(t, part, 3, column * gaps[1], steps[1], columns)
            read.append(reshape_to(t, cut, (batch, channels, 1, rows, columns)))
    joined = t.emit(ops.Concat(2), *read, shape=(batch, channels, kernel[0] * kernel[1], rows, columns))
    return reshape_to(t, joined, t.shape)


def _joined(t: Builder, x: Activation, window: Window) -> Operand:
    """(N, C * kh * kw, patches) as (N, C, H, W)."""
    *lead, height, width = t.shape
    if not window.tiles(height, width):
        raise UnsupportedError("a sum of patches that overlap, or leave gaps", static=True)
    kernel = window.kernel
    split = reshape_to(t, x, (*lead, *kernel, height // kernel[0], width // kernel[1]))
    return reshape_to(t, permute_to(t, split, (0, 1, 4, 2, 5, 3)), t.shape)


def _divides(size: Size, by: int) -> bool:
    return by == 1 or (isinstance(size, int) and size % by == 0)


def _every(t: Builder, x: Activation, axis: int, first: int, step: int, count: Size) -> Activation:
    return slice_axis(t, x, axis, first, t.dim(first + (count - 1) * step + 1), count, step)


@handles("unfold.default")
def unfold(t: Builder, x: Activation, dimension: int, size: int, step: int) -> Operand:
    """Windows along an axis, side by side along it, their elements along a new last axis."""
    axis = x.axis(dimension)
    count = t.shape[axis]
    if step == size:
        x = slice_axis(t, x, axis, 0, t.dim(count * size), count * size)
    else:
        starts = torch.arange(0, x.fixed(axis) - size + 1, step)
        x = take(t, x, axis, (starts[:, None] + torch.arange(size)).reshape(-1))
    split = reshape_to(t, x, (*x.shape[:axis], count, size, *x.shape[axis + 1 :]))
    order = [*range(axis + 1), *range(axis + 2, len(split.shape)), axis + 1]
    return permute_to(t, split, order)
