"""Whole random graphs: chains and branches of many operators give the same bits on both back ends, at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.graph import FLOAT32, Graph, infer_shapes, ops, validate
from kvant.runtime import QuantizedModel

from .graphs import typed
from .networks import add_conv, image

CHANNELS = 4


def _step(draw: Any, graph: Graph, tensors: list[str], index: int) -> str:
    """Append one node that keeps batch and channels; its height and width may be those of any size."""
    x = draw(st.sampled_from(tensors))
    type, name = graph.types[x], f"t{index}"
    target = typed(draw(st.sampled_from(["uint8", "int16"])), 0.1)
    kinds = (
        "conv", "depthwise", "add", "mul", "pool", "average", "slice", "pad", "table", "flip", "residual", "join",
    )  # fmt: skip
    match draw(st.sampled_from(kinds)):
        case "conv":
            return add_conv(graph, x, name, CHANNELS, channels=CHANNELS, seed=index, output=target.dtype)
        case "depthwise":
            return add_conv(graph, x, name, CHANNELS, depthwise=True, channels=CHANNELS, seed=index)
        case "add" | "mul" as fn:
            return graph.add_node(ops.Binary(fn), [x, x], name, target)  # type: ignore[arg-type]
        case "residual":
            y = add_conv(graph, x, f"{name}.conv", CHANNELS, channels=CHANNELS, seed=index)
            return graph.add_node(ops.Binary("add"), [y, x], name, typed("uint8", 0.15))
        case "join":
            return _join(draw, graph, x, name, index)
        case "pool":
            return graph.add_node(ops.MaxPool((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), [x], name, type)
        case "average":
            return graph.add_node(ops.AveragePool((3, 3), (1, 1), (1, 1), (1, 1)), [x], name, target)
        case "slice":
            return graph.add_node(ops.Slice(3, 1), [x], name, type)
        case "pad":
            return graph.add_node(ops.Pad((0, 0, 0, 1), (0, 0, 1, 0), "replicate"), [x], name, type)
        case "table":
            low, high = type.integer_range()
            values = np.random.default_rng(index).integers(0, 255, high - low + 1).astype(np.uint8)
            return graph.add_node(ops.Table(), [x, graph.add_constant(f"{name}.table", values)], name, typed("uint8"))
        case _:
            return graph.add_node(ops.Transpose((0, 1, 3, 2)), [x], name, type)


def _join(draw: Any, graph: Graph, x: str, name: str, index: int) -> str:
    """Concatenations of convolutions made for them, the second one of some of the same, each with a reader."""
    made = [add_conv(graph, x, f"{name}.{i}", CHANNELS, kernel=1, channels=CHANNELS, seed=index + i) for i in range(3)]
    parts = draw(st.lists(st.sampled_from(made), min_size=1, max_size=4))
    graph.add_node(ops.Concat(1), parts, f"{name}.first", graph.types[made[0]])
    again = add_conv(graph, f"{name}.first", f"{name}.between", CHANNELS, channels=CHANNELS * len(parts), seed=index)
    others = [again if part == parts[0] else part for part in parts]
    graph.add_node(ops.Concat(1), others, f"{name}.second", graph.types[made[0]])
    return add_conv(graph, f"{name}.second", name, CHANNELS, kernel=1, channels=CHANNELS * len(parts), seed=index)


@st.composite
def graphs(draw: Any) -> Graph:
    """A graph of up to 14 nodes whose every fifth tensor is an output."""
    graph = Graph()
    graph.add_input("image", (("n",), CHANNELS, ("h",), ("w",)))
    tensors = [graph.add_node(ops.Quantize(), ["image"], "q", typed("uint8", 0.02))]
    for index in range(draw(st.integers(1, 12))):
        tensors.append(_step(draw, graph, tensors, index))
    graph.add_node(ops.Dequantize(), [tensors[-1]], "y", FLOAT32)
    graph.outputs = ("y", *tensors[::5])
    graph.structure = list(range(len(graph.outputs)))
    graph.example = {"n": 1, "h": 20, "w": 20}
    validate(graph)
    return graph


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.tuples(st.integers(1, 2), st.integers(14, 40), st.integers(14, 40)))
def test_random_graphs(graph: Graph, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    x = image((batch, CHANNELS, height, width), seed=height)
    native, reference = (QuantizedModel(graph, backend=name) for name in ("native", "reference"))
    found, expected = native(x), reference(x)
    shapes = infer_shapes(graph, {"image": x.shape})
    for name, a, b in zip(graph.outputs, found, expected, strict=True):
        assert a.shape == shapes[name]
        np.testing.assert_array_equal(a, b, strict=True)
    # Memory that is used again must not change a result: compare with a run in which nothing is.
    everything = native.run_all({"image": x})
    for name, a in zip(graph.outputs, found, strict=True):
        np.testing.assert_array_equal(a, everything[name], strict=True)
