"""Reductions, softmax and norms against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from kvant.errors import GraphError
from kvant.graph import TensorType, ops

from .graphs import one_op, random_integers, real, run, to_integers, typed


def exponentials(type: TensorType) -> np.ndarray:
    """The quantizer's table: rne(exp(-scale d) 2^20)."""
    low, high = type.integer_range()
    return np.rint(np.exp(-type.quantization.scale[0] * np.arange(high - low + 1)) * 2**20).astype(np.int32)


@pytest.mark.parametrize("fn", ["mean", "sum", "max", "min"])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (0, 2), (0, 1, 2, 3), (1, 3)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reduce(fn, axes, keepdims):
    x_type, y_type = typed("uint8"), typed("int16", 0.02)
    x = random_integers(np.random.default_rng(0), (2, 3, 4, 5), "uint8")
    result = run(one_op(ops.Reduce(fn, axes, keepdims), {"x": (x.shape, x_type)}, y_type), x)
    exact = getattr(np, fn)(real(x, x_type), axis=axes, keepdims=keepdims)
    assert result.shape == exact.shape
    assert np.abs(result - to_integers(exact, y_type)).max() <= 1


def test_extremes_of_one_type_move_integers():
    x = random_integers(np.random.default_rng(1), (4, 6), "int16")
    graph = one_op(ops.Reduce("min", (1,)), {"x": (x.shape, typed("int16"))}, typed("int16"))
    np.testing.assert_array_equal(run(graph, x), x.min(1))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_within_one_step(dtype, axis):
    x_type, y_type = typed(dtype, 0.05 if dtype == "uint8" else 0.0005), typed("uint8", 1 / 255, 0)
    x = random_integers(np.random.default_rng(2), (3, 7, 5), dtype)
    graph = one_op(ops.Softmax(axis), {"x": (x.shape, x_type)}, y_type, {"e": (exponentials(x_type), None)})
    expected = torch.softmax(torch.from_numpy(real(x, x_type)), axis).numpy()
    assert np.abs(run(graph, x) - to_integers(expected, y_type)).max() <= 1


def test_softmax_without_a_sound_table_is_refused():
    x_type = typed("uint8")
    for table in (np.full(256, -1, np.int32), np.zeros(256, np.int32), np.ones(255, np.int32), np.ones(256, np.int64)):
        graph = one_op(ops.Softmax(0), {"x": ((4,), x_type)}, typed("uint8"), {"e": (table, None)})
        with pytest.raises(GraphError, match="softmax 'y'"):
            run(graph, np.zeros(4, np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_layer_norm_within_one_step(dtype):
    rng = np.random.default_rng(3)
    x_type, y_type = typed(dtype, 0.001), typed("uint8", 0.05)
    x = random_integers(rng, (3, 4, 6, 8), dtype)
    gamma, beta = rng.normal(size=(2, 6, 8)).astype(np.float32)
    graph = one_op(
        ops.LayerNorm(2, 1e-5), {"x": (x.shape, x_type)}, y_type, {"gamma": (gamma, None), "beta": (beta, None)}
    )
    factors = [torch.from_numpy(values).double() for values in (gamma, beta)]
    expected = functional.layer_norm(torch.from_numpy(real(x, x_type)), (6, 8), *factors, 1e-5).numpy()
    assert np.abs(run(graph, x) - to_integers(expected, y_type)).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_group_norm_within_one_step(dtype):
    rng = np.random.default_rng(4)
    x_type, y_type = typed(dtype, 0.01), typed("int16", 0.0005)
    x = random_integers(rng, (2, 6, 5, 7), dtype)
    gamma, beta = rng.normal(size=(2, 6)).astype(np.float32)
    graph = one_op(
        ops.GroupNorm(3, 1e-5), {"x": (x.shape, x_type)}, y_type, {"gamma": (gamma, None), "beta": (beta, None)}
    )
    expected = functional.group_norm(
        torch.from_numpy(real(x, x_type)), 3, torch.from_numpy(gamma).double(), torch.from_numpy(beta).double(), 1e-5
    ).numpy()
    assert np.abs(run(graph, x) - to_integers(expected, y_type)).max() <= 1


def test_norm_of_a_constant_row_is_beta():
    y_type = typed("uint8", 0.5, 10)
    graph = one_op(
        ops.LayerNorm(1, 0.0), {"x": ((1, 4), typed("uint8"))}, y_type,
        {"gamma": (np.ones(4, np.float32), None), "beta": (np.full(4, 2.0, np.float32), None)},
    )  # fmt: skip
    assert run(graph, np.full((1, 4), 99, np.uint8)).tolist() == [[14] * 4]


def test_arg_max_is_the_first_maximum():
    x = np.array([[3, 9, 9], [7, 1, 7]], np.uint8)
    for axis, keepdims in ((1, False), (0, True)):
        graph = one_op(ops.ArgMax(axis, keepdims), {"x": (x.shape, typed("uint8"))}, TensorType("int64"))
        np.testing.assert_array_equal(run(graph, x), x.argmax(axis, keepdims=keepdims))
