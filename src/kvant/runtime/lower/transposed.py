"""Transposed convolution as a convolution of its input: of what surrounds a pixel, all results that the pixel grows to.

Along one axis result ``stride * j + r`` is the sum of ``x[j + d] * w[k]`` over the taps with ``dilation * k = r + pad -
stride * d``. For all ``r`` together, ``d`` takes a few neighbouring values: that is a kernel over the input, with
``stride`` times as many outputs, of which a copy makes rows and columns. Pixels ``stride`` apart with zeros between
them would cost more products, most of them by 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from kvant.graph import ops
from kvant.runtime.steps import Copy, Pair, Weights


@dataclass(frozen=True)
class Axis:
    """One axis of a transposed convolution.

    Attributes:
        stride: results that each input pixel grows to.
        first: the smallest ``d``, not above 0.
        size: how many ``d`` there are.
        taps: of each tap of the kernel ``r`` and ``d - first``.
    """

    stride: int
    first: int
    size: int
    taps: tuple[Pair, ...]


def axes_of(op: ops.ConvTranspose, kernel: Pair) -> tuple[Axis, Axis] | None:
    """Both axes (a missing one is a height of 1); None where there are groups, or pixels that grow to a part only."""
    lifted = 2 - len(op.strides)
    begin, end, more = (
        (*[0] * lifted, *values) for values in (op.pads_begin, op.pads_end, op.output_padding)
    )  # fmt: skip
    strides, dilations = ((*[1] * lifted, *values) for values in (op.strides, op.dilations))
    found = []
    for taps, stride, dilation, pad, pad_end, extra in zip(kernel, strides, dilations, begin, end, more, strict=True):
        grown = dilation * (taps - 1) + 1 + extra - pad - pad_end  # of one pixel
        places = [divmod(tap * dilation - pad, stride) for tap in range(taps)]
        around = [-whole for whole, _ in places]
        first = min(*around, 0)
        if grown % stride or op.groups > 1:
            return None
        found.append(
            Axis(
                stride,
                first,
                max(*around, 0) - first + 1,
                tuple((rest, d - first) for (_, rest), d in zip(places, around, strict=True)),
            )
        )
    return found[0], found[1]


def grown_weights(weights: Weights, axes: tuple[Axis, Axis]) -> Weights:
    """Weights of the convolution, outputs in order of row, column and output of a result."""
    rows, columns = axes
    values = weights.values if weights.values.ndim == 4 else weights.values[:, :, None]
    outputs, channels = values.shape[:2]
    grown = np.zeros((rows.stride, columns.stride, outputs, channels, rows.size, columns.size), values.dtype)
    for (i, (row, down)), (j, (column, across)) in product(enumerate(rows.taps), enumerate(columns.taps)):
        grown[row, column, :, :, down, across] = values[:, :, i, j]
    times = rows.stride * columns.stride
    return replace(
        weights,
        values=grown.reshape(-1, channels, rows.size, columns.size),
        bias=np.tile(weights.bias, times),
        multipliers=np.tile(weights.multipliers, times),
    )


def to_rows_and_columns(batch: int, size: Pair, axes: tuple[Axis, Axis], outputs: int) -> Copy:
    """The copy from (batch, rows, columns, row, column and output of a result) to (batch, rows, columns, outputs)."""
    (height, width), (down, across) = size, (axes[0].stride, axes[1].stride)
    run = across * outputs
    pixel = down * run
    shape, strides = (batch * height, down, width, run), (width * pixel, run, pixel, 1)
    return Copy(shape, strides, 0)
