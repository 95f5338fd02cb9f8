"""Functions of one integer as tables: computed once here in float64, so that no machine computes them again."""

from __future__ import annotations

import numpy as np

from kvant.graph import TensorType, evaluate_program, ops

# Exponentials of a softmax are integers with this many fractional bits (docs/numerics.md).
SOFTMAX_BITS = 20


def quantize_array(values: np.ndarray, type: TensorType) -> np.ndarray:
    """clamp(rne(values / scale) + zero point) as the integers of ``type``, any shape."""
    if type.quantization is None:
        return values.astype(type.numpy)
    low, high = type.integer_range()
    scale = np.float32(type.quantization.scale[0])
    rounded = np.rint(values.astype(np.float32) / scale) + np.float32(type.quantization.zero_point)
    return np.asarray(np.clip(rounded, low, high), type.numpy)


def real_values(type: TensorType) -> np.ndarray:
    """float64: the real that each integer of ``type``'s dtype stands for, from the lowest integer up."""
    low, high = type.stored_range()
    quantization = type.quantization
    if quantization is None:
        raise TypeError(f"{type.dtype} without a scale stands for no reals")
    return np.asarray(quantization.scale[0] * (np.arange(low, high + 1, dtype=np.float64) - quantization.zero_point))


def pointwise_table(op: ops.Pointwise, source: TensorType, target: TensorType, param: np.ndarray | None) -> np.ndarray:
    """The table of ``op`` from ``source``'s integers to ``target``'s: (entries), or (C, entries) with a parameter."""
    reals = real_values(source)
    if param is None:
        return quantize_array(_finite(evaluate_program(op.program, reals)), target)
    rows = [evaluate_program(op.program, reals, np.asarray(value, np.float64)) for value in param.reshape(-1)]
    return quantize_array(_finite(np.stack(rows)), target)


def _finite(values: np.ndarray) -> np.ndarray:
    """Poles (1 / 0, log 0) saturate; what is undefined (0 / 0) becomes 0."""
    return np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=1e30, neginf=-1e30)


def softmax_table(source: TensorType) -> np.ndarray:
    """int32: rne(2**20 * exp(-scale * d)) for the distance d of an integer below the maximum."""
    low, high = source.stored_range()
    if source.quantization is None:
        raise TypeError("softmax on integers needs a scale")
    distance = np.arange(high - low + 1, dtype=np.float64)
    exponentials = np.exp(-np.float64(source.quantization.scale[0]) * distance)
    return np.asarray(np.rint(exponentials * 2**SOFTMAX_BITS), np.int32)
