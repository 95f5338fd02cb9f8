"""What the rules read and write while a graph is lowered for one set of input shapes.

Tensors have their axes in the graph's order, but need not lie in memory in that order: convolution and pooling read and
write (batch, height, width, channels), transposing moves nothing, and what cares about the order asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from kvant.errors import GraphError
from kvant.graph import Graph, Node, TensorType
from kvant.runtime.steps import AnyWeights, Copy, Step, Work

Shape = tuple[int, ...]
Order = tuple[int, ...]
"""The axes of a tensor as they lie in memory, the outermost first."""


@dataclass
class Context:
    """The graph, its concrete shapes, and the steps so far.

    Attributes:
        shapes: of every tensor, temporary ones included.
        bindings: the size of every symbol.
        weights: prepared weights by the output of their node.
        aliases: tensors that are another one under a new shape.
        temporary: types of tensors that exist beside the graph's: between two steps of a node, or in another order.
        orders: of the tensors whose axes do not lie in the graph's order.
    """

    graph: Graph
    shapes: dict[str, Shape]
    bindings: Mapping[str, int]
    weights: Mapping[str, AnyWeights]
    steps: list[Step] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    temporary: dict[str, TensorType] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    _copies: dict[tuple[str, Order], str] = field(default_factory=dict)

    def emit(
        self, node: Node, work: Work, inputs: tuple[str, ...], output: str | None = None, order: Order | None = None
    ) -> None:
        """Append a step of ``node``; ``order`` is that in which it writes its output."""
        name = output or node.output
        self.set_order(name, order or natural(len(self.shapes[name])))
        self.steps.append(Step(work, inputs, name, node.output))

    def set_order(self, name: str, order: Order) -> None:
        """Say how a tensor lies in memory."""
        if order != natural(len(order)):
            self.orders[name] = order

    def add_temporary(self, node: Node, type: TensorType, shape: Shape) -> str:
        """A tensor that only the runtime sees. Its name cannot clash: the 0 byte occurs nowhere else."""
        name = f"{node.output}\0{len(self.temporary)}"
        self.temporary[name] = type
        self.shapes[name] = shape
        return name

    def order(self, name: str) -> Order:
        """How a tensor lies in memory."""
        return self.orders.get(name) or natural(len(self.shapes[name]))

    def laid_out(self, name: str) -> Shape:
        """A tensor's sizes as they lie in memory."""
        shape = self.shapes[name]
        return tuple(shape[axis] for axis in self.orders[name]) if name in self.orders else shape

    def strides(self, name: str) -> tuple[int, ...]:
        """Elements from one index to the next of each axis, axes in the graph's order."""
        if name not in self.orders:
            return contiguous(self.shapes[name])
        order = self.orders[name]
        found = dict(zip(order, contiguous(self.laid_out(name)), strict=True))
        return tuple(found[axis] for axis in range(len(order)))

    def read(self, node: Node, name: str, order: Order | None = None) -> str:
        """The tensor, or a copy of it, that lies in ``order``; None is the graph's own order."""
        order = order or natural(len(self.shapes[name]))
        if same_layout(self.shapes[name], self.order(name), order):
            return name
        if (name, order) not in self._copies:
            copy = self.add_temporary(node, self.type(name), self.shapes[name])
            strides = self.strides(name)
            shape = tuple(self.shapes[name][axis] for axis in order)
            joined, (steps,) = join_axes(shape, tuple(strides[axis] for axis in order))
            self.emit(node, Copy(joined, steps, 0), (name,), copy, order)
            self._copies[name, order] = copy
        return self._copies[name, order]

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

    def around(self, name: str, axis: int, order: Order | None = None) -> tuple[int, int, int]:
        """A tensor as it lies in memory (or in ``order``), seen as (outer, size of ``axis``, inner)."""
        order = order or self.order(name)
        shape, at = tuple(self.shapes[name][each] for each in order), order.index(axis)
        return math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :])


@cache
def natural(rank: int) -> Order:
    """The graph's own order."""
    return tuple(range(rank))


@cache
def channels_last(rank: int) -> Order:
    """Batch, spatial axes, channels.

    >>> channels_last(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1) if rank > 1 else natural(rank)


def same_layout(shape: Shape, one: Order, other: Order) -> bool:
    """Whether two orders are the same memory: axes of size 1 may be anywhere."""
    return one == other or [axis for axis in one if shape[axis] != 1] == [axis for axis in other if shape[axis] != 1]


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
