"""Integer weights and biases: bounds, error against brute force, and biases that do not fit."""

import numpy as np
import pytest

from kvant.errors import AccumulatorOverflowError
from kvant.quantization.weights import fit_bias, quantize_bias, quantize_weight

rng = np.random.default_rng(0)


def test_min_max_error_is_at_most_half_a_step() -> None:
    weight = rng.normal(size=(8, 16, 3, 3)).astype(np.float32)
    quantized = quantize_weight(weight, None, "minmax")
    assert np.abs(quantized.values.astype(int)).max() == 127
    step = quantized.scale.reshape(-1, 1, 1, 1)
    assert (np.abs(quantized.dequantize() - weight) <= 0.5001 * step).all()


def test_the_search_never_loses_to_min_max_under_its_own_measure() -> None:
    weight = rng.standard_t(2, size=(32, 64, 1, 1)).astype(np.float32)
    moment = (rng.random((1, 64, 1, 1)) ** 4).astype(np.float32)
    loss = {
        method: ((quantize_weight(weight, moment, method).dequantize() - weight) ** 2 * moment).sum((1, 2, 3))
        for method in ("mse", "minmax")
    }
    assert (loss["mse"] <= loss["minmax"] * 1.0001).all()
    assert loss["mse"].sum() < 0.98 * loss["minmax"].sum()


def test_a_dead_channel_is_zero_with_a_sound_scale() -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[0] = (1.0, -2.0, 0.5)
    quantized = quantize_weight(weight, None, "mse")
    assert not quantized.values[1].any() and quantized.scale[1] == 1.0


def test_a_bias_that_dwarfs_its_weights_coarsens_the_scale() -> None:
    weight = np.full((2, 4), 1e-9, np.float32)
    bias = np.array([5.0, 0.0], np.float32)
    quantized = quantize_weight(weight, None, "minmax")
    with pytest.raises(AccumulatorOverflowError):
        quantize_bias(bias, 1e-3, quantized.scale, "uint8")
    fitted = fit_bias(weight, quantized, bias, 1e-3)
    values = quantize_bias(bias, 1e-3, fitted.scale, "uint8")
    assert values[0] * 1e-3 * fitted.scale[0] == pytest.approx(5.0, rel=1e-6)
    assert fitted.scale[1] == quantized.scale[1]


def test_bias_is_rounded_half_to_even() -> None:
    values = quantize_bias(np.array([0.5, 1.5, -2.5], np.float32), 1.0, np.ones(3, np.float32), "uint8")
    np.testing.assert_array_equal(values, [0, 2, -2])
