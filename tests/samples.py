"""What several rooms' tests are made of: a small quantized graph, a golden vector for it, a type, a lost Ctrl-C."""

from __future__ import annotations

import signal
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from kvant.format import Golden
from kvant.graph import Graph, Quantization, Source, TensorType, ops

# Runs the command with the given arguments (tests/cli/conftest.py).
Kvant = Callable[..., Any]


def _scale(value: float) -> float:
    return float(np.float32(value))


def build_small_graph() -> Graph:
    """x -> quantize -> conv (4 filters of 3 x 3, ReLU) -> dequantize, height and width free."""
    graph = Graph()
    graph.add_input("x", (1, 2, ("height",), ("width",)))
    graph.example = {"height": 6, "width": 5}
    graph.add_node(ops.Quantize(), ["x"], "x_q", TensorType("uint8", Quantization((_scale(0.02),), 128)))
    numbers = np.random.default_rng(7)
    weight = graph.add_constant(
        "conv.weight",
        numbers.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8),
        Quantization(tuple(_scale(0.001 * (index + 1)) for index in range(4)), 0, 0),
    )
    bias = graph.add_constant("conv.bias", numbers.integers(-1000, 1000, 4).astype(np.int32))
    conv = ops.Conv((1, 1), (1, 1), (1, 1), (1, 1), clamp=(0.0, None))
    output = TensorType("uint8", Quantization((_scale(0.05),), 0))
    graph.add_node(conv, ["x_q", weight, bias], "y_q", output, Source("features.0", "net.py:12"))
    graph.add_node(ops.Dequantize(), ["y_q"], "y")
    graph.outputs = ("y",)
    return graph


def build_small_golden(graph: Graph) -> Golden:
    """A golden vector of the right shapes; its outputs are not what the graph computes."""
    numbers = np.random.default_rng(8)
    return Golden({"x": numbers.normal(size=(1, 2, 3, 2)).astype(np.float32)}, [np.ones((1, 4, 3, 2), np.float32)])


class Thing:
    """Something that a weak reference may refer to."""


def lose_ctrl_c() -> None:
    """Press Ctrl-C where Python ignores exceptions: in the callback of a weak reference."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def lose_ctrl_c_and_go_on(*_: object) -> None:
    """What takes long, in place of anything else."""
    lose_ctrl_c()
    time.sleep(60)
