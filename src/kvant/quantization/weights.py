"""Weights and biases: from float32 to integers, by a scheme."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvant.errors import AccumulatorOverflowError, RecipeError
from kvant.graph import Node, Quantization, TensorType
from kvant.quantization.grids import FINE, INT8, Grid, grid_of
from kvant.quantization.ranges import MAX_SCALE, MIN_SCALE, scale_of
from kvant.quantization.scales import (
    Rows,
    fit_codebook,
    fit_factors,
    fit_scale,
    fit_shift,
    power_of_two,
    safe,
    shift_at,
)
from kvant.quantization.schemes import INT8_WEIGHTS, WeightScheme
from kvant.runtime import INT32_MAX, furthest

# The part of an int32 accumulator that a bias may take: half.
_BIAS_LIMIT = 2.0**30
# Sums beyond int32 take up to four times as long. To stay within it, fine weights may lose three of their 14 bits: what
# is left is 18 dB finer than int8.
_MOST_BITS = 3
# Weights of a whole network that its one scale is judged by.
_NETWORK_WEIGHTS = 1 << 20
# Not the default, so that nothing tries to improve it.
_UNQUANTIZED = WeightScheme(16)


@dataclass(frozen=True)
class QuantizedWeight:
    """Values of a weight's shape, int8 or int16, and float32 scales (O), one for each channel of axis 0.

    Attributes:
        values: the integers; or the float32 weight itself, of a layer that is not quantized.
        scale: the reals that 1 stands for.
        grid: the integers that the values were chosen from.
        scheme: what was wished for.
    """

    values: np.ndarray
    scale: np.ndarray
    grid: Grid = INT8
    scheme: WeightScheme = INT8_WEIGHTS

    @property
    def rounds_anew(self) -> bool:
        """Whether the values may be rounded again to make up for each other's errors."""
        return self.values.dtype != np.float32 and self.scheme.rounding == "half_even"

    def dequantize(self) -> np.ndarray:
        """The float32 weight that the integers stand for."""
        column = self.scale.reshape(-1, *[1] * (self.values.ndim - 1))
        return np.asarray(self.values * column, np.float32)

    def quantization(self) -> Quantization:
        """Scales as the graph stores them: one, where all channels have the same."""
        group = None
        if self.grid.factors is not None and self.scheme.group is not None:
            group = self.scheme.group * int(np.prod(self.values.shape[2:], dtype=np.int64))
        if len(self.scale) == 1 or (self.scheme.granularity != "channel" and (self.scale == self.scale[0]).all()):
            return Quantization((float(self.scale[0]),), 0, None, group=group)
        return Quantization(tuple(float(value) for value in self.scale), 0, 0, group=group)


def quantize_weight(
    weight: np.ndarray,
    moment: np.ndarray | None,
    scheme: WeightScheme,
    *,
    name: str = "",
    network_scale: float | None = None,
) -> QuantizedWeight:
    """Round ``weight`` to integers, with one scale for each output channel.

    Args:
        weight: float32 (O, ...).
        moment: second moments of the inputs, broadcastable to ``weight``: the error that counts is the one that the
            layer's output sees. None weighs all alike.
        scheme: what the integers are to be.
        name: of the layer; stochastic rounding draws other numbers for each.
        network_scale: the one scale of ``granularity="network"`` (``network_scales``).
    """
    flat = torch.from_numpy(weight.reshape(weight.shape[0], -1))
    grid, scale = _fit(flat, _flat_moment(weight, moment), weight, scheme, network_scale)
    generator = torch.Generator().manual_seed(scheme.seed ^ zlib.crc32(name.encode()))
    values = grid.round(flat / scale[:, None], scheme.rounding, generator)
    return QuantizedWeight(_integers(values, weight, grid), scale.numpy(), grid, scheme)


def _fit(
    flat: torch.Tensor, moment: torch.Tensor | None, weight: np.ndarray, scheme: WeightScheme, fixed: float | None
) -> tuple[Grid, torch.Tensor]:
    """The grid and the scale of each row."""
    grid, rows = grid_of(scheme), Rows(flat, moment)
    if scheme.granularity == "group" and scheme.group is not None:
        return fit_factors(rows, grid, scheme, scheme.group * int(np.prod(weight.shape[2:], dtype=np.int64)))
    whole = rows if scheme.granularity == "channel" else rows.joined()
    if scheme.form == "codebook":
        grid, scale = fit_codebook(whole, scheme, fixed)
    elif scheme.form == "asymmetric":
        scale, shift = fit_shift(whole, grid, scheme)
        grid = replace(grid, shift=shift.expand(len(flat), 1))
    else:
        scale = fit_scale(whole, grid, scheme)
    if fixed is not None:
        scale = torch.full_like(scale, fixed)
        if grid.shift is not None:
            grid = replace(grid, shift=shift_at(fixed, whole, grid).expand(len(flat), 1))
    return grid, scale.expand(len(flat)).contiguous()


def network_scales(weights: Mapping[str, np.ndarray], schemes: Mapping[str, WeightScheme]) -> dict[str, float]:
    """The scale that all layers of a scheme with ``granularity="network"`` share, by the layer's name.

    Args:
        weights: float32 weights of the layers, by name.
        schemes: of the same layers.
    """
    found: dict[str, float] = {}
    for scheme in {entry for entry in schemes.values() if entry.granularity == "network"}:
        names = [name for name, entry in schemes.items() if entry == scheme]
        total = sum(weights[name].size for name in names)
        step = max(total // _NETWORK_WEIGHTS, 1)
        sample = torch.cat([torch.from_numpy(weights[name].reshape(-1)[::step]) for name in names])
        extremes = [torch.tensor([float(weights[name].min()), float(weights[name].max())]) for name in names]
        _, scale = _fit(torch.cat([sample, *extremes])[None], None, np.empty((1, 1)), scheme, None)
        found |= dict.fromkeys(names, float(scale[0]))
    return found


def _integers(values: torch.Tensor, weight: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray(values.numpy().astype(grid.dtype).reshape(weight.shape))


def fine_weight(weight: np.ndarray) -> QuantizedWeight:
    """Round ``weight`` (float32, (O, ...)) to int16 in [-8191, 8191] with one scale for each output channel."""
    flat = weight.reshape(weight.shape[0], -1)
    scale = safe(torch.from_numpy(np.abs(flat).max(axis=1) / np.float32(FINE.high)))
    values = FINE.nearest(torch.from_numpy(flat) / scale[:, None])
    return QuantizedWeight(_integers(values, weight, FINE), scale.numpy(), FINE)


def unquantized(weight: np.ndarray, node: Node, *, half: bool) -> QuantizedWeight:
    """``weight`` as it is, or as the nearest float16: float32 values and scales of 1.

    Raises:
        RecipeError: a weight is beyond float16.
    """
    if half and np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise RecipeError(
            f"{node.describe()}: weights up to {np.abs(weight).max():.4g} do not fit float16; use arithmetic='float'"
        )
    if half:
        weight = weight.astype(np.float16).astype(np.float32)
    return QuantizedWeight(weight, np.ones(len(weight), np.float32), FINE, _UNQUANTIZED)


def _flat_moment(weight: np.ndarray, moment: np.ndarray | None) -> torch.Tensor | None:
    if moment is None:
        return None
    full = np.broadcast_to(moment, weight.shape).reshape(weight.shape[0], -1)
    # Channels that calibration never excited still deserve a little care.
    floor = 1e-6 * full.mean(axis=1, keepdims=True)
    return torch.from_numpy(np.ascontiguousarray(full + floor, dtype=np.float32))


def fit_bias(weight: np.ndarray, quantized: QuantizedWeight, bias: np.ndarray, input_scale: float) -> QuantizedWeight:
    """Coarsen the scale of channels whose bias would not fit the accumulator beside it (dead channels, mostly)."""
    needed = np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT)
    short = needed > quantized.scale
    if not short.any():
        return quantized
    scale = np.where(short, np.nextafter(needed.astype(np.float32), np.float32(np.inf)), quantized.scale)
    return _coarsened(weight, quantized, scale)


def fit_sums(
    weight: np.ndarray, quantized: QuantizedWeight, bias: np.ndarray | None, source: TensorType
) -> QuantizedWeight:
    """Coarsen fine weights by as many bits as keep the sums of each channel within int32, if those are few.

    By whole bits, so that layers which share weights mostly go on doing so, whatever they read.
    """
    if quantized.grid is not FINE or quantized.values.dtype == np.float32:
        return quantized
    fitted = quantized
    for _ in range(_MOST_BITS + 1):
        short = _sums(fitted, bias, source) > INT32_MAX
        if not short.any():
            return fitted
        fitted = _coarsened(weight, quantized, np.where(short, 2 * fitted.scale, fitted.scale).astype(np.float32))
    return quantized


def _sums(weight: QuantizedWeight, bias: np.ndarray | None, source: TensorType) -> np.ndarray:
    """What the sums of each channel cannot exceed."""
    sums = furthest(source) * np.abs(weight.values.reshape(len(weight.values), -1).astype(np.float64)).sum(axis=1)
    if bias is not None:
        sums += np.abs(bias.astype(np.float64)) / (scale_of(source) * weight.scale.astype(np.float64))
    return np.asarray(sums)


def _coarsened(weight: np.ndarray, quantized: QuantizedWeight, scale: np.ndarray) -> QuantizedWeight:
    """Round channels anew whose scales have changed."""
    changed = scale != quantized.scale
    scale = np.clip(scale, MIN_SCALE, MAX_SCALE).astype(np.float32)
    if quantized.scheme.form == "power_of_two":
        scale = power_of_two(torch.from_numpy(scale)).numpy()
    rows = torch.from_numpy(weight.reshape(len(weight), -1) / scale[:, None])
    anew = _integers(quantized.grid.nearest(rows), weight, quantized.grid)
    column = changed.reshape(-1, *[1] * (weight.ndim - 1))
    return replace(quantized, values=np.where(column, anew, quantized.values), scale=scale)


def quantize_bias(bias: np.ndarray, input_scale: float, weight_scale: np.ndarray, activation: str) -> np.ndarray:
    """rne(bias / (input scale * weight scale)) as int32, or as int64 where int16 activations need it.

    Raises:
        AccumulatorOverflowError: an entry does not fit the accumulator.
    """
    values = np.rint(bias.astype(np.float64) / (np.float64(input_scale) * weight_scale.astype(np.float64)))
    largest = np.abs(values).max(initial=0)
    if largest <= _BIAS_LIMIT + 1024:
        return values.astype(np.int32)
    if activation == "int16" and largest < 2.0**62:
        return values.astype(np.int64)
    raise AccumulatorOverflowError(
        f"a bias of {float(np.abs(bias).max()):.4g} does not fit the accumulator at input scale {input_scale:.4g}"
    )
