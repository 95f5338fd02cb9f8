"""From what was observed to a range of reals, and from a range to scale and zero point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvant.errors import CalibrationError
from kvant.graph import Quantization, TensorType
from kvant.quantization.observers import AnyObserver, Histogram
from kvant.quantization.recipe import Recipe

Range = tuple[float, float]
# Far inside float32, so that products and quotients of scales stay finite and normal.
MIN_SCALE = 2.0**-60
MAX_SCALE = 2.0**60


def choose_range(observers: Sequence[AnyObserver], recipe: Recipe) -> Range:
    """The range of reals for tensors that share one scale; it always holds 0.

    Args:
        observers: one for each of the tensors.
        recipe: says which method.
    """
    low, high = min(seen.low for seen in observers), max(seen.high for seen in observers)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CalibrationError("an activation was never observed, or held NaN or infinity")
    histograms = [seen for seen in observers if isinstance(seen, Histogram)]
    if recipe.range_method == "minmax" or len(histograms) != len(observers):
        return _with_zero(low, high)
    # Tensors that share a scale count alike, however many values each has.
    counts, centers = _pooled(histograms)
    if recipe.range_method == "percentile":
        low, high = (
            max(low, _quantile(counts, centers, 100 - recipe.percentile)),
            min(high, _quantile(counts, centers, recipe.percentile)),
        )
        return _with_zero(low, high)
    return _least_squares(counts, centers, _with_zero(low, high))


def _pooled(histograms: Sequence[Histogram]) -> tuple[np.ndarray, np.ndarray]:
    pooled = Histogram()
    pooled.exponent = max(entry.exponent for entry in histograms)
    weights = np.zeros(len(pooled.counts))
    for entry in histograms:
        counts = entry.merge(pooled).counts.astype(np.float64)
        weights += counts / max(counts.sum(), 1.0)
    keep = np.flatnonzero(weights)
    return weights[keep], pooled.centers()[keep]


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


def _quantile(counts: np.ndarray, centers: np.ndarray, percent: float) -> float:
    position = np.searchsorted(np.cumsum(counts), percent / 100 * counts.sum())
    return float(centers[min(int(position), len(centers) - 1)])


def _least_squares(counts: np.ndarray, centers: np.ndarray, full: Range, levels: int = 256) -> Range:
    """Shrink both ends by turns, each to the share with the least squared error, until neither moves."""
    if not len(counts):
        return full
    shares = np.linspace(1.0, 0.2, 65)
    ends = [1.0, 1.0]
    for _ in range(4):
        before = list(ends)
        for side in (0, 1):
            if full[side] == 0:
                continue
            errors = []
            for share in shares:
                trial = [share if side == 0 else ends[0], share if side == 1 else ends[1]]
                errors.append(_squared_error(counts, centers, full[0] * trial[0], full[1] * trial[1], levels))
            ends[side] = float(shares[int(np.argmin(errors))])
        if ends == before:
            break
    return full[0] * ends[0], full[1] * ends[1]


def _squared_error(counts: np.ndarray, centers: np.ndarray, low: float, high: float, levels: int) -> float:
    """Expected squared error: a uniform share of a step inside the range, the distance to its end outside."""
    step = (high - low) / (levels - 1)
    outside = np.maximum(low - centers, 0) + np.maximum(centers - high, 0)
    return float((counts * (outside**2 + np.where(outside > 0, 0.0, step**2 / 12))).sum())


def activation_type(bounds: Range, bits: int) -> TensorType:
    """uint8 with a zero point (8 bits) or int16 with zero point 0 (16 bits) that covers ``bounds``.

    >>> activation_type((-1.0, 1.0), 16).quantization.scale
    (3.0518509447574615e-05,)
    """
    low, high = _with_zero(*bounds)
    if bits == 16:
        return TensorType("int16", Quantization((_scale(max(-low, high) / 32767),)))
    scale = _scale((high - low) / 255)
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return TensorType("uint8", Quantization((scale,), zero_point))


def _scale(value: float) -> float:
    """``value`` as a float32 that is safe to divide by; a range of nothing but 0 gets scale 1."""
    return float(np.float32(min(max(value, MIN_SCALE), MAX_SCALE))) if value > 0 else 1.0
