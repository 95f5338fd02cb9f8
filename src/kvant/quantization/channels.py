"""Statistics of each channel of a tensor: extremes of all values, sums of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Values that torch compares at once, and how many side by side are enough.
_VECTOR, _VECTORS = 32, 4096
# Positions of one sample that enter means and moments; more of a large map tell little that is new.
MOMENT_POSITIONS = 256


@dataclass
class Channels:
    """Statistics of each channel of one tensor, float64 (C): extremes of all values, sums and sums of squares of many.

    Attributes:
        low, high: the smallest and the largest value.
        sums, squares: sums of ``count`` values of each channel, and of their squares.
    """

    low: np.ndarray
    high: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    count: int = 0

    @classmethod
    def unseen(cls, count: int) -> Channels:
        """Statistics of ``count`` channels before the first value."""
        return cls(np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count), np.zeros(count))

    def mean(self) -> np.ndarray:
        """float64 (C)."""
        return self.sums / max(self.count, 1)

    def moment(self) -> np.ndarray:
        """float64 (C): mean of the squares."""
        return self.squares / max(self.count, 1)

    def rms(self) -> np.ndarray:
        """float64 (C): root mean square."""
        return np.asarray(np.sqrt(np.maximum(self.moment(), 0.0)))

    def variance(self) -> np.ndarray:
        """float64 (C)."""
        return np.asarray(np.maximum(self.moment() - self.mean() ** 2, 0.0))

    def largest(self) -> np.ndarray:
        """float64 (C): largest magnitude."""
        return np.asarray(np.maximum(self.high, -self.low))

    @classmethod
    def of(cls, values: torch.Tensor, axis: int, parts: Sequence[Channels] = ()) -> Channels:
        """Statistics of a tensor whose channels lie along ``axis``, and ``parts``: of those that it was joined from."""
        some, values = (each.movedim(axis, -1) for each in (_some_positions(values, axis), values))
        others = list(range(values.dim() - 1))
        if not others:
            some, values, others = some[None], values[None], [0]
        rows = some.reshape(-1, some.shape[-1])  # sums of rows side by side take a fraction of the time
        sums, squares = (each.sum(0).numpy().astype(np.float64) for each in (rows, rows.square()))
        if parts:
            low, high = (np.concatenate(ends) for ends in zip(*((part.low, part.high) for part in parts), strict=True))
        else:
            low, high = (each.numpy() for each in _ends(values, others))
        return cls(low, high, sums, squares, some.numel() // some.shape[-1])

    def add(self, other: Channels) -> None:
        """Take in what was seen of the same channels elsewhere."""
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.sums, self.squares = self.sums + other.sums, self.squares + other.squares
        self.count += other.count

    def part(self, offset: int, count: int) -> Channels:
        """The statistics of ``count`` channels from ``offset`` on."""
        kept = slice(offset, offset + count)
        return Channels(self.low[kept], self.high[kept], self.sums[kept], self.squares[kept], self.count)

    def moved(self, offset: np.ndarray, divisor: np.ndarray) -> Channels:
        """The statistics of the tensor (x - offset) / divisor, both (C)."""
        offset, divisor = offset.astype(np.float64), divisor.astype(np.float64)
        return Channels(
            (self.low - offset) / divisor,
            (self.high - offset) / divisor,
            (self.sums - self.count * offset) / divisor,
            (self.squares - 2 * offset * self.sums + self.count * offset**2) / divisor**2,
            self.count,
        )


def _ends(values: torch.Tensor, others: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest of all values along the axes ``others``, for each channel of the last axis.

    Two passes, for aminmax along axes takes twice as long. Channels that fill no whole vectors, such as 24 or 921, take
    up to twenty times as long as others; several positions side by side do fill them.
    """
    channels = values.shape[-1]
    together = _VECTORS // channels
    if channels % _VECTOR == 0 or together < 2 or not values.is_contiguous():
        return values.amin(others), values.amax(others)
    rows = values.reshape(-1, channels)
    whole = rows.shape[0] // together * together
    wide, rest = rows[:whole].reshape(-1, together * channels), rows[whole:]
    parts = [each for each in (wide, rest) if each.shape[0]]
    lows, highs = ([end(each, 0).reshape(-1, channels) for each in parts] for end in (torch.amin, torch.amax))
    return torch.cat(lows).amin(0), torch.cat(highs).amax(0)


def _some_positions(values: torch.Tensor, axis: int) -> torch.Tensor:
    """An even grid of positions of a map (N, C, H, W); other tensors whole."""
    if values.dim() != 4 or axis != 1:
        return values
    step = max(math.isqrt(values[0, 0].numel() // MOMENT_POSITIONS), 1)
    return values[:, :, ::step, ::step]
