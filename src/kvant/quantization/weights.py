"""Weights and biases: from float32 to integers, one scale for each output channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvant.errors import AccumulatorOverflowError
from kvant.graph import Quantization
from kvant.quantization.ranges import MAX_SCALE, MIN_SCALE

# Integers of a weight reach as far on either side: int8, and the 14 bits that fine weights take of their int16, few
# enough that int32 surely holds eight products with int16 activations.
HIGHEST = 127
HIGHEST_FINE = 8191
# The part of an int32 accumulator that a bias may take: half.
_BIAS_LIMIT = 2.0**30
# Weights of a row that its scale is judged by, at least; and weights that are searched together, in the cache.
_JUDGED = 4096
_CACHED = 1 << 18
_CANDIDATES = torch.cat([torch.linspace(1.0, 0.7, 31), torch.linspace(0.68, 0.3, 20)])


@dataclass(frozen=True)
class QuantizedWeight:
    """Values of a weight's shape, int8 or fine in int16, and float32 scales (O), one for each channel of axis 0."""

    values: np.ndarray
    scale: np.ndarray

    @property
    def fine(self) -> bool:
        """Whether the values have 14 bits instead of 8."""
        return self.values.dtype == np.int16

    @property
    def highest(self) -> int:
        """How far the integers may reach on either side."""
        return HIGHEST_FINE if self.fine else HIGHEST

    def dequantize(self) -> np.ndarray:
        """The float32 weight that the integers stand for."""
        column = self.scale.reshape(-1, *[1] * (self.values.ndim - 1))
        return np.asarray(self.values * column, np.float32)

    def quantization(self) -> Quantization:
        """Scales as the graph stores them."""
        return Quantization(tuple(float(value) for value in self.scale), 0, 0)


def quantize_weight(weight: np.ndarray, moment: np.ndarray | None, method: str) -> QuantizedWeight:
    """Round ``weight`` to int8 in [-127, 127] with one scale for each output channel.

    Args:
        weight: float32 (O, ...).
        moment: second moments of the inputs, broadcastable to ``weight``: the error that counts is the one that the
            layer's output sees. None weighs all alike.
        method: "mse" tries smaller ranges and keeps the best one for each channel; "minmax" clips nothing.
    """
    flat = torch.from_numpy(weight.reshape(weight.shape[0], -1))
    largest = flat.abs().amax(1)
    scale = _safe(largest / HIGHEST)
    if method == "mse" and flat.shape[1] > 1:
        scale = _search(flat, _flat_moment(weight, moment), largest)
    values = torch.round(flat / scale[:, None]).clamp_(-HIGHEST, HIGHEST)
    return QuantizedWeight(values.to(torch.int8).numpy().reshape(weight.shape), scale.numpy())


def fine_weight(weight: np.ndarray) -> QuantizedWeight:
    """Round ``weight`` (float32, (O, ...)) to int16 in [-8191, 8191] with one scale for each output channel."""
    flat = weight.reshape(weight.shape[0], -1)
    scale = _safe(torch.from_numpy(np.abs(flat).max(axis=1) / np.float32(HIGHEST_FINE))).numpy()
    return _rounded(weight, scale, fine=True)


def _rounded(weight: np.ndarray, scale: np.ndarray, fine: bool) -> QuantizedWeight:
    highest, dtype = (HIGHEST_FINE, np.int16) if fine else (HIGHEST, np.int8)
    column = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return QuantizedWeight(np.clip(np.rint(weight / column), -highest, highest).astype(dtype), scale)


def _flat_moment(weight: np.ndarray, moment: np.ndarray | None) -> torch.Tensor | None:
    if moment is None:
        return None
    full = np.broadcast_to(moment, weight.shape).reshape(weight.shape[0], -1)
    # Channels that calibration never excited still deserve a little care.
    floor = 1e-6 * full.mean(axis=1, keepdims=True)
    return torch.from_numpy(np.ascontiguousarray(full + floor, dtype=np.float32))


def _search(flat: torch.Tensor, moment: torch.Tensor | None, largest: torch.Tensor) -> torch.Tensor:
    """The best scale of each row. Long rows are judged by an even choice of their weights."""
    step = max(flat.shape[1] // _JUDGED, 1)
    rows = max(_CACHED // min(flat.shape[1], _JUDGED), 1)
    parts = [slice(first, first + rows) for first in range(0, len(flat), rows)]
    return torch.cat(
        [
            _search_rows(flat[part, ::step], None if moment is None else moment[part, ::step], largest[part])
            for part in parts
        ]
    )


def _search_rows(flat: torch.Tensor, moment: torch.Tensor | None, largest: torch.Tensor) -> torch.Tensor:
    best = torch.full_like(largest, torch.inf)
    chosen = _safe(largest / HIGHEST)
    for share in _CANDIDATES:
        scale = _safe(share * largest / HIGHEST)
        error = torch.round(flat / scale[:, None]).clamp_(-HIGHEST, HIGHEST).mul_(scale[:, None]).sub_(flat).square_()
        loss = (error if moment is None else error.mul_(moment)).sum(1)
        better = loss < best
        best = torch.where(better, loss, best)
        chosen = torch.where(better, scale, chosen)
    return chosen


def _safe(scale: torch.Tensor) -> torch.Tensor:
    """Scales within the safe range; a channel of nothing but zeros gets scale 1."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).clamp(MIN_SCALE, MAX_SCALE)


def fit_bias(weight: np.ndarray, quantized: QuantizedWeight, bias: np.ndarray, input_scale: float) -> QuantizedWeight:
    """Coarsen the scale of channels whose bias would not fit the accumulator beside it (dead channels, mostly)."""
    needed = np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT)
    short = needed > quantized.scale
    if not short.any():
        return quantized
    scale = np.where(short, np.nextafter(needed.astype(np.float32), np.float32(np.inf)), quantized.scale)
    scale = np.clip(scale, MIN_SCALE, MAX_SCALE).astype(np.float32)
    return _rounded(weight, scale, quantized.fine)


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
