"""Rounding that looks at a layer's inputs: each weight's rounding error is made up for by weights not yet rounded.

With H the second moments of the layer's inputs (K x K), rounding weight k by an error e costs least when the weights
that are still free move by -e H^-1[k, :] / H^-1[k, k] (Optimal Brain Surgeon; Frantar et al. 2022, "Optimal Brain
Compression" and "GPTQ"). Before that, the float weight is fitted to the inputs that the quantized network really sees,
so a layer also repairs some of what the layers before it lost. Both are closed forms: a Cholesky factor for each group
of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.graph import Node, ops
from kvant.quantization.grids import Grid
from kvant.quantization.weights import QuantizedWeight
from kvant.quantization.workers import in_order

# Weights of one output channel beyond which the K x K matrices cost more than they give.
LARGEST = 2400
# Positions of one sample that enter the moments: this many, or as many as weights of a channel if these are more.
LEAST_POSITIONS = 256
# Fewer than this would fit the samples, not the network.
POSITIONS_PER_WEIGHT = 4
# Columns that are rounded one by one before their errors are spread over all later columns.
BLOCK = 64
# Added to the diagonal, relative to its mean: keeps the factor stable and the fit close to the trained weight.
DAMPING = 0.05


@dataclass
class Moments:
    """Sums over positions, float64 (G, K, K): the quantized inputs with themselves, float inputs with them.

    Of inputs less their mean: what a weight's error times the mean does to the output, the bias takes out again.
    """

    own: torch.Tensor
    cross: torch.Tensor
    positions: int

    def determined(self) -> bool:
        """Whether there are positions enough to say more about K weights than what these positions happened to be."""
        return self.positions >= POSITIONS_PER_WEIGHT * self.own.shape[1]


def rounds_well(node: Node, weight: np.ndarray) -> bool:
    """Whether the layer is one that ``compensated`` handles at a sensible cost."""
    return isinstance(node.op, ops.Conv | ops.Linear) and weight[0].size <= LARGEST


def gather(node: Node, weight: np.ndarray, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    """Moments of a layer's inputs over samples; each pair holds the float and the quantized network's input."""
    own = cross = wanted_sum = got_sum = torch.zeros(())
    positions = 0
    wanted = max(LEAST_POSITIONS, weight[0].size)
    for products in in_order(lambda pair: _products(node, weight, wanted, *pair), pairs):
        own, cross = own + products[0], cross + products[1]
        wanted_sum, got_sum = wanted_sum + products[2], got_sum + products[3]
        positions += products[4]
    if not positions:
        raise ValueError("no samples")
    mean = got_sum.transpose(1, 2) / positions
    return Moments(own - got_sum @ mean, cross - wanted_sum @ mean, positions)


def _products(
    node: Node, weight: np.ndarray, count: int, exact: torch.Tensor, rough: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Of about ``count`` positions of one sample: moments of the rough input, with the exact one; sums; how many."""
    with torch.inference_mode():
        wanted, got = (_columns(node, weight, count, values) for values in (exact, rough))
        turned = got.transpose(1, 2)
        own, cross = torch.bmm(got, turned).double(), torch.bmm(wanted, turned).double()
        return own, cross, _total(wanted), _total(got), got.shape[2]


def _total(columns: torch.Tensor) -> torch.Tensor:
    """float64 (G, K, 1): the sum over positions."""
    return columns.sum(2, keepdim=True).double()


def _columns(node: Node, weight: np.ndarray, wanted: int, values: torch.Tensor) -> torch.Tensor:
    """(G, K, positions): what output positions' products read, thinned to an even grid of ``wanted`` or some more."""
    op = node.op
    if isinstance(op, ops.Linear):
        rows = values.reshape(1, -1, values.shape[-1])
        return rows[:, :: max(rows.shape[1] // wanted, 1)].transpose(1, 2)
    if not isinstance(op, ops.Conv):
        raise TypeError(f"{node.describe()} is no convolution")
    values = _padded(op, values)
    strides = op.strides
    if values.dim() == 3:
        values, strides = values.unsqueeze(2), (1, *strides)
    dilations = (1, *op.dilations) if len(op.dilations) == 1 else op.dilations
    kernel = (1, *weight.shape[2:]) if weight.ndim == 3 else weight.shape[2:]
    count = values.shape[0] * values.shape[2] * values.shape[3] / (strides[0] * strides[1])
    skip = max(int((count / wanted) ** 0.5), 1)
    strides = (strides[0] * skip, strides[1] * skip)
    if set(kernel) == {1}:
        columns = values[:, :, :: strides[0], :: strides[1]].flatten(2)
    else:
        columns = torch.nn.functional.unfold(values, kernel, dilations, 0, strides)
    return columns.transpose(0, 1).reshape(op.groups, -1, columns.shape[0] * columns.shape[2])


def _padded(op: ops.Conv, values: torch.Tensor) -> torch.Tensor:
    begin, end = op.pads_begin, op.pads_end
    if not any((*begin, *end)):
        return values
    widths = [width for pair in zip(reversed(begin), reversed(end), strict=True) for width in pair]
    return torch.nn.functional.pad(values, widths)


def compensated(weight: np.ndarray, nearest: QuantizedWeight, moments: Moments) -> QuantizedWeight:
    """Round ``weight`` (O, ...) at the scales and bits of ``nearest`` so that the layer's output errs least."""
    groups, size = moments.own.shape[:2]
    rows = torch.from_numpy(weight.reshape(groups, -1, size)).double()
    steps = torch.from_numpy(nearest.scale.reshape(groups, -1)).double()
    hessian = damped(moments)
    shift = torch.linalg.solve(hessian, (rows @ (moments.cross - moments.own)).transpose(1, 2))
    values = _round_in_turn(rows + shift.transpose(1, 2), steps, hessian, nearest.grid)
    return replace(nearest, values=values.numpy().astype(nearest.values.dtype).reshape(weight.shape))


def damped(moments: Moments) -> torch.Tensor:
    """float64 (G, K, K): the inputs' moments, with a little more on the diagonal."""
    diagonal = moments.own.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True) + 1e-12
    return moments.own + torch.diag_embed(damping.expand_as(diagonal))


def _round_in_turn(rows: torch.Tensor, steps: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Round column after column, those with the largest inputs first; returns (G, O / G, K) integers as float64."""
    order = hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    rows = rows.gather(2, order[:, None].expand_as(rows))
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian)).gather(2, order[:, None].expand_as(hessian))
    numbers = torch.arange(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    values = torch.empty_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        # Within a block errors move at once; beyond it they are gathered and move in one product.
        stop = min(start + BLOCK, rows.shape[2])
        errors = torch.empty_like(rows[:, :, start:stop])
        for column in range(start, stop):
            picked = order[:, None, column].expand_as(numbers)
            values[:, :, column] = grid.nearest_at(rows[:, :, column] / steps, numbers, picked)
            error = (rows[:, :, column] - values[:, :, column] * steps) / factor[:, column, column, None]
            rows[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
            errors[:, :, column - start] = error
        rows[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.empty_like(values).scatter_(2, order[:, None].expand_as(values), values)
