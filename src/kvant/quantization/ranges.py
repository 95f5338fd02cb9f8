"""From what was observed to a range of reals, and from a range to scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvant.errors import CalibrationError
from kvant.graph import Quantization, TensorType
from kvant.quantization.clipping import aciq_clip, kl_divergence
from kvant.quantization.observers import AnyObserver, Histogram
from kvant.quantization.schemes import ActivationForm, ActivationScheme

Range = tuple[float, float]
# Far inside float32, so that products and quotients of scales stay finite and normal.
MIN_SCALE = 2.0**-60
MAX_SCALE = 2.0**60
# Shares of a range that are tried, and the octaves below the smallest power of two that clips nothing.
_SHARES = np.linspace(1.0, 0.2, 65)
_SHARES_OF_FEW = np.linspace(1.0, 0.05, 96)
_OCTAVES = 6


@dataclass(frozen=True)
class Pooled:
    """The values of tensors that share a scale: those bins that hold any, how much they count, and their width."""

    counts: np.ndarray
    centers: np.ndarray
    width: float

    def squared_error(self, low: float, high: float, step: float) -> float:
        """Expected squared error: a uniform share of a step inside the range, the distance to its end outside."""
        outside = np.maximum(low - self.centers, 0) + np.maximum(self.centers - high, 0)
        return float((self.counts * (outside**2 + np.where(outside > 0, 0.0, step**2 / 12))).sum())

    def cosine_error(self, low: float, high: float, step: float) -> float:
        """Minus the cosine between the values and what they are rounded to."""
        rounded = np.rint(np.clip(self.centers, low, high) / step) * step
        products = (self.centers * rounded, rounded**2, self.centers**2)
        dot, own, wanted = (float((self.counts * each).sum()) for each in products)
        return -dot / math.sqrt(max(own * wanted, 1e-300))

    def quantile(self, percent: float) -> float:
        """The value below which ``percent`` of all values lie."""
        position = np.searchsorted(np.cumsum(self.counts), percent / 100 * self.counts.sum())
        return float(self.centers[min(int(position), len(self.centers) - 1)])

    def apart_from_zero(self) -> Pooled:
        """Without the bins at 0, which is exact in every range: what ReLU leaves there may outweigh all else."""
        keep = np.abs(self.centers) > self.width
        return replace(self, counts=self.counts[keep], centers=self.centers[keep])

    def magnitudes(self) -> np.ndarray:
        """Counts (1, bins) of ``|x|`` in bins of the same width, from 0 on."""
        return np.bincount((np.abs(self.centers) / self.width).astype(np.int64), self.counts)[None]


class Tails:
    """Sums over all bins of a histogram below each, and above each, from which errors of many ranges follow."""

    def __init__(self, pooled: Pooled) -> None:
        self.centers = pooled.centers
        powers = np.stack([pooled.counts * pooled.centers**power for power in range(3)])
        none = np.zeros((3, 1))
        self.below = np.concatenate([none, np.cumsum(powers, 1)], 1)
        self.above = np.concatenate([np.cumsum(powers[:, ::-1], 1)[:, ::-1], none], 1)

    def squared_errors(self, low: np.ndarray, high: np.ndarray, step: np.ndarray) -> np.ndarray:
        """``Pooled.squared_error`` of each of several ranges."""
        first, end = np.searchsorted(self.centers, low), np.searchsorted(self.centers, high, "right")
        outside = sum(
            powers[2] - 2 * limit * powers[1] + limit**2 * powers[0]
            for limit, powers in ((low, self.below[:, first]), (high, self.above[:, end]))
        )
        return np.asarray(outside + (self.below[0, end] - self.below[0, first]) * step**2 / 12)


def choose_range(observers: Sequence[AnyObserver], scheme: ActivationScheme) -> Range:
    """The range of reals for tensors that share one scale; it always holds 0.

    Args:
        observers: one for each of the tensors.
        scheme: says which method, and for what integers.
    """
    full = extremes(observers)
    histograms = [seen for seen in observers if isinstance(seen, Histogram)]
    if scheme.range == "minmax" or len(histograms) != len(observers):
        return full
    # Tensors that share a scale count alike, however many values each has.
    pooled = pool(histograms)
    if not len(pooled.counts):
        return full
    if scheme.range == "percentile":
        ends = pooled.quantile(100 - scheme.percentile), pooled.quantile(scheme.percentile)
        return _with_zero(max(full[0], ends[0]), min(full[1], ends[1]))
    if scheme.range in ("aciq", "kl"):
        pooled = pooled.apart_from_zero()
        if not len(pooled.counts):
            return full
    if scheme.range == "aciq":
        mean, square = (float(np.average(each, weights=pooled.counts)) for each in (
            np.abs(pooled.centers), pooled.centers**2
        ))  # fmt: skip
        return _clipped(full, float(aciq_clip(mean, math.sqrt(square), scheme.bits, full[0] == 0 or full[1] == 0)))
    if scheme.range == "kl":
        return _least_divergence(pooled, full, scheme)
    if scheme.form == "asymmetric" and scheme.range == "mse":
        return _least_squares(pooled, full, 2**scheme.bits)
    return _best_share(pooled, full, scheme)


def extremes(observers: Sequence[AnyObserver]) -> Range:
    """The smallest range that holds 0 and all values seen."""
    low, high = min(seen.low for seen in observers), max(seen.high for seen in observers)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CalibrationError("an activation was never observed, or held NaN or infinity")
    return _with_zero(low, high)


def pool(histograms: Sequence[Histogram]) -> Pooled:
    """One histogram of several, in which each counts alike."""
    pooled = Histogram()
    pooled.exponent = max(entry.exponent for entry in histograms)
    weights = np.zeros(len(pooled.counts))
    for entry in histograms:
        counts = entry.merge(pooled).counts.astype(np.float64)
        weights += counts / max(counts.sum(), 1.0)
    keep = np.flatnonzero(weights)
    return Pooled(weights[keep], pooled.centers()[keep], math.ldexp(1.0, pooled.exponent))


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


def _clipped(full: Range, magnitude: float) -> Range:
    return max(full[0], -magnitude), min(full[1], magnitude)


def _least_squares(pooled: Pooled, full: Range, levels: int) -> Range:
    """Shrink both ends by turns, each to the share with the least squared error, until neither moves."""
    shares, tails = _SHARES if levels == 256 else _SHARES_OF_FEW, Tails(pooled)
    ends = [1.0, 1.0]
    for _ in range(4):
        before = list(ends)
        for side in (0, 1):
            if full[side] == 0:
                continue
            low = full[0] * (shares if side == 0 else np.full_like(shares, ends[0]))
            high = full[1] * (shares if side == 1 else np.full_like(shares, ends[1]))
            errors = tails.squared_errors(low, high, (high - low) / (levels - 1))
            ends[side] = float(shares[int(np.argmin(errors))])
        if ends == before:
            break
    return full[0] * ends[0], full[1] * ends[1]


def _candidates(full: Range, scheme: ActivationScheme) -> list[Range]:
    """Ranges that ``scheme`` may end with, the largest first."""
    if scheme.form == "power_of_two":
        # What the type makes of the range, and of halves of it.
        type_ = activation_type(full, scheme.bits, scheme.form)
        low, high = real_range(type_)
        halves = [0.5**octave for octave in range(_OCTAVES)]
        return [(low * half, high * half) for half in halves]
    shares = _SHARES if scheme.bits >= 8 else _SHARES_OF_FEW
    return [(full[0] * float(share), full[1] * float(share)) for share in shares]


def _best_share(pooled: Pooled, full: Range, scheme: ActivationScheme) -> Range:
    """Of the whole range and shares of it, the one whose integers err least."""
    errors, candidates = [], _candidates(full, scheme)
    for candidate in candidates:
        type_ = activation_type(candidate, scheme.bits, scheme.form)
        low, high = real_range(type_)
        measure = pooled.cosine_error if scheme.range == "cosine" else pooled.squared_error
        errors.append(measure(low, high, scale_of(type_)))
    return candidates[int(np.argmin(errors))]


def _least_divergence(pooled: Pooled, full: Range, scheme: ActivationScheme) -> Range:
    """The clip of magnitudes whose histogram, told apart by the levels of one side, diverges least."""
    counts = pooled.magnitudes()
    levels = 2**scheme.bits if full[0] == 0 or full[1] == 0 else 2 ** max(scheme.bits - 1, 1)
    best, chosen = math.inf, full
    for candidate in _candidates(full, scheme):
        kept = min(round(max(-candidate[0], candidate[1]) / pooled.width), counts.shape[1])
        if kept >= levels:
            divergence = float(kl_divergence(counts, kept, levels)[0])
            if divergence < best:
                best, chosen = divergence, candidate
    return chosen


def activation_type(bounds: Range, bits: int, form: ActivationForm = "asymmetric") -> TensorType:
    """The integers that cover ``bounds``: int16 with zero point 0 (16 bits), or uint8, of which few bits may be used.

    Asymmetric ones have a zero point. Symmetric ones have it in the middle, or at 0 where nothing is negative; their
    scale may be a power of two. Anything else is the carrier of a table: asymmetric.

    >>> activation_type((-1.0, 1.0), 16).quantization.scale
    (3.0518509447574615e-05,)
    >>> activation_type((-1.0, 0.9), 4, "power_of_two").quantization
    Quantization(scale=(0.25,), zero_point=8, axis=None, bits=4, group=None)
    """
    low, high = _with_zero(*bounds)
    top = 32767 if bits == 16 else 2**bits - 1
    kept = None if bits >= 8 else bits
    centred = form in ("symmetric", "power_of_two")
    if bits == 16 or centred:
        signed = bits < 16 and low < 0
        scale = _scale(max(-low, high) / (2 ** (bits - 1) - 1 if signed else top))
        scale = _power_of_two(scale) if form == "power_of_two" else scale
        if bits == 16:
            return TensorType("int16", Quantization((scale,)))
        return TensorType("uint8", Quantization((scale,), 2 ** (bits - 1) if signed else 0, bits=kept))
    scale = _scale((high - low) / top)
    zero_point = int(np.clip(np.rint(-low / scale), 0, top))
    return TensorType("uint8", Quantization((scale,), zero_point, bits=kept))


def real_range(type: TensorType) -> Range:
    """The smallest and the largest real that a type's integers stand for."""
    low, high = type.integer_range()
    zero = 0 if type.quantization is None else type.quantization.zero_point
    return (low - zero) * scale_of(type), (high - zero) * scale_of(type)


def with_share(type: TensorType, share: float) -> TensorType:
    """``type`` for a share of its range: finer steps from the same zero.

    >>> real_range(with_share(activation_type((0.0, 510.0), 8), 0.5))
    (0.0, 255.0)
    """
    quantization = type.quantization
    if share == 1.0 or quantization is None:
        return type
    scale = tuple(_scale(each * share) for each in quantization.scale)
    return replace(type, quantization=replace(quantization, scale=scale))


def scale_of(type: TensorType) -> float:
    """What one integer of a type stands for; 1 for integers without a scale."""
    return 1.0 if type.quantization is None else type.quantization.scale[0]


def _power_of_two(value: float) -> float:
    """The smallest power of two that is not below ``value``, but for what float32 rounded up."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa <= 0.5 * (1 + 2.0**-22) else exponent)


def _scale(value: float) -> float:
    """``value`` as a float32 that is safe to divide by; a range of nothing but 0 gets scale 1."""
    return float(np.float32(min(max(value, MIN_SCALE), MAX_SCALE))) if value > 0 else 1.0
