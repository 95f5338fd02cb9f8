"""Steps whose places are computed: elements by index, the largest ones, running sums, integers, sampled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant.graph.ops import IntFunction
from kvant.runtime.arithmetic import Target

Pair = tuple[int, int]
# Positions between two pixels that an interpolation tells apart, and so the sum of its weights along an axis.
PHASES = 2048


@dataclass(frozen=True)
class Pick:
    """An element for each index: out[i, j, ...] = x[i * strides_x[0] + ... + step * index].

    The index is that at i * strides_indices[0] + ..., strides in elements; it is below ``size`` and counts from the end
    where it is negative. Inputs x, indices (int64).
    """

    shape: tuple[int, ...]
    strides_x: tuple[int, ...]
    strides_indices: tuple[int, ...]
    size: int
    step: int


@dataclass(frozen=True)
class TopK:
    """Positions (int64) of the ``count`` largest, or smallest, elements along the middle of (outer, size, inner)."""

    outer: int
    size: int
    inner: int
    count: int
    largest: bool


@dataclass(frozen=True)
class CumSum:
    """Running sums along the middle of (outer, size, inner), requantized; of int64 where there is no target."""

    outer: int
    size: int
    inner: int
    zero_point: int = 0
    multiplier: float = 1.0
    target: Target | None = None


@dataclass(frozen=True)
class IntBinary:
    """Element-wise function of two int64 tensors; ``shape`` and strides as those of ``Binary``."""

    fn: IntFunction
    shape: tuple[int, ...]
    strides_a: tuple[int, ...]
    strides_b: tuple[int, ...]


@dataclass(frozen=True)
class Real:
    """int64 -> the nearest float32, ties to even."""


@dataclass(frozen=True, eq=False)
class GridSample:
    """Images (batch, H, W, channels) at ``points`` places each, grid (batch, points, column and row).

    Attributes:
        scale, grid_zero: of the grid.
        first: the first pixel that counts, from the one at or before the place.
        weights: (phases, pixels along an axis), int32, by how far the place is behind that pixel.
    """

    batch: int
    size: Pair
    channels: int
    points: int
    scale: float
    grid_zero: int
    align_corners: bool
    padding: Literal["zeros", "border", "reflection"]
    first: int
    weights: npt.NDArray[np.int32]
    zero_point: int
    multiplier: float
    target: Target
