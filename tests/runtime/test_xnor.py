"""Products of signs by bit operations: the bits of the reference, and the sums of plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.graph import Graph, Quantization, TensorType, ops, validate
from kvant.runtime import QuantizedModel

from .graphs import random_integers, typed

SIGNS = TensorType("uint8", Quantization((0.5,), 1, bits=2))


def sign_graph(
    op: ops.AnyOp, x_shape: tuple[int, ...], values: np.ndarray, table: np.ndarray, bias: np.ndarray | None
) -> Graph:
    """uint8 -> table -> a layer with these weights."""
    graph = Graph()
    graph.add_input("x", x_shape, typed("uint8", 0.1))
    graph.add_node(ops.Table(), ["x", graph.add_constant("table", table)], "signs", SIGNS)
    scales = tuple(float(np.float32(0.01 * (1 + index % 7))) for index in range(len(values)))
    inputs = ["signs", graph.add_constant("w", values, Quantization(scales, 0, 0))]
    if bias is not None:
        inputs.append(graph.add_constant("b", bias.astype(np.int32)))
    graph.add_node(op, inputs, "y", typed("int16", 0.005))
    graph.outputs = ("y",)
    validate(graph)
    return graph


SIGN_TABLE = np.where(np.arange(256) >= 120, 2, 0).astype(np.uint8)
# Also a 0 in the middle: what is neither -1 nor 1 does not count.
TERNARY_TABLE = np.select([np.arange(256) > 150, np.arange(256) < 90], [2, 0], 1).astype(np.uint8)


def run(graph: Graph, x: np.ndarray, algorithm: str = "xnor") -> np.ndarray:
    model = QuantizedModel(graph, backend="native")
    assert [entry.algorithm for entry in model.algorithms()] == [algorithm]
    found = model(x)
    np.testing.assert_array_equal(found, QuantizedModel(graph, backend="reference")(x))
    return np.asarray(found)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rank = data.draw(st.sampled_from([1, 2, 2]))

    def pick(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    depth = data.draw(st.sampled_from([8, 9, 63, 64, 65, 130]))
    outputs = groups * data.draw(st.integers(1, 9))
    kernel, strides, dilations, begin, end = pick(1, 4), pick(1, 3), pick(1, 2), pick(0, 3), pick(0, 3)
    least = max((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    shape = (data.draw(st.integers(1, 2)), depth * groups, *(data.draw(st.integers(least, least + 40)) for _ in kernel))
    values = rng.choice(np.array([-1, 1], np.int8), (outputs, depth, *kernel))
    table = data.draw(st.sampled_from([SIGN_TABLE, TERNARY_TABLE]))
    op = ops.Conv(strides, begin, end, dilations, groups, data.draw(st.sampled_from([None, (0.0, None), (-1.0, 1.0)])))
    bias = rng.integers(-500, 500, outputs) if data.draw(st.booleans()) else None
    x = random_integers(rng, shape, "uint8", data.draw(st.booleans()))
    run(sign_graph(op, shape, values, table, bias), x)


def test_sums_are_those_of_signs() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice(np.array([-1, 1], np.int8), (12, 70, 3, 3))
    x = random_integers(rng, (2, 70, 9, 8), "uint8")
    bias = rng.integers(-50, 50, 12)
    graph = sign_graph(ops.Conv((1, 2), (1, 1), (1, 1), (1, 1)), x.shape, values, SIGN_TABLE, bias)
    signs = np.where(x >= 120, 1.0, -1.0)
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(signs), torch.from_numpy(values).double(), torch.from_numpy(bias).double(), (1, 2), (1, 1)
    ).numpy()
    scales = graph.types["w"].quantization.scales().astype(np.float64).reshape(1, -1, 1, 1)
    multiplier = (0.5 * scales / np.float64(np.float32(0.005))).astype(np.float32)
    wanted = np.rint(sums.astype(np.float32) * multiplier)
    np.testing.assert_array_equal(run(graph, x), wanted)


@pytest.mark.parametrize("rows", [(), (1,), (3, 50)])
def test_linear_layers(rows: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    values = rng.choice(np.array([-1, 1], np.int8), (37, 200))
    x = random_integers(rng, (*rows, 200), "uint8")
    run(sign_graph(ops.Linear((0.0, None)), x.shape, values, SIGN_TABLE, None), x)


def test_sizes_that_were_not_planned() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice(np.array([-1, 1], np.int8), (5, 16, 3, 3))
    graph = sign_graph(ops.Conv((1, 1), (1, 1), (1, 1), (1, 1)), (1, 16, 4, 4), values, SIGN_TABLE, None)
    graph.inputs = (type(graph.inputs[0])("x", graph.types["x"], (("n",), 16, ("h",), ("w",))),)
    graph.example = {"n": 1, "h": 4, "w": 4}
    run(graph, random_integers(rng, (3, 16, 70, 5), "uint8"))


@pytest.mark.parametrize(
    ("change", "algorithm"),
    [("weights", "direct"), ("table", "direct"), ("few channels", "depthwise"), ("no table", "direct")],
)
def test_what_is_no_product_of_signs_runs_as_ever(change: str, algorithm: str) -> None:
    rng = np.random.default_rng(4)
    groups = 16 if change == "few channels" else 1
    values = rng.choice(np.array([-1, 1], np.int8), (16, 16 // groups, 3, 3))
    table = SIGN_TABLE.copy()
    if change == "weights":
        values[3, 2, 1, 1] = 127  # whose square is 1 modulo 256
    if change == "table":
        table[7] = 3
    op = ops.Conv((1, 1), (1, 1), (1, 1), (1, 1), groups)
    graph = sign_graph(op, (1, 16, 9, 9), values, table, None)
    if change == "no table":
        graph.nodes[0] = type(graph.nodes[0])(ops.Requantize(), ("x",), "signs")
        graph.replace_nodes(graph.nodes)
    run(graph, random_integers(rng, (1, 16, 9, 9), "uint8"), algorithm)
