"""Pooling and interpolation against torch on dequantized values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from kvant.graph import TensorType, ops

from .graphs import one_op, random_integers, real, run, to_integers, typed

POOLS = [
    # kernel, stride, pad, ceil
    ((2, 2), (2, 2), (0, 0), False),
    ((3, 3), (2, 2), (1, 1), False),
    ((3, 2), (2, 3), (1, 1), True),
    ((5, 3), (1, 2), (2, 0), True),
]


def pixels(x: np.ndarray, type: TensorType) -> torch.Tensor:
    return torch.from_numpy(real(x, type))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("channels", [3, 21, 64, 75])  # less than a vector, vectors, some more
def test_max_pool_moves_integers(dtype, kernel, stride, pad, ceil, dilation, channels):
    type = typed(dtype)
    x = random_integers(np.random.default_rng(0), (2, channels, 11, 12), dtype)
    op = ops.MaxPool(kernel, stride, pad, pad, (dilation,) * 2, ceil)
    expected = functional.max_pool2d(pixels(x, type), kernel, stride, pad, dilation, ceil).numpy()
    np.testing.assert_array_equal(run(one_op(op, {"x": (x.shape, type)}, type), x), to_integers(expected, type))


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [("uint8", "uint8"), ("uint8", "int16"), ("int16", "int16")])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize(("include", "divisor"), [(True, None), (False, None), (True, 7)])
def test_average_pool_counts_as_torch_does(x_dtype, y_dtype, kernel, stride, pad, ceil, include, divisor):
    x_type, y_type = typed(x_dtype), typed(y_dtype, 0.04)
    x = random_integers(np.random.default_rng(1), (2, 3, 11, 12), x_dtype)
    op = ops.AveragePool(kernel, stride, pad, pad, ceil, include, divisor)
    expected = functional.avg_pool2d(pixels(x, x_type), kernel, stride, pad, ceil, include, divisor).numpy()
    result = run(one_op(op, {"x": (x.shape, x_type)}, y_type), x)
    assert np.abs(result - to_integers(expected, y_type)).max() <= 1


def test_pools_along_one_axis():
    type = typed("uint8")
    x = random_integers(np.random.default_rng(2), (2, 3, 13), "uint8")
    expected = functional.max_pool1d(pixels(x, type), 3, 2, 1).numpy()
    result = run(one_op(ops.MaxPool((3,), (2,), (1,), (1,), (1,)), {"x": (x.shape, type)}, type), x)
    np.testing.assert_array_equal(result, to_integers(expected, type))
    expected = functional.avg_pool1d(pixels(x, type), 3, 2, 1).numpy()
    result = run(one_op(ops.AveragePool((3,), (2,), (1,), (1,)), {"x": (x.shape, type)}, type), x)
    assert np.abs(result - to_integers(expected, type)).max() <= 1


@pytest.mark.parametrize("fn", ["average", "max"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 13), (20, 6)])
def test_adaptive_pool(fn, size):
    x_type, y_type = typed("uint8"), typed("int16", 0.001)
    x = random_integers(np.random.default_rng(3), (2, 3, 13, 17), "uint8")
    function = functional.adaptive_avg_pool2d if fn == "average" else functional.adaptive_max_pool2d
    expected = function(pixels(x, x_type), size).numpy()
    result = run(one_op(ops.AdaptivePool(fn, size), {"x": (x.shape, x_type)}, y_type), x)
    assert np.abs(result - to_integers(expected, y_type)).max() <= 1


@pytest.mark.parametrize("x_dtype", ["uint8", "int16"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(14, 18), (5, 3), (7, 20), (1, 1)])
def test_linear_resize_to_a_size(x_dtype, align, size):
    type = typed(x_dtype)
    x = random_integers(np.random.default_rng(4), (2, 3, 7, 9), x_dtype)
    expected = functional.interpolate(pixels(x, type), size, mode="bilinear", align_corners=align).numpy()
    result = run(one_op(ops.Resize("linear", size, align_corners=align), {"x": (x.shape, type)}, type), x)
    # The weights are rounded to 1/2048, which for 16 bits is more than one step of the output.
    steps = 1 if x_dtype == "uint8" else 65535 / 2048 + 1
    assert np.abs(result - to_integers(expected, type)).max() <= steps


@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.5, 0.7), (3.3, 1.0)])
def test_linear_resize_by_a_scale_and_along_one_axis(scale):
    type = typed("uint8")
    x = random_integers(np.random.default_rng(5), (1, 2, 7, 10), "uint8")
    expected = functional.interpolate(pixels(x, type), scale_factor=scale, mode="bilinear").numpy()
    result = run(one_op(ops.Resize("linear", scale=scale), {"x": (x.shape, type)}, type), x)
    assert np.abs(result - to_integers(expected, type)).max() <= 1
    row = x[:, :, 0]
    expected = functional.interpolate(pixels(row, type), scale_factor=scale[0], mode="linear").numpy()
    result = run(one_op(ops.Resize("linear", scale=scale[:1]), {"x": (row.shape, type)}, type), row)
    assert np.abs(result - to_integers(expected, type)).max() <= 1
