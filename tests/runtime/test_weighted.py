"""Convolutions, linear layers and matrix products against exact integer arithmetic written another way."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from kvant.errors import AccumulatorOverflowError, GraphError
from kvant.graph import ops

from .graphs import one_op, random_integers, real, run, to_integers, typed, weighted_graph


def requantized(sums: np.ndarray, scale_x: float, scale_w: np.ndarray, y: object) -> np.ndarray:
    """Half-to-even rounding of exact sums by exact fractions, then the clamp; ties aside, float32 may differ by one."""
    quantization = y.quantization  # type: ignore[attr-defined]
    low, high = y.integer_range()  # type: ignore[attr-defined]
    out = np.empty(sums.shape, np.int64)
    for index, value in np.ndenumerate(sums):
        ratio = Fraction(float(np.float32(scale_x))) * Fraction(float(np.float32(scale_w[index[1]])))
        exact = int(value) * ratio / Fraction(quantization.scale[0])
        out[index] = min(max(round(exact) + quantization.zero_point, low), high)
    return out


CONVS = [
    # groups, strides, begin, end, dilations, kernel
    (1, (1, 1), (1, 1), (1, 1), (1, 1), (3, 3)),
    (2, (2, 1), (0, 2), (1, 0), (1, 2), (3, 2)),
    (4, (1, 2), (1, 0), (0, 1), (2, 1), (3, 3)),
    (1, (3, 3), (0, 0), (0, 0), (1, 1), (1, 1)),
]


@pytest.mark.parametrize(("dtype", "weights"), [("uint8", "int8"), ("int16", "int8"), ("uint8", "int16")])
@pytest.mark.parametrize(("groups", "strides", "begin", "end", "dilations", "kernel"), CONVS)
def test_conv_equals_torch_float64_sums(dtype, weights, groups, strides, begin, end, dilations, kernel):
    rng = np.random.default_rng(0)
    x_type, y_type = typed(dtype), typed("uint8", 0.2, 7)
    x = random_integers(rng, (2, 8, 9, 11), dtype)
    weight = random_integers(rng, (8, 8 // groups, *kernel), weights)
    weight = np.maximum(weight, -np.iinfo(weight.dtype).max)
    bias = rng.integers(-5000, 5000, 8)
    scales = (rng.uniform(1e-4, 1e-3, 8) * (1 if weights == "int8" else 2**-8)).astype(np.float32)
    op = ops.Conv(strides, begin, end, dilations, groups)
    result = run(weighted_graph(op, x.shape, x_type, weight, bias, y_type, scales), x)
    centred = torch.from_numpy(x.astype(np.float64) - x_type.quantization.zero_point)
    padded = torch.nn.functional.pad(centred, (begin[1], end[1], begin[0], end[0]))
    sums = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight.astype(np.float64)), torch.from_numpy(bias.astype(np.float64)),
        strides, 0, dilations, groups,
    ).numpy()  # fmt: skip
    expected = requantized(sums, 0.05, scales, y_type)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert np.mean(result == expected) > 0.999


# Whole vectors of every instruction set, one to four of the widest, and what fills none; tiles of pixels and the rest.
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("outputs", [4, 8, 16, 20, 32, 48, 64, 80])
def test_16_bit_results_equal_integer_arithmetic(dtype, outputs):
    rng = np.random.default_rng(0)
    x_type, y_type = typed(dtype), typed("int16", 1e-5 if dtype == "uint8" else 2e-3)
    x, weight = random_integers(rng, (1, 6, 3, 13), dtype), random_integers(rng, (outputs, 6, 1, 1), "int8")
    weight = np.maximum(weight, -127)
    bias, scales = rng.integers(-500, 500, outputs), rng.uniform(1e-4, 1e-3, outputs).astype(np.float32)
    op = ops.Conv((1, 1), (0, 0), (0, 0), (1, 1), 1)
    result = run(weighted_graph(op, x.shape, x_type, weight, bias, y_type, scales), x)
    centred = x.astype(np.int64) - x_type.quantization.zero_point
    sums = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0].astype(np.int64), centred) + bias[:, None, None]
    expected = requantized(sums, 0.05, scales, y_type)
    assert (expected == 32767).any() and (expected == -32768).any() and len(np.unique(expected)) > 50
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert np.mean(result == expected) > 0.99


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "extra", "dilation", "groups"),
    [
        ((3, 2), 2, 1, 1, 1, 1), ((3, 2), 3, 0, 2, 2, 2), ((3, 2), 1, 1, 0, 1, 4), ((2, 2), 2, 0, 0, 1, 1),
        ((3, 3), 2, 1, 1, 1, 1), ((4, 4), 2, 1, 0, 1, 1), ((5, 5), 3, 1, 0, 1, 1), ((2, 4), 4, 0, 2, 1, 1),
        ((3, 3), 2, 1, 0, 1, 1), ((3, 3), 1, 1, 0, 1, 1), ((1, 1), 2, 0, 1, 1, 1),
    ],
)  # fmt: skip
def test_conv_transpose_equals_torch_float64_sums(dtype, kernel, stride, pad, extra, dilation, groups):
    rng = np.random.default_rng(1)
    x_type, y_type = typed(dtype), typed("int16", 0.001)
    x = random_integers(rng, (2, 4, 5, 6), dtype)
    weight = random_integers(rng, (8, 4 // groups, *kernel), "int8")
    op = ops.ConvTranspose((stride,) * 2, (pad,) * 2, (pad,) * 2, (extra,) * 2, (dilation,) * 2, groups)
    result = run(weighted_graph(op, x.shape, x_type, weight, None, y_type), x)
    # PyTorch wants (C, O / groups, KH, KW).
    parts = weight.reshape(groups, 8 // groups, 4 // groups, *kernel)
    grouped = parts.swapaxes(1, 2).reshape(4, 8 // groups, *kernel)
    sums = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x.astype(np.float64) - x_type.quantization.zero_point),
        torch.from_numpy(grouped.astype(np.float64)), None, stride, pad, extra, groups, dilation,
    ).numpy()  # fmt: skip
    expected = requantized(sums, 0.05, np.full(8, 0.01), y_type)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert np.mean(result == expected) > 0.999


def test_conv1d_equals_torch():
    rng = np.random.default_rng(2)
    x = random_integers(rng, (2, 6, 20), "uint8")
    weight = random_integers(rng, (4, 6, 5), "int8")
    result = run(
        weighted_graph(ops.Conv((2,), (3,), (1,), (2,)), x.shape, typed("uint8"), weight, None, typed("int16", 0.01)), x
    )
    centred = torch.nn.functional.pad(torch.from_numpy(x.astype(np.float64) - 120), (3, 1))
    sums = torch.nn.functional.conv1d(centred, torch.from_numpy(weight.astype(np.float64)), None, 2, 0, 2).numpy()
    expected = requantized(sums, 0.05, np.full(4, 0.01), typed("int16", 0.01))
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_linear_is_exact_near_the_int32_bound():
    """Sums beyond 2**31 - 2**20: an int32 accumulator holds them, float32 rounds them once."""
    k = 66_000
    x = np.zeros((2, k), np.uint8)
    x[0] = 255
    weight = np.full((2, k), 127, np.int8)
    weight[1] = -127
    y_type = typed("int16", 100.0)
    bias = np.array([2**31 - 1 - 255 * 127 * k, 0])
    graph = weighted_graph(ops.Linear(), x.shape, typed("uint8", 1.0, 0), weight, bias, y_type, 2.0**-10)
    result = run(graph, x)
    sums = (x.astype(np.int64) @ weight.astype(np.int64).T) + bias
    multiplier = np.float32(2.0**-10 / 100.0)
    expected = np.rint(sums.astype(np.float32) * multiplier).clip(-32768, 32767)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("x_value", [-32768, 32767])
def test_the_largest_16_bit_operands_are_exact(x_value):
    """Every pair of products comes within 2**17 of int32's end; the sums lie far beyond it."""
    x, weight = np.full((3, 515), x_value, np.int16), np.full((19, 515), 32767, np.int16)
    weight[1::2] = -32767
    graph = weighted_graph(ops.Linear(), x.shape, typed("int16", 1.0), weight, None, typed("int16", 2.0**25), 1.0)
    sums = x.astype(np.int64) @ weight.astype(np.int64).T
    expected = np.rint(sums.astype(np.float32) * np.float32(2.0**-25)).astype(np.int64)
    np.testing.assert_array_equal(run(graph, x), expected)
    assert len(np.unique(expected)) == 2


def test_a_weight_of_minus_32768_is_refused():
    weight = np.full((1, 4), -32768, np.int16)
    with pytest.raises(GraphError, match="int16 weights reach from -32767 to 32767"):
        weighted_graph(ops.Linear(), (1, 4), typed("int16"), weight, None, typed("uint8"))


def test_bias_beyond_int64_is_refused():
    weight = np.ones((1, 4), np.int8)
    graph = weighted_graph(ops.Linear(), (1, 4), typed("int16"), weight, np.array([2**63 - 1]), typed("uint8"))
    with pytest.raises(AccumulatorOverflowError, match="linear 'y'"):
        run(graph, np.zeros((1, 4), np.int16))


@pytest.mark.parametrize(("a_dtype", "b_dtype"), [("uint8", "uint8"), ("uint8", "int16"), ("int16", "int16")])
def test_matmul_equals_integer_arithmetic(a_dtype, b_dtype):
    rng = np.random.default_rng(3)
    a, b = random_integers(rng, (2, 1, 5, 17), a_dtype), random_integers(rng, (3, 17, 4), b_dtype)
    a_type, b_type, y_type = typed(a_dtype), typed(b_dtype, 0.01), typed("int16", 0.5)
    result = run(one_op(ops.MatMul(), {"a": (a.shape, a_type), "b": (b.shape, b_type)}, y_type), a, b)
    expected = to_integers(real(a, a_type) @ real(b, b_type), y_type)
    assert result.shape == (2, 3, 5, 4)
    assert np.abs(result - expected).max() <= 1
