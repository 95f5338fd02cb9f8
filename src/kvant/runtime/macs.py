"""How much a graph multiplies, and in which integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvant.graph import Graph, Node, example_shapes, infer_shapes, ops

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Multiplications:
    """Multiply-accumulates of one node, and the dtypes of its two operands, such as ``("uint8", "int8")``."""

    node: str
    kind: str
    count: int
    dtypes: tuple[str, str]


def count_macs(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> list[Multiplications]:
    """Multiply-accumulates of every convolution, linear layer and matrix product, in execution order.

    Args:
        shapes: shapes of the inputs by name; by default those that the model was captured with.
    """
    found = infer_shapes(graph, shapes or example_shapes(graph))
    return [
        Multiplications(node.output, node.op.kind, _count(node, found), _operand_dtypes(graph, node))
        for node in graph.nodes
        if isinstance(node.op, (*ops.WEIGHTED, ops.MatMul))
    ]


def _operand_dtypes(graph: Graph, node: Node) -> tuple[str, str]:
    return graph.types[node.inputs[0]].dtype, graph.types[node.inputs[1]].dtype


def _count(node: Node, shapes: Mapping[str, Shape]) -> int:
    x, weight, y = (shapes[name] for name in (*node.inputs[:2], node.output))
    if isinstance(node.op, ops.ConvTranspose):
        return math.prod(x) // x[1] * math.prod(weight)
    per_output = x[-1] if isinstance(node.op, ops.Linear | ops.MatMul) else math.prod(weight[1:])
    return math.prod(y) * per_output
