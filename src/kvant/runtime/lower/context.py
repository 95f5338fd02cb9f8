"""What the rules read and write while a graph is lowered for one set of input shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvant.errors import GraphError
from kvant.graph import Graph, Node, TensorType
from kvant.runtime.steps import Step, Weights, Work

Shape = tuple[int, ...]


@dataclass
class Context:
    """The graph, its concrete shapes, and the steps so far.

    Attributes:
        shapes: of every tensor, temporary ones included.
        bindings: the size of every symbol.
        weights: prepared weights by the output of their node.
        aliases: tensors that are another one under a new shape.
        temporary: types of tensors that exist between two steps of one node.
    """

    graph: Graph
    shapes: dict[str, Shape]
    bindings: Mapping[str, int]
    weights: Mapping[str, Weights]
    steps: list[Step] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    temporary: dict[str, TensorType] = field(default_factory=dict)

    def emit(self, node: Node, work: Work, inputs: tuple[str, ...], output: str | None = None) -> None:
        """Append a step of ``node``."""
        self.steps.append(Step(work, inputs, output or node.output, node.output))

    def add_temporary(self, node: Node, type: TensorType, shape: Shape) -> str:
        """A tensor that only steps of ``node`` see. Its name cannot clash: the 0 byte occurs nowhere else."""
        name = f"{node.output}\0{len(self.temporary)}"
        self.temporary[name] = type
        self.shapes[name] = shape
        return name

    def type(self, name: str) -> TensorType:
        """The type of a tensor."""
        return self.temporary.get(name) or self.graph.types[name]

    def quantized(self, name: str) -> TensorType:
        """The type of a tensor that must hold integers with a single scale."""
        type = self.type(name)
        if type.quantization is None or type.dtype not in ("uint8", "int8", "int16"):
            raise GraphError(f"tensor {name!r} is {type.dtype}, but integers with a scale are needed here")
        if type.quantization.axis is not None:
            raise GraphError(f"tensor {name!r} has one scale per channel, but one for all is needed here")
        return type

    def around(self, name: str, axis: int) -> tuple[int, int, int]:
        """The shape of a tensor seen as (outer, size of ``axis``, inner)."""
        shape = self.shapes[name]
        return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def contiguous(shape: Shape) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def join_axes(shape: Shape, *operands: tuple[int, ...]) -> tuple[Shape, list[tuple[int, ...]]]:
    """Join neighbouring axes that all operands step through evenly, and drop axes of size 1.

    >>> join_axes((2, 3, 4), (12, 4, 1), (0, 0, 0))
    ((24,), [(1,), (0,)])
    """
    kept: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(shape):
        steps = [strides[axis] for strides in operands]
        if size == 1:
            continue
        if kept and all(before == step * size for before, step in zip(kept[-1][1], steps, strict=True)):
            kept[-1] = (kept[-1][0] * size, steps)
        else:
            kept.append((size, steps))
    if not kept:
        kept = [(1, [0] * len(operands))]
    return tuple(size for size, _ in kept), [tuple(steps[i] for _, steps in kept) for i in range(len(operands))]
