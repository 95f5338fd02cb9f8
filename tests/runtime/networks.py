"""Small whole networks for tests: several kinds of nodes, dynamic sizes, mixed 8 and 16 bits."""

from __future__ import annotations

import numpy as np

from kvant.graph import FLOAT32, Graph, Quantization, ops, validate

from .graphs import random_integers, typed


def add_conv(
    graph: Graph, x: str, name: str, outputs: int, kernel: int = 3, stride: int = 1, depthwise: bool = False,
    output: str = "uint8", channels: int = 0, seed: int = 0,
) -> str:  # fmt: skip
    """Append a convolution with random weights and a ReLU."""
    rng = np.random.default_rng(seed)
    weight = random_integers(rng, (outputs, 1 if depthwise else channels, kernel, kernel), "int8")
    scales = tuple(float(np.float32(s)) for s in rng.uniform(1e-3, 2e-2, outputs))
    bias = "int32" if graph.types[x].dtype == "uint8" else "int64"
    pads = (kernel // 2,) * 2
    inputs = [
        x,
        graph.add_constant(f"{name}.weight", weight, Quantization(scales, 0, 0)),
        graph.add_constant(f"{name}.bias", rng.integers(-500, 500, outputs).astype(bias)),
    ]
    op = ops.Conv((stride,) * 2, pads, pads, (1, 1), channels if depthwise else 1, (0.0, None))
    return graph.add_node(op, inputs, name, typed(output, 0.05, 0))


def small_network(output_type: str = "uint8", pixels: bool = False) -> Graph:
    """Convolutions, a depthwise one, a residual sum, pooling, upsampling, a concatenation; two outputs in a dict.

    With `pixels` the image is one of the integers 0 to 255.
    """
    graph = Graph()
    graph.add_input("image", (("batch",), 3, ("height",), ("width",)))
    x = graph.add_node(
        ops.Quantize(), ["image"], "quantized", typed("uint8", 1.0, 0) if pixels else typed("uint8", 0.02, 128)
    )
    x = add_conv(graph, x, "stem", 16, channels=3, stride=2, seed=1, output=output_type)
    y = add_conv(graph, x, "depthwise", 16, depthwise=True, channels=16, seed=2, output="int16")
    y = add_conv(graph, y, "pointwise", 16, kernel=1, channels=16, seed=3, output=output_type)
    x = graph.add_node(ops.Binary("add", (0.0, None)), [x, y], "residual", typed("uint8", 0.1, 3))
    pooled = graph.add_node(ops.MaxPool((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)), [x], "pooled", graph.types[x])
    doubled = (("height", 1, "-", 2, "//", 1, "+"), ("width", 1, "-", 2, "//", 1, "+"))
    up = graph.add_node(ops.Resize("linear", doubled), [pooled], "up", graph.types[x])
    both = graph.add_node(ops.Concat(1), [x, up], "both", graph.types[x])
    head = add_conv(graph, both, "head", 5, kernel=1, channels=32, seed=4, output="int16")
    mean = graph.add_node(ops.Reduce("mean", (2, 3)), [both], "mean", typed("uint8", 0.1, 3))
    graph.add_node(ops.Dequantize(), [head], "heat", FLOAT32)
    graph.add_node(ops.Dequantize(), [mean], "score", FLOAT32)
    graph.outputs = ("heat", "score")
    graph.structure = {"heat": 0, "rest": [1, 0]}
    graph.example = {"batch": 1, "height": 16, "width": 24}
    validate(graph)
    return graph


def image(shape: tuple[int, ...] = (1, 3, 16, 24), seed: int = 0) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
