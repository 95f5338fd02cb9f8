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
# Positions of all samples that enter the moments, at least, and for each weight of a channel.
LEAST_POSITIONS = 1024
POSITIONS = 12
# Fewer than this would fit the samples, not the network.
POSITIONS_PER_WEIGHT = 4
# Columns that are rounded one by one before their errors are spread over all later columns.
BLOCK = 64
# Added to the diagonal, relative to its mean: keeps the factor stable and the fit close to the trained weight.
DAMPING = 0.05


@dataclass
class Moments:
    """Sums over positions, float64: of the quantized inputs with themselves, and of what the output lacks with them.

    Of values less their mean: what a weight's error times the mean does to the output, the bias takes out again.

    Attributes:
        own: (G, K, K).
        lack: (G, O / G, K); what the float weights make of the quantized inputs lacks this to the float output.
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
    """Moments of a layer over samples; each pair holds the float output before its clamp, and the quantized input."""
    own = made = wanted_sum = got_sum = torch.zeros(())
    positions = 0
    count = max(LEAST_POSITIONS, POSITIONS * weight[0].size) / len(pairs)
    for products in in_order(lambda pair: _products(node, weight, count, *pair), pairs, whole=False):
        own, made = own + products[0], made + products[1]
        wanted_sum, got_sum = wanted_sum + products[2], got_sum + products[3]
        positions += products[4]
    if not positions:
        raise ValueError("no samples")
    mean = got_sum.transpose(1, 2) / positions
    own = own - got_sum @ mean
    rows = torch.from_numpy(weight.reshape(own.shape[0], -1, own.shape[1])).double()
    return Moments(own, made - wanted_sum @ mean - rows @ own, positions)


def _products(
    node: Node, weight: np.ndarray, count: float, exact: torch.Tensor, rough: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Of some positions of one sample: moments of the rough input, with the exact output; sums; how many."""
    with torch.inference_mode():
        wanted, got = _positions(node, weight, count, exact, rough)
        turned = got.transpose(1, 2)
        own, made = torch.bmm(got, turned).double(), torch.bmm(wanted, turned).double()
        return own, made, _total(wanted), _total(got), got.shape[2]


def _total(columns: torch.Tensor) -> torch.Tensor:
    """float64 (G, K, 1): the sum over positions."""
    return columns.sum(2, keepdim=True).double()


def _positions(
    node: Node, weight: np.ndarray, count: float, output: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """An even grid of ``count`` positions or some more: outputs (G, O / G, P), and what they are made of (G, K, P)."""
    op = node.op
    if isinstance(op, ops.Linear):
        rows = (each.reshape(1, -1, each.shape[-1]) for each in (output, values))
        made, read = (each[:, :: max(int(each.shape[1] / count), 1)].transpose(1, 2) for each in rows)
        return made, read
    if not isinstance(op, ops.Conv):
        raise TypeError(f"{node.describe()} is no convolution")
    values, strides, dilations, kernel = _padded(op, values), op.strides, op.dilations, weight.shape[2:]
    if values.dim() == 3:
        values, output = values.unsqueeze(2), output.unsqueeze(2)
        strides, dilations, kernel = (1, *strides), (1, *dilations), (1, *kernel)
    over = output.shape[0] * output.shape[2] * output.shape[3] / count
    down = max(min(int(over**0.5), output.shape[2]), 1)
    along = max(int(over / down), 1)
    steps = (strides[0] * down, strides[1] * along)
    if set(kernel) == {1}:
        columns = values[:, :, :: steps[0], :: steps[1]].flatten(2)
    else:
        columns = torch.nn.functional.unfold(values, kernel, dilations, 0, steps)
    made = output[:, :, ::down, ::along].flatten(2)
    return _by_group(made, op.groups), _by_group(columns, op.groups)


def _by_group(columns: torch.Tensor, groups: int) -> torch.Tensor:
    """(N, G * K, P) as (G, K, N * P)."""
    return columns.transpose(0, 1).reshape(groups, -1, columns.shape[0] * columns.shape[2])


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
    shift = torch.linalg.solve(hessian, moments.lack.transpose(1, 2))
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
