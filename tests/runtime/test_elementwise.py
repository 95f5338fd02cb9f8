"""Quantization, rescaling, tables and binary functions against real arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.errors import GraphError
from kvant.graph import FLOAT32, ops

from .graphs import one_op, random_integers, real, run, to_integers, typed

PAIRS = [("uint8", "uint8"), ("uint8", "int16"), ("int16", "uint8"), ("int16", "int16")]


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_quantize_rounds_half_to_even_and_saturates(dtype):
    y = typed(dtype, 0.5, 3 if dtype == "uint8" else 0)
    x = np.array([0.25, 0.75, 1.25, -0.25, 0.0, 1e30, -1e30, 3.4e38], np.float32)
    result = run(one_op(ops.Quantize(), {"x": (x.shape, FLOAT32)}, y), x)
    low, high = y.integer_range()
    zero = y.quantization.zero_point
    assert result.tolist() == [zero, zero + 2, zero + 2, zero, zero, high, low, high]


def test_dequantize_is_one_product():
    x = np.arange(256, dtype=np.uint8)
    result = run(one_op(ops.Dequantize(), {"x": (x.shape, typed("uint8", 0.1, 7))}, FLOAT32), x)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, (np.arange(256) - 7).astype(np.float32) * np.float32(0.1))


@pytest.mark.parametrize(("x_dtype", "y_dtype"), PAIRS)
def test_rescale_is_the_nearest_integer(x_dtype, y_dtype):
    x_type, y_type = typed(x_dtype), typed(y_dtype, 0.07)
    x = random_integers(np.random.default_rng(0), (1000,), x_dtype)
    result = run(one_op(ops.Requantize(), {"x": (x.shape, x_type)}, y_type), x)
    assert np.abs(result - to_integers(real(x, x_type), y_type)).max() <= 1


@pytest.mark.parametrize("fn", ["add", "sub", "mul", "div", "min", "max"])
@pytest.mark.parametrize(("a_dtype", "b_dtype"), PAIRS)
def test_binary_with_broadcasting(fn, a_dtype, b_dtype):
    rng = np.random.default_rng(1)
    a_type, b_type, y_type = typed(a_dtype, 0.01), typed(b_dtype, 0.02), typed("int16", 0.5)
    a, b = random_integers(rng, (2, 3, 1, 5), a_dtype), random_integers(rng, (3, 4, 1), b_dtype)
    result = run(one_op(ops.Binary(fn), {"a": (a.shape, a_type), "b": (b.shape, b_type)}, y_type), a, b)
    functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum}
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.nan_to_num(functions.get(fn, np.maximum)(real(a, a_type), real(b, b_type)), posinf=1e9, neginf=-1e9)
    assert result.shape == (2, 3, 4, 5)
    assert np.abs(result - to_integers(exact, y_type)).max() <= 1


@pytest.mark.parametrize("fn", ["add", "mul"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((2, 70, 3, 5), (2, 1, 1, 5)),
        ((3, 2000, 7), (7,)),
        ((2, 3, 600), (2, 1, 600)),
        ((1, 5, 1), (1, 1, 1)),
        ((4, 1, 9), (4, 1, 9)),
    ],
)
def test_binary_of_one_type_where_a_row_meets_many(fn, dtype, shape, other):
    rng = np.random.default_rng(1)
    a_type, b_type, y_type = typed(dtype, 0.01), typed(dtype, 0.02), typed(dtype, 0.5 if fn == "mul" else 0.03)
    a, b = random_integers(rng, shape, dtype), random_integers(rng, other, dtype)
    exact = to_integers({"add": np.add, "mul": np.multiply}[fn](real(a, a_type), real(b, b_type)), y_type)
    result = run(one_op(ops.Binary(fn), {"a": (shape, a_type), "b": (other, b_type)}, y_type), a, b)
    turned = run(one_op(ops.Binary(fn), {"b": (other, b_type), "a": (shape, a_type)}, y_type), b, a)
    assert np.abs(result.astype(int) - exact).max() <= 1
    np.testing.assert_array_equal(result, turned)


def test_division_by_zero_has_a_meaning():
    x_type, y_type = typed("uint8", 1.0, 10), typed("uint8", 1.0, 100)
    a, b = np.array([10, 20, 0], np.uint8), np.array([10, 10, 10], np.uint8)
    graph = one_op(ops.Binary("div"), {"a": ((3,), x_type), "b": ((3,), x_type)}, y_type)
    assert run(graph, a, b).tolist() == [100, 255, 0]


def test_binary_takes_a_constant_and_clamps_in_real_values():
    x_type, y_type = typed("uint8", 0.1, 0), typed("uint8", 0.1, 50)
    constant = np.array([[3], [-3]], np.int8)
    graph = one_op(
        ops.Binary("add", (0.0, 6.0)),
        {"x": ((2, 4), x_type)},
        y_type,
        {"c": (constant, typed("int8", 1.0).quantization)},
    )
    result = run(graph, np.array([[0, 10, 29, 31], [0, 29, 30, 200]], np.uint8))
    assert result.tolist() == [[80, 90, 109, 110], [50, 50, 50, 110]]


@pytest.mark.parametrize("size", [1, 5, 67, 1500])
@pytest.mark.parametrize(("dtype", "entries"), [("uint8", 256), ("int8", 256), ("int16", 65536)])
def test_table_looks_up_by_distance_from_the_lowest(dtype, entries, size):
    rng = np.random.default_rng(2)
    x = random_integers(rng, (2, 3, size), dtype)
    low = int(np.iinfo(dtype).min)
    table = rng.integers(0, 255, entries).astype(np.uint8)
    graph = one_op(ops.Table(), {"x": (x.shape, typed(dtype))}, typed("uint8"), {"t": (table, None)})
    np.testing.assert_array_equal(run(graph, x), table[x.astype(int) - low])
    tables = rng.integers(0, 255, (3, entries)).astype(np.uint8)
    graph = one_op(ops.Table(1), {"x": (x.shape, typed(dtype))}, typed("uint8"), {"t": (tables, None)})
    expected = np.stack([tables[c][x[:, c].astype(int) - low] for c in range(3)], 1)
    np.testing.assert_array_equal(run(graph, x), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("entry", ["uint8", "int16"])
@pytest.mark.parametrize("channels", [2, 37])
def test_tables_of_channels_that_lie_side_by_side(dtype, entry, channels):
    rng = np.random.default_rng(3)
    x = random_integers(rng, (5, 301, channels), dtype)
    low, entries = int(np.iinfo(dtype).min), 2 ** np.iinfo(dtype).bits
    tables = random_integers(rng, (channels, entries), entry)
    graph = one_op(ops.Table(2), {"x": (x.shape, typed(dtype))}, typed(entry), {"t": (tables, None)})
    expected = np.stack([tables[c][x[..., c].astype(int) - low] for c in range(channels)], 2)
    np.testing.assert_array_equal(run(graph, x), expected)


def test_a_table_of_the_wrong_length_is_refused():
    graph = one_op(ops.Table(), {"x": ((4,), typed("uint8"))}, typed("uint8"), {"t": (np.zeros(255, np.uint8), None)})
    with pytest.raises(GraphError, match="256"):
        run(graph, np.zeros(4, np.uint8))


def test_scales_too_far_apart_are_refused():
    graph = one_op(ops.Requantize(), {"x": ((4,), typed("uint8", 1e30))}, typed("uint8", 1e-30))
    with pytest.raises(GraphError, match="requantize 'y'"):
        run(graph, np.zeros(4, np.uint8))


def test_int16_has_zero_point_0():
    with pytest.raises(GraphError, match="zero point 5; int16 has zero point 0"):
        one_op(ops.Requantize(), {"x": ((4,), typed("int16", 0.1, 5))}, typed("uint8"))
