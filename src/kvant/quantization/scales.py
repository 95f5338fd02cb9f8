"""The scale of each row of a weight: tried, judged by the scheme's criterion, and polished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.quantization.clipping import aciq_clip, kl_divergence, kmeans
from kvant.quantization.grids import Grid, of_levels
from kvant.quantization.ranges import MAX_SCALE, MIN_SCALE
from kvant.quantization.schemes import WeightScheme

# Weights of a row that its scale is judged by, at least; the largest ones that are always among them, since few others
# tell what it costs to clip these; and weights that are searched together, in the cache.
_JUDGED = 4096
_LARGEST = 32
_CACHED = 1 << 18
# Shares of the range that are tried: few values tell little where they clip, few levels want to clip a lot.
_CANDIDATES = torch.cat([torch.linspace(1.0, 0.7, 31), torch.linspace(0.68, 0.3, 20)])
_CANDIDATES_OF_FEW = torch.linspace(1.0, 0.02, 99)
# Powers of two below the smallest that clips nothing.
_OCTAVES = 6
# Bins of a histogram of magnitudes, and of a codebook's histogram on either side of 0: half steps of int8.
_BINS = 512
_CODEBOOK_BINS = 254
_POLISHES = 3


@dataclass(frozen=True)
class Rows:
    """Weights (rows, weights of a row) that share a scale row by row, and how much each one's error counts."""

    values: torch.Tensor
    moment: torch.Tensor | None = None

    def joined(self) -> Rows:
        """All weights as one row."""
        return Rows(self.values.reshape(1, -1), None if self.moment is None else self.moment.reshape(1, -1))

    def largest(self) -> torch.Tensor:
        """The largest magnitude of each row."""
        return self.values.abs().amax(1)

    def parts(self) -> Iterator[Rows]:
        """Some rows at a time, and of long rows an even choice of their weights and the largest ones."""
        width = self.values.shape[1]
        step, rows = max(width // _JUDGED, 1), max(_CACHED // min(width, _JUDGED), 1)
        for first in range(0, len(self.values), rows):
            part = slice(first, first + rows)
            some = Rows(self.values[part], None if self.moment is None else self.moment[part])
            yield some if step == 1 else some._chosen(step)

    def _chosen(self, step: int) -> Rows:
        """Every so many weights, each counting for so many, and the largest."""
        moment = torch.ones_like(self.values) if self.moment is None else self.moment
        largest = self.values.abs().topk(_LARGEST, 1).indices
        values, counts = (
            torch.cat([each[:, ::step] * times, each.gather(1, largest)], 1)
            for each, times in ((self.values, 1), (moment, step))
        )
        return Rows(values, counts)

    def loss(self, rounded: torch.Tensor, scale: torch.Tensor, cosine: bool) -> torch.Tensor:
        """Weighted squared error of each row, or minus the weighted cosine; ``rounded`` is overwritten."""
        real = rounded.mul_(scale[:, None])
        if cosine:
            products = [left * right for left, right in ((real, self.values), (real, real), (self.values, self.values))]
            dot, own, wanted = ((each if self.moment is None else each * self.moment).sum(1) for each in products)
            return -dot / (own * wanted).sqrt().clamp_min(1e-30)
        error = real.sub_(self.values).square_()
        return (error if self.moment is None else error.mul_(self.moment)).sum(1)


def fit_scale(rows: Rows, grid: Grid, scheme: WeightScheme) -> torch.Tensor:
    """The scale of each row for a symmetric grid: float32 (rows)."""
    largest = rows.largest()
    full = safe(largest / grid.high)
    if scheme.range in ("percentile", "aciq"):
        full = safe(torch.minimum(_clip(rows, scheme), largest) / grid.high)
    if scheme.form == "power_of_two":
        nearest_above = power_of_two(full)
        if scheme.range not in ("mse", "cosine", "kl") or rows.values.shape[1] == 1:
            return nearest_above
        octaves = [nearest_above * 2.0**-octave for octave in range(_OCTAVES)]
        return _divergent(rows, grid, octaves) if scheme.range == "kl" else _best(rows, grid, octaves, scheme)
    if scheme.range in ("minmax", "percentile", "aciq") or rows.values.shape[1] == 1:
        return full
    shares = _CANDIDATES if grid.high >= 127 else _CANDIDATES_OF_FEW
    candidates = [safe(share * largest / grid.high) for share in shares]
    if scheme.range == "kl":
        return _divergent(rows, grid, candidates)
    scale = _best(rows, grid, candidates, scheme)
    return scale if grid.high >= 127 or scheme.range != "mse" else polished(rows, grid, scale)


def _best(rows: Rows, grid: Grid, candidates: list[torch.Tensor], scheme: WeightScheme) -> torch.Tensor:
    """Of each row the candidate with the smallest loss; the first one where several have it."""
    found, first = [], 0
    for part in rows.parts():
        own = slice(first, first + len(part.values))
        first = own.stop
        best = torch.full((len(part.values),), torch.inf)
        chosen = candidates[0][own].clone()
        for candidate in candidates:
            scale = candidate[own]
            loss = part.loss(grid.nearest(part.values / scale[:, None]), scale, scheme.range == "cosine")
            better = loss < best
            best = torch.where(better, loss, best)
            chosen = torch.where(better, scale, chosen)
        found.append(chosen)
    return torch.cat(found)


def polished(rows: Rows, grid: Grid, scale: torch.Tensor) -> torch.Tensor:
    """Scales moved by turns with the rounding: each is the least squares fit of the integers to the weights.

    For single bits this ends at the mean magnitude (Rastegari et al. 2016, section 3.1).
    """
    for _ in range(_POLISHES):
        values = grid.nearest(rows.values / scale[:, None])
        weighted = values if rows.moment is None else values * rows.moment
        own = (weighted * values).sum(1)
        fitted = (weighted * rows.values).sum(1) / own
        scale = torch.where((own > 0) & (fitted > 0), safe(fitted), scale)
    return scale


def _clip(rows: Rows, scheme: WeightScheme) -> torch.Tensor:
    """The largest magnitude of each row that "percentile" and "aciq" keep."""
    magnitudes = rows.values.abs()
    if scheme.range == "percentile":
        ordered = magnitudes.sort(1).values
        at = int(np.ceil(scheme.percentile / 100 * ordered.shape[1])) - 1
        return ordered[:, max(at, 0)]
    # What was pruned is exact at every scale, and says nothing of how the others are distributed.
    count = magnitudes.count_nonzero(1).clamp_min(1)
    mean, deviation = (magnitudes.sum(1) / count).numpy(), (magnitudes.square().sum(1) / count).sqrt().numpy()
    return torch.from_numpy(aciq_clip(mean, deviation, scheme.bits).astype(np.float32))


def _divergent(rows: Rows, grid: Grid, candidates: list[torch.Tensor]) -> torch.Tensor:
    """Of each row the candidate whose clip costs the least divergence of its histogram of magnitudes."""
    largest = safe(rows.largest())
    bins = (rows.values.abs() / largest[:, None] * _BINS).long().clamp_max(_BINS - 1)
    counts = torch.zeros(len(bins), _BINS, dtype=torch.float64)
    counts.scatter_add_(1, bins, (rows.values != 0).double())  # zero is exact at every scale
    best = np.full(len(bins), np.inf)
    chosen = candidates[0].clone()
    for candidate in candidates:
        kept = (candidate * grid.high / largest * _BINS).round().long().clamp(1, _BINS).numpy()
        for width in np.unique(kept):
            at = np.flatnonzero(kept == width)
            divergence = kl_divergence(counts.numpy()[at], int(width), max(grid.high, 1))
            better = at[divergence < best[at] - 1e-12]
            best[at] = np.minimum(best[at], divergence)
            chosen[better] = candidate[better]
    return chosen


def fit_shift(rows: Rows, grid: Grid, scheme: WeightScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (rows) and minus the zero point, float64 (rows, 1), of asymmetric weights; 0 stays exact."""
    low, high = _ends(rows)
    shares: torch.Tensor = torch.ones(1)
    if scheme.range in ("percentile", "aciq"):
        share = _clip(rows, scheme) / rows.largest().clamp_min(1e-30)
        return _shifted(low, high, share.clamp(max=1.0), grid)
    if scheme.range != "minmax":
        shares = _CANDIDATES if grid.high >= 127 else _CANDIDATES_OF_FEW
    best = torch.full_like(low, torch.inf)
    scale, shift = _shifted(low, high, torch.ones_like(low), grid)
    for share in shares:
        tried, moved = _shifted(low, high, share.expand(len(low)), grid)
        rounded = replace(grid, shift=moved).nearest(rows.values / tried[:, None])
        loss = rows.loss(rounded, tried, scheme.range == "cosine")
        better = loss < best
        best = torch.where(better, loss, best)
        scale, shift = torch.where(better, tried, scale), torch.where(better[:, None], moved, shift)
    return scale, shift


def shift_at(scale: float, rows: Rows, grid: Grid) -> torch.Tensor:
    """Minus the zero point, float64 (rows, 1), where the scale is given: what does not fit is clipped on both sides."""
    low, high = _ends(rows)
    share = (scale * grid.high / (high - low).clamp_min(1e-30)).clamp_max(1.0)
    return _zero(low * share / scale, grid)


def _ends(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest range of each row that holds 0."""
    return rows.values.amin(1).clamp_max(0), rows.values.amax(1).clamp_min(0)


def _shifted(
    low: torch.Tensor, high: torch.Tensor, share: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = safe((high - low) * share / grid.high)
    return scale, _zero(low * share / scale, grid)


def _zero(position: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The nearest integer to where a row's range begins, of those that keep 0 in it: float64 (rows, 1)."""
    return position.double().round().clamp(-grid.high, 0)[:, None]


def fit_codebook(rows: Rows, scheme: WeightScheme, fixed: float | None) -> tuple[Grid, torch.Tensor]:
    """Levels on the int8 grid by k-means over all weights divided by their scales, and the scales (rows).

    Args:
        rows: the weights of one layer.
        scheme: says how many levels.
        fixed: the scale, where that is given.
    """
    scale = safe(rows.largest() / 127) if fixed is None else torch.full_like(rows.values[:, 0], fixed)
    position = (rows.values / scale[:, None] * (_CODEBOOK_BINS / 127)).round()
    position = position.clamp(-_CODEBOOK_BINS, _CODEBOOK_BINS).long() + _CODEBOOK_BINS
    moment = torch.ones_like(rows.values) if rows.moment is None else rows.moment
    # An error counts by what it is in reals.
    counted = (moment * scale[:, None].square()).double().reshape(-1)
    bins = torch.bincount(position.reshape(-1), counted, minlength=2 * _CODEBOOK_BINS + 1)
    weight = np.asarray(bins.numpy(), np.float64)
    values = (np.arange(len(weight), dtype=np.float64) - _CODEBOOK_BINS) * (127 / _CODEBOOK_BINS)
    used = weight > 0
    centres = kmeans(values[used], weight[used] / weight.max(), 2**scheme.bits) if used.any() else np.zeros(1)
    grid = of_levels([int(centre) for centre in np.rint(centres)])
    return grid, polished(rows, grid, scale)


def fit_factors(rows: Rows, grid: Grid, scheme: WeightScheme, run: int) -> tuple[Grid, torch.Tensor]:
    """Factors of runs of weights, and the scale of each row.

    Every run wants a scale of its own; the row gets the largest of them over the largest factor that the integers have
    room for, and each run the factor next to what it wants. Runs of nothing but 0 want none.
    """
    width, parts = rows.values.shape[1], list(_runs(rows, run))
    wanted = torch.cat([_by_run(fit_scale(part, grid, scheme), rows) for part in parts], 1)
    wanted = wanted.where(torch.cat([_by_run(part.largest(), rows) for part in parts], 1) > 0, 0.0)
    most = (127 if grid.dtype is np.int8 else 8191) // grid.high
    if scheme.form == "power_of_two":
        most = 1 << (most.bit_length() - 1)
    scale = safe(wanted.amax(1) / most)
    exact = (wanted / scale[:, None]).double()
    lower, upper = exact.floor().clamp(1, most), exact.ceil().clamp(1, most)
    if scheme.range in ("mse", "cosine"):
        below, above = (
            _losses(parts, grid, factors.float() * scale[:, None], scheme.range == "cosine")
            for factors in (lower, upper)
        )
        factors = torch.where(below < above, lower, upper)
    else:
        factors = upper if scheme.range == "minmax" else exact.round().clamp(1, most)
    spread = factors.repeat_interleave(run, 1)[:, :width].contiguous()
    return replace(grid, factors=spread), scale


def _by_run(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Numbers of the runs of all rows, as (rows, runs)."""
    return values.reshape(len(rows.values), -1)


def _losses(parts: list[Rows], grid: Grid, scales: torch.Tensor, cosine: bool) -> torch.Tensor:
    """What each run loses when it is rounded with its entry of ``scales``; both (rows, runs)."""
    found, first = [], 0
    for part in parts:
        count = len(part.values) // len(scales)
        scale = scales[:, first : first + count].reshape(-1)
        first += count
        loss = part.loss(grid.nearest(part.values / scale[:, None]), scale, cosine)
        found.append(loss.reshape(len(scales), -1))
    return torch.cat(found, 1)


def _runs(rows: Rows, run: int) -> Iterator[Rows]:
    """The whole runs of each row (rows * runs, run), and what is left behind them (rows, fewer), if there are any."""
    width = rows.values.shape[1]
    whole = width // run * run
    for columns, size in ((slice(0, whole), run), (slice(whole, width), width - whole)):
        if columns.stop > columns.start:
            moment = None if rows.moment is None else rows.moment[:, columns].reshape(-1, size)
            yield Rows(rows.values[:, columns].reshape(-1, size), moment)


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not below ``scale``.

    >>> power_of_two(torch.tensor([0.25, 0.3])).tolist()
    [0.25, 0.5]
    """
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())


def safe(scale: torch.Tensor) -> torch.Tensor:
    """Scales within the safe range; a channel of nothing but zeros gets scale 1."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).clamp(MIN_SCALE, MAX_SCALE)
