"""Weighted layers of float32: the same bits from both back ends, and what exact arithmetic and PyTorch say."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import GraphError
from kvant.format import from_bytes, to_bytes
from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops, validate

from .graphs import run

Weight = tuple[np.ndarray, Quantization | None]


def real_graph(op: ops.AnyOp, shape: tuple[int, ...], weight: Weight, bias: np.ndarray | None) -> Graph:
    graph = Graph()
    graph.add_input("x", shape)
    inputs = ["x", graph.add_constant("w", *weight)]
    if bias is not None:
        inputs.append(graph.add_constant("b", bias))
    graph.add_node(op, inputs, "y")
    graph.outputs = ("y",)
    validate(graph)
    return graph


def floats(data: Any, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=shape) * 10.0 ** data.draw(st.sampled_from([-30, -3, 0, 5, 37]))
    return np.clip(values, -3e38, 3e38).astype(np.float32)


def any_weight(data: Any, shape: tuple[int, ...]) -> Weight:
    if data.draw(st.booleans()):
        return floats(data, shape), None
    return integer_weight(data, shape)


def integer_weight(data: Any, shape: tuple[int, ...]) -> Weight:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype, highest = data.draw(st.sampled_from([(np.int8, 127), (np.int16, 32767)]))
    values = rng.integers(-highest, highest, shape, endpoint=True).astype(dtype)
    if data.draw(st.booleans()):
        return values, Quantization((0.0078125,), 0)
    return values, Quantization(tuple(float(np.float32(s)) for s in rng.uniform(1e-4, 0.1, shape[0])), 0, 0)


CLAMPS = st.sampled_from([None, (0.0, None), (-1.0, 1.0), (None, 3.0)])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2]))

    def pick(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    groups, depth = data.draw(st.sampled_from([1, 1, 2, 4])), data.draw(st.integers(1, 9))
    outputs = groups * data.draw(st.integers(1, 9))
    kernel, strides, dilations, begin, end = pick(1, 4), pick(1, 3), pick(1, 2), pick(0, 3), pick(0, 3)
    least = max((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    shape = (data.draw(st.integers(1, 2)), depth * groups, *(data.draw(st.integers(least, least + 9)) for _ in kernel))
    weight = any_weight(data, (outputs, depth, *kernel))
    bias = floats(data, (outputs,)) if data.draw(st.booleans()) else None
    op = ops.Conv(strides, begin, end, dilations, groups, data.draw(CLAMPS))
    assert np.isfinite(run(real_graph(op, shape, weight, bias), floats(data, shape))).all()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_linear_layers(data: st.DataObject) -> None:
    shape = (*data.draw(st.sampled_from([(), (1,), (3,), (2, 5), (70,)])), data.draw(st.sampled_from([1, 2, 31, 300])))
    dynamic = data.draw(st.booleans())
    make = integer_weight if dynamic else any_weight
    weight = make(data, (data.draw(st.sampled_from([1, 7, 40])), shape[-1]))
    bias = floats(data, weight[0].shape[:1]) if data.draw(st.booleans()) else None
    graph = real_graph(ops.Linear(data.draw(CLAMPS), dynamic), shape, weight, bias)
    assert np.isfinite(run(graph, floats(data, shape))).all()


def test_a_float_convolution_is_what_pytorch_computes_in_double() -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 6, 9, 8), (8, 3, 3, 2), (8,)))
    graph = real_graph(ops.Conv((2, 1), (1, 0), (1, 1), (1, 2), 2, (0.0, None)), x.shape, (w, None), b)
    padded = torch.nn.functional.pad(torch.from_numpy(x).double(), (0, 1, 1, 1))
    wanted = torch.nn.functional.conv2d(
        padded, torch.from_numpy(w).double(), torch.from_numpy(b).double(), (2, 1), 0, (1, 2), 2
    )
    np.testing.assert_allclose(run(graph, x), wanted.clamp_min(0).numpy(), rtol=1e-6, atol=1e-7)


def test_a_row_gets_the_scale_that_its_extremes_want() -> None:
    """By exact fractions, row by row: of both signs, of one, of nothing but 0, and as far apart as can be."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(8, 40)) * [[1], [1e-6], [1e6], [3], [0], [2], [2], [1e-33]]).astype(np.float32)
    x[5], x[6] = np.abs(x[5]), -np.abs(x[6])
    x = np.concatenate([x, np.full((1, 40), np.finfo(np.float32).max, np.float32) * rng.choice([-1, 1], 40)], 0)
    x = x.astype(np.float32)
    values = rng.integers(-127, 128, (7, 40)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 7).astype(np.float32)
    quantization = Quantization(tuple(float(s) for s in scales), 0, 0)
    got = run(real_graph(ops.Linear(dynamic=True), x.shape, (values, quantization), None), x)
    for row, found in zip(x, got, strict=True):
        low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
        scale = max(high / np.float32(255) - low / np.float32(255), np.float32(2.0**-100))
        zero_point = min(round(Fraction(float(-low / scale))), 255)
        q = [min(max(round(Fraction(float(np.float32(v / scale)))), -zero_point), 255 - zero_point) for v in row]
        for weights, own, value in zip(values, scales, found, strict=True):
            exact = (
                sum(a * int(b) for a, b in zip(q, weights, strict=True)) * Fraction(float(scale)) * Fraction(float(own))
            )
            largest = float(np.finfo(np.float32).max)
            assert value == np.float32(min(max(float(exact), -largest), largest))


def test_dynamic_rows_do_not_see_each_other() -> None:
    rng = np.random.default_rng(2)
    values, quantization = rng.integers(-127, 128, (7, 40)).astype(np.int8), Quantization((0.0078125,), 0)
    x = rng.normal(size=(6, 40)).astype(np.float32)
    whole = run(real_graph(ops.Linear(dynamic=True), x.shape, (values, quantization), None), x)
    one = real_graph(ops.Linear(dynamic=True), (1, 40), (values, quantization), None)
    for index in range(6):
        np.testing.assert_array_equal(run(one, x[index : index + 1]), whole[index : index + 1])


UINT8 = TensorType("uint8", Quantization((0.5,), 0))
INT8 = TensorType("int8", Quantization((0.0078125,), 0))


@pytest.mark.parametrize(
    ("op", "x", "weight", "y"),
    [
        (ops.Linear(dynamic=True), UINT8, INT8, UINT8),
        (ops.Linear(), FLOAT32, INT8, UINT8),
        (ops.Linear(), FLOAT32, TensorType("int8"), FLOAT32),
        (ops.Linear(), FLOAT32, TensorType("int32"), FLOAT32),
        (ops.Linear(), FLOAT32, TensorType("int8", Quantization((0.5,), 3)), FLOAT32),
        (ops.Linear(), TensorType("int64"), INT8, FLOAT32),
    ],
)  # fmt: skip
def test_types_that_do_not_go_together(op: ops.AnyOp, x: TensorType, weight: TensorType, y: TensorType) -> None:
    graph = Graph()
    graph.add_input("x", (1, 4), x)
    name = graph.add_constant("w", np.ones((3, 4), weight.numpy), weight.quantization)
    graph.add_node(op, ["x", name], "y", y)
    graph.outputs = ("y",)
    with pytest.raises(GraphError):
        validate(graph)


def test_a_file_says_that_it_holds_reals() -> None:
    graph = real_graph(ops.Linear(), (1, 64), (np.ones((64, 64), np.int8), Quantization((0.5,), 0)), None)
    contents = from_bytes(to_bytes(graph))
    assert contents.info.features == ("packed", "reals")
    plain = real_graph(ops.Linear(), (1, 64), (np.full((64, 64), 1 / 3, np.float32), None), None)
    assert from_bytes(to_bytes(plain)).info.features == ()
    # Reals that float16 holds exactly are kept in half the bytes.
    halves = real_graph(ops.Linear(), (1, 64), (np.ones((64, 64), np.float32), None), None)
    assert from_bytes(to_bytes(halves)).info.features == ("halves",)
