"""Rounding that looks at a layer's inputs: each weight's rounding error is made up for by weights not yet rounded.

With H the second moments of the layer's inputs (K x K), rounding weight k by an error e costs least when the weights
that are still free move by -e H^-1[k, :] / H^-1[k, k] (Optimal Brain Surgeon; Frantar et al. 2022, "Optimal Brain
Compression" and "GPTQ"). No inverse is needed for that: with H = L L^T, and weights rounded from the last to the first,
weight k moves by the sum of e_j L[j, k] / L[k, k] over all j that were rounded before, e_j being how far j is from what
it was (Chee et al. 2023, "QuIP", theorem 6). Before that, the float weight is fitted to the inputs that the quantized
network really sees, so a layer also repairs some of what the layers before it lost. Both are closed forms: a Cholesky
factor for each group of channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.capture import product
from kvant.graph import Node, ops
from kvant.quantization.grids import Grid
from kvant.quantization.weights import QuantizedWeight
from kvant.quantization.workers import each_in_order

# Weights of one output channel beyond which the K x K matrices cost more than they give.
LARGEST = 2400
# Positions of one sample that enter the moments: as many as so many products allow, for what is rarely excited is seen
# at few of them; in any case that many, of all samples together, for each weight of a channel.
PRODUCTS = 1 << 29
WANTED_PER_WEIGHT = 12
# What a position costs at least, in products for each value that is read.
_LEAST_PRODUCTS = 256
# Values that are looked at together: few enough for a processor's cache.
_CACHED_VALUES = 1 << 15
# Fewer than this would fit the samples, not the network.
POSITIONS_PER_WEIGHT = 4
# Its multiples less their whole parts fill the unit interval evenly.
_GOLDEN = (5**0.5 - 1) / 2
# Of an input's squares: what is less is what float32 made of an input that never changes.
_LEAST_VARIANCE = 1e-5
# Columns that are rounded one by one before their errors are spread over all later columns.
BLOCK = 64
# Added to the diagonal, relative to its mean: keeps the factor stable and the fit close to the trained weight.
DAMPING = 0.05


@dataclass
class Moments:
    """Sums over positions, float64, of the quantized inputs less their mean.

    What a weight's error times the mean does to the output, the bias takes out again.

    Attributes:
        own: the inputs with themselves: (G, K, K).
        lack: the inputs with what the layer's outputs lack because the inputs are not the float ones: (G, O / G, K).
        positions: how many.
    """

    own: torch.Tensor
    lack: torch.Tensor
    positions: int

    def determined(self) -> bool:
        """Whether there are positions enough to say more about K weights than what these positions happened to be."""
        return self.positions >= POSITIONS_PER_WEIGHT * self.own.shape[1]


def rounds_well(node: Node, weight: np.ndarray) -> bool:
    """Whether the layer is one that ``compensated`` handles at a sensible cost."""
    return isinstance(node.op, ops.Conv | ops.Linear) and weight[0].size <= LARGEST


def gather(node: Node, weight: np.ndarray, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    """Moments of a layer's inputs over samples; each pair holds the float and the quantized network's input."""
    if not pairs:
        raise ValueError("no samples")
    size, groups = weight[0].size, getattr(node.op, "groups", 1)
    affordable = PRODUCTS // (groups * size * max(size, _LEAST_PRODUCTS))
    wanted = max(affordable, -(-WANTED_PER_WEIGHT * size // len(pairs)))
    parts = each_in_order(len(pairs), lambda at: _products(node, weight, wanted, *pairs[at]))
    total = next(parts).doubled()
    for part in parts:
        total.add(part)
    mean, squares = total.got_sum / total.positions, total.own.diagonal(dim1=1, dim2=2).clone()
    total.own -= total.got_sum.transpose(1, 2) @ mean
    total.lack -= total.lack_sum.transpose(1, 2) @ mean
    varies = (total.own.diagonal(dim1=1, dim2=2) > _LEAST_VARIANCE * squares).double()[:, None]
    return Moments(total.own.mul_(varies).mul_(varies.mT), total.lack.mul_(varies), total.positions)


@dataclass
class _Products:
    """Of one sample: moments as they are, and sums (G, 1, K) and (G, 1, O / G) by which the means go out of them."""

    own: torch.Tensor
    lack: torch.Tensor
    got_sum: torch.Tensor
    lack_sum: torch.Tensor
    positions: int

    def doubled(self) -> _Products:
        """The same as float64."""
        own, lack, got_sum, lack_sum = (each.double() for each in self._sums())
        return _Products(own, lack, got_sum, lack_sum, self.positions)

    def add(self, other: _Products) -> None:
        """Take in, as float64, what another sample has."""
        for mine, theirs in zip(self._sums(), other._sums(), strict=True):
            mine += theirs
        self.positions += other.positions

    def _sums(self) -> tuple[torch.Tensor, ...]:
        return self.own, self.lack, self.got_sum, self.lack_sum


def _products(node: Node, weight: np.ndarray, wanted: int, exact: torch.Tensor, rough: torch.Tensor) -> _Products:
    """Of ``wanted`` positions of one sample or some more."""
    if isinstance(node.op, ops.Conv) and node.op.groups == rough.shape[1] > 1:
        return _depthwise_products(node.op, torch.from_numpy(weight), wanted, exact, rough)
    got = _rows(node, weight, wanted, rough)
    rows = torch.from_numpy(weight.reshape(got.shape[0], -1, got.shape[2]))
    lack = product(rows, _rows(node, weight, wanted, exact) - got)  # (G, O / G, positions)
    got_sum, lack_sum = got.sum(1, keepdim=True), lack.sum(2)[:, None]
    by_weight = got.mT.contiguous()
    return _Products(product(by_weight, by_weight), product(lack, by_weight), got_sum, lack_sum, got.shape[1])


def _depthwise_products(
    op: ops.Conv, weight: torch.Tensor, wanted: int, exact: torch.Tensor, rough: torch.Tensor
) -> _Products:
    """The same where each group is one channel, for tiny matrices cost more than they do."""
    size, channels = weight[0].numel(), rough.shape[1]
    by_tap = weight.reshape(channels, -1, size).permute(1, 2, 0)  # (O / C, K, C)
    places, taps = _flat_places(op, weight.shape[2:], wanted, rough.shape)
    got, pixels = _at(_pixels(op, rough), places, taps), _pixels(op, exact)
    own, lack = got.new_zeros(size, size, channels), torch.zeros_like(by_tap)
    lack_sum = got.new_zeros(len(by_tap), channels)
    some = max(_CACHED_VALUES // channels, 1)
    for start in range(0, len(places), some):
        here = got[:, start : start + some]
        for tap in range(size):
            own[tap, tap:] += (here[tap] * here[tap:]).sum(1)
        less = _at(pixels, places[start : start + some], taps) - here
        for number, one in enumerate(by_tap):
            missing = (one[:, None] * less).sum(0)
            lack[number] += (missing * here).sum(1)
            lack_sum[number] += missing.sum(0)
    half = own.permute(2, 0, 1)
    return _Products(
        half + half.triu(1).mT, lack.permute(2, 0, 1), got.sum(1).T[:, None], lack_sum.T[:, None], len(places)
    )


def _at(pixels: torch.Tensor, places: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """(K, places, C): what each tap reads of ``pixels`` (N, H, W, C); no copy where one tap reads all of them."""
    rows = pixels.reshape(1, -1, pixels.shape[-1])
    if len(taps) == 1 and len(places) == rows.shape[1]:
        return rows
    return rows[0].index_select(0, (taps[:, None] + places).flatten()).reshape(len(taps), -1, rows.shape[2])


def _flat_places(
    op: ops.Conv, kernel: Sequence[int], wanted: int, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ``wanted`` windows or some more begin, and how far from there their taps lie, counted in padded pixels."""
    sizes = [size + begin + end for size, begin, end in zip(shape[2:], op.pads_begin, op.pads_end, strict=True)]
    places, taps = torch.arange(shape[0]), torch.zeros(1, dtype=torch.int64)
    starts = _starts(op, kernel, sizes, wanted / shape[0])
    for size, start, taken, dilation in zip(sizes, starts, kernel, op.dilations, strict=True):
        places = (places[:, None] * size + start).flatten()
        taps = (taps[:, None] * size + torch.arange(taken) * dilation).flatten()
    return places, taps


def _rows(node: Node, weight: np.ndarray, wanted: int, values: torch.Tensor) -> torch.Tensor:
    """(G, positions, K): what output positions' products read, thinned to ``wanted`` of them or some more."""
    op = node.op
    if isinstance(op, ops.Linear):
        rows = values.reshape(1, -1, values.shape[-1])
        return rows[:, _spread(rows.shape[1], min(wanted, rows.shape[1]))]
    if not isinstance(op, ops.Conv):
        raise TypeError(f"{node.describe()} is no convolution")
    places, taps = _flat_places(op, weight.shape[2:], wanted, values.shape)
    windows = _at(_pixels(op, values), places, taps)
    windows = windows.reshape(*windows.shape[:-1], op.groups, -1)
    return windows.permute(2, 1, 3, 0).reshape(op.groups, -1, weight[0].size)


def _starts(op: ops.Conv, kernel: Sequence[int], sizes: Sequence[int], wanted: float) -> list[torch.Tensor]:
    """Along each axis of padded pixels where windows begin, thinned to ``wanted`` of them in all, or some more."""
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, op.dilations, strict=True)]
    counts = [(size - span) // stride + 1 for size, span, stride in zip(sizes, spans, op.strides, strict=True)]
    kept = _thinned(counts, wanted)
    return [_spread(count, most) * stride for count, most, stride in zip(counts, kept, op.strides, strict=True)]


def _thinned(counts: Sequence[int], wanted: float) -> list[int]:
    """How many of ``counts`` positions along each axis make ``wanted`` positions in all, or some more."""
    kept: list[int] = []
    for left, count in zip(range(len(counts), 0, -1), counts, strict=True):
        spare = max(math.prod([*kept, *counts[len(kept) :]]) / wanted, 1.0)
        kept.append(min(math.ceil(count / spare ** (1 / left)), count))
    return kept


def _spread(count: int, kept: int) -> torch.Tensor:
    """``kept`` of ``count`` positions, one anywhere in each of as many equal stretches.

    Not every second or fourth one: what was enlarged before, such as maps of a coarser stage, differs between positions
    that lie so, and would be seen from one side only.
    """
    if kept == count:
        return torch.arange(count)
    somewhere = torch.arange(kept).double().mul(_GOLDEN).frac()
    return ((torch.arange(kept) + somewhere) * (count / kept)).long()


def _pixels(op: ops.Conv, values: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C), padded."""
    begin, end = op.pads_begin, op.pads_end
    if any((*begin, *end)):
        widths = [width for pair in zip(reversed(begin), reversed(end), strict=True) for width in pair]
        values = torch.nn.functional.pad(values, widths)
    return values.movedim(1, -1)


def compensated(weight: np.ndarray, nearest: QuantizedWeight, moments: Moments) -> QuantizedWeight:
    """Round ``weight`` (O, ...) at the scales and bits of ``nearest`` so that the layer's output errs least."""
    groups, size = moments.own.shape[:2]
    rows = torch.from_numpy(weight.reshape(groups, -1, size)).double().mT
    steps = torch.from_numpy(nearest.scale.reshape(groups, 1, -1)).double()
    hessian = damped(moments)
    # Those with the largest inputs are rounded first, and so stand last.
    order = hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True).flip(1)
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian)).gather(2, order[:, None].expand_as(hessian))
    ordered = order[:, :, None].expand_as(rows)
    factor = torch.linalg.cholesky(hessian)
    shift = torch.cholesky_solve(moments.lack.mT.gather(1, ordered), factor)
    values = _round_in_turn((rows.gather(1, ordered) + shift) / steps, factor, order, nearest.grid)
    values = torch.empty_like(values).scatter_(1, ordered, values).mT
    return replace(nearest, values=values.numpy().astype(nearest.values.dtype).reshape(weight.shape))


def damped(moments: Moments) -> torch.Tensor:
    """float64 (G, K, K): the inputs' moments, with a little more on the diagonal."""
    diagonal = moments.own.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True) + 1e-12
    more = moments.own.clone()
    more.diagonal(dim1=1, dim2=2).add_(damping)
    return more


def _round_in_turn(wanted: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Round weight after weight of all channels, from the last to the first; float64 (G, K, O / G) integers.

    Args:
        wanted: (G, K, O / G), over their scales.
        factor: (G, K, K), lower: the Cholesky factor of the moments.
        order: (G, K), where the weights stood.
        grid: what they are rounded to.
    """
    groups, size, channels = wanted.shape
    numbers = torch.arange(groups * channels).reshape(groups, channels)
    passed_on = factor / factor.diagonal(dim1=1, dim2=2)[:, None]
    values, errors = torch.empty_like(wanted), torch.empty_like(wanted)
    for stop in range(size, 0, -BLOCK):
        # Within a block errors move at once; those from before it were gathered and move in one product.
        start = max(stop - BLOCK, 0)
        moved = wanted[:, start:stop] + passed_on[:, stop:, start:stop].mT @ errors[:, stop:]
        for at in reversed(range(start, stop)):
            picked = order[:, at, None].expand_as(numbers)
            values[:, at] = grid.nearest_at(moved[:, at - start].contiguous(), numbers, picked)
            errors[:, at] = error = wanted[:, at] - values[:, at]
            moved[:, : at - start].addcmul_(passed_on[:, at, start:at, None], error[:, None])
    return values
