"""Where to clip: published criteria that weights and activations share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
# Mean magnitude over standard deviation: 0.71 of a Laplace distribution, 0.80 of a normal one.
_NORMAL_FROM = 0.752
_LITTLE = 1e-12


def aciq_clip(magnitude: npt.ArrayLike, deviation: npt.ArrayLike, bits: int, one_sided: bool = False) -> Float64:
    """The clip that costs least squared error for a Laplace or a normal distribution (Banner et al. 2019, section 3).

    Args:
        magnitude: mean of ``|x|``.
        deviation: root mean square of x. The two together say which distribution is nearer.
        bits: of the integers.
        one_sided: values are never negative (after ReLU, with all levels on one side).

    Returns:
        The largest magnitude to keep, of the arguments' shape.

    >>> [round(float(aciq_clip(1.0, 2.0**0.5, bits)), 2) for bits in (2, 3, 4)]  # 2.83, 3.89, 5.03 in the paper
    [2.83, 3.9, 5.03]
    """
    magnitude, deviation = np.asarray(magnitude, np.float64), np.asarray(deviation, np.float64)
    normal = magnitude > _NORMAL_FROM * deviation
    # A one-sided distribution has twice the levels on its side: one bit more.
    bits += int(one_sided)
    return np.where(normal, deviation * normal_clip(bits), magnitude * laplace_clip(bits))


@lru_cache(maxsize=64)
def laplace_clip(bits: int) -> float:
    """Optimal clip of a Laplace distribution with mean magnitude 1: the root of ``a * exp(a) = 3 * 4**bits``."""
    return _root(lambda a: a + math.log(a) - math.log(3) - bits * math.log(4))


@lru_cache(maxsize=64)
def normal_clip(bits: int) -> float:
    """Optimal clip of a normal distribution with deviation 1: where clipping and rounding error balance."""

    def slope(a: float) -> float:
        tail: float = a * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-a * a / 2)
        return tail + a / (3.0 * 4.0**bits)

    return _root(slope)


def _root(function: Callable[[float], float]) -> float:
    """Where a growing function changes its sign, by bisection between 0.01 and 100."""
    low, high = 0.01, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return 0.5 * (low + high)


def kl_divergence(counts: Float64, kept: int, levels: int) -> Float64:
    """How much ``counts`` lose when values beyond the first ``kept`` bins are clipped and the rest is told apart less.

    The divergence of the clipped histogram from one in which bins that share a level hold its mean, empty bins apart
    (Migacz 2017, "8-bit inference with TensorRT").

    Args:
        counts: (rows, bins), one histogram for each row.
        kept: bins that are not clipped.
        levels: that these bins are rounded to.

    Returns:
        float64 (rows).
    """
    inside = counts[:, :kept]
    clipped = inside.copy()
    clipped[:, -1] += counts[:, kept:].sum(axis=1)
    level = np.arange(kept) * levels // kept
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    sums = np.add.reduceat(inside, starts, axis=1)
    filled = np.add.reduceat(inside > 0, starts, axis=1, dtype=np.int64)
    widths = np.diff(starts, append=kept)
    spread = np.where(inside > 0, np.repeat(sums / np.maximum(filled, 1), widths, axis=1), 0.0)
    p = clipped / np.maximum(clipped.sum(axis=1, keepdims=True), _LITTLE)
    q = spread / np.maximum(spread.sum(axis=1, keepdims=True), _LITTLE)
    return np.asarray((p * np.log(np.maximum(p, _LITTLE) / np.maximum(q, _LITTLE))).sum(axis=1))


def kmeans(values: Float64, weights: Float64, count: int) -> Float64:
    """Centres of at most ``count`` clusters with the least weighted squared error: exact, in one dimension.

    By dynamic programming over the sorted values (Wang and Song 2011, "Ckmeans.1d.dp"), at the cost of
    ``count * len(values) ** 2``.

    Args:
        values: float64 (n), ascending.
        weights: float64 (n), positive.
    """
    count = min(count, len(values))
    totals = [np.concatenate([[0.0], np.cumsum(weights * values**power)]) for power in (0, 1, 2)]
    zeroth, first, second = (total[None, :] - total[:, None] for total in totals)  # [i, j]: values i to j - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(zeroth > 0, second - first * first / zeroth, np.inf)
    best = cost[0]
    splits = []
    for _ in range(count - 1):
        through = best[:, None] + cost
        splits.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    end, centres = len(values), []
    for split in reversed(splits):
        start = int(split[end])
        centres.append(first[start, end] / zeroth[start, end])
        end = start
    centres.append(first[0, end] / zeroth[0, end])
    return np.asarray(centres[::-1])
