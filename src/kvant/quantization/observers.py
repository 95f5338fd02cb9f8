"""What calibration remembers of each activation, in constant memory."""

from __future__ import annotations

import math

import numpy as np
import torch

from kvant.capture import in_memory_order

# Bins on each side of zero. A range of uint8 spends 256 levels on at most all of them, so a level has 16 or more.
HALF_BINS = 4096
# Values that one sample adds to a histogram; more of a large map tell little that is new.
HISTOGRAM_VALUES = 1 << 13
_MIN_EXPONENT = -100


class Histogram:
    """Counts of values in equal bins whose width is a power of two and whose edges include zero.

    When a value falls outside, the width doubles and bins merge in pairs. Merging is exact, so the result does not
    depend on the order in which batches arrive.

    Attributes:
        exponent: bins are ``2 ** exponent`` wide.
        counts: int64 (2 * HALF_BINS); bin i holds values in [(i - HALF_BINS), (i - HALF_BINS + 1)) * width.
        low, high: exact extremes of all values seen, not only of those counted.
    """

    def __init__(self) -> None:
        self.exponent = _MIN_EXPONENT
        self.counts = np.zeros(2 * HALF_BINS, np.int64)
        self.low = math.inf
        self.high = -math.inf

    def observe(self, values: torch.Tensor, low: float, high: float) -> None:
        """Add ``values`` (float32, from ``some``), whose tensor has the extremes ``low`` and ``high``."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(_exponent_for(max(abs(low), abs(high))))
        bins = values.mul(2.0**-self.exponent).floor_().to(torch.int32).add_(HALF_BINS)
        self.counts += torch.bincount(bins, minlength=2 * HALF_BINS).numpy()

    @staticmethod
    def some(values: torch.Tensor) -> torch.Tensor:
        """About ``HISTOGRAM_VALUES`` of each sample's values (N, ...), evenly spaced by an odd stride: a copy, flat.

        Of tensors with three axes, such as tokens' rows (N, T, K), all are taken: in transformers few channels of the
        first token are a hundred times as large as all else, always the same ones, and a stride would always miss them.
        """
        values = in_memory_order(values)
        flat = values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
        stride = 1 if values.dim() == 3 else max(flat.shape[1] // HISTOGRAM_VALUES, 1) | 1
        while values.dim() > 1 and math.gcd(stride, values.shape[-1]) > 1:
            stride += 2
        return flat[:, ::stride].flatten().clone()

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        merged = Histogram()
        merged.low, merged.high = min(self.low, other.low), max(self.high, other.high)
        exponent = max(self.exponent, other.exponent)
        merged.exponent = exponent
        merged.counts = self._counts_at(exponent) + other._counts_at(exponent)
        return merged

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = self._counts_at(exponent)
            self.exponent = exponent

    def _counts_at(self, exponent: int) -> np.ndarray:
        shift = exponent - self.exponent
        if shift == 0 or not self.counts.any():
            return self.counts.copy()
        counts = np.zeros_like(self.counts)
        old = np.flatnonzero(self.counts)
        # Floor division of the signed bin number merges pairs on each side of zero.
        new = ((old - HALF_BINS) >> min(shift, 62)) + HALF_BINS
        np.add.at(counts, new, self.counts[old])
        return counts

    def centers(self) -> np.ndarray:
        """float64 centre of every bin."""
        return (np.arange(2 * HALF_BINS) - HALF_BINS + 0.5) * math.ldexp(1.0, self.exponent)


def _exponent_for(magnitude: float) -> int:
    """The smallest exponent at which ``magnitude`` lies inside the bins (the upper edge itself lies outside)."""
    if magnitude == 0:
        return _MIN_EXPONENT
    _, exponent = math.frexp(magnitude)  # magnitude < 2 ** exponent
    return max(exponent - HALF_BINS.bit_length() + 1, _MIN_EXPONENT)


class Extremes:
    """The smallest and the largest value ever seen."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf

    @staticmethod
    def some(values: torch.Tensor) -> torch.Tensor:
        """None of the values: float32 (0)."""
        return values.new_empty(0)

    def observe(self, values: torch.Tensor, low: float, high: float) -> None:
        """Take the extremes ``low`` and ``high`` of one batch."""
        self.low, self.high = min(self.low, low), max(self.high, high)


class MovingAverage:
    """Exponential moving average of each batch's extremes (Krishnamoorthi 2018); depends on the order of batches."""

    momentum = 0.1
    some = staticmethod(Extremes.some)

    def __init__(self) -> None:
        self.low = math.nan
        self.high = math.nan

    def observe(self, values: torch.Tensor, low: float, high: float) -> None:
        """Move towards the extremes ``low`` and ``high`` of one batch."""
        if math.isnan(self.low):
            self.low, self.high = low, high
        self.low += self.momentum * (low - self.low)
        self.high += self.momentum * (high - self.high)


AnyObserver = Histogram | Extremes | MovingAverage
OBSERVERS: dict[str, type[Histogram] | type[Extremes] | type[MovingAverage]] = {
    "histogram": Histogram,
    "minmax": Extremes,
    "moving_average": MovingAverage,
}
