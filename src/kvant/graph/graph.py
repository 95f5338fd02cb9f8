"""The one data structure: a list of nodes in execution order, the types of their tensors, and the constants.

A float graph and a quantized graph differ only in their tensors' types. Every node has one output; an activation's
shape is not stored but inferred from the inputs' shapes (``kvant.graph.infer_shapes``), so any size that fits runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from kvant.errors import GraphError
from kvant.graph.dims import Dim
from kvant.graph.ops import AnyOp

DType = Literal["float32", "uint8", "int8", "int16", "int32", "int64"]
DTYPES: tuple[DType, ...] = ("float32", "uint8", "int8", "int16", "int32", "int64")
# Output structure: the index of an output, a list for a tuple or list, a dict for a dict.
Structure: TypeAlias = "int | list[Structure] | dict[str, Structure]"


@dataclass(frozen=True)
class Quantization:
    """How integers stand for reals: ``real = scale * (q - zero_point)``.

    Attributes:
        scale: float32 values, finite and positive: one for the whole tensor, or one per index of ``axis``.
        zero_point: the integer that stands for real zero.
        axis: the axis that ``scale`` runs along, None for one scale.
        bits: of a uint8 tensor whose integers end at ``2 ** bits - 1``; None is the whole type.
        group: of a weight: runs of so many elements of each row of axis 0 are multiples of a factor of their own, which
            is what a scale for each group of input channels becomes (docs/numerics.md).
    """

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None
    bits: int | None = None
    group: int | None = None

    def scales(self) -> np.ndarray:
        """The scales as a float32 vector."""
        return np.asarray(self.scale, np.float32)


@dataclass(frozen=True)
class TensorType:
    """Element type of a tensor and, for a quantized one, its quantization."""

    dtype: DType
    quantization: Quantization | None = None

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype of the elements."""
        return np.dtype(self.dtype)

    def integer_range(self) -> tuple[int, int]:
        """Smallest and largest integer of an activation of this type.

        >>> TensorType("uint8", Quantization((0.5,), 3, bits=4)).integer_range()
        (0, 15)
        """
        if self.quantization is not None and self.quantization.bits is not None:
            return 0, 2**self.quantization.bits - 1
        return self.stored_range()

    def stored_range(self) -> tuple[int, int]:
        """Smallest and largest integer of the dtype: what tables have an entry for."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)


FLOAT32 = TensorType("float32")


@dataclass(frozen=True)
class Input:
    """A graph input: its name, type and shape, whose free dimensions are symbols such as ``("height",)``."""

    name: str
    type: TensorType
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Source:
    """Where a node comes from: the path of the module in the model, and the line of the model's code."""

    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        return " at ".join(part for part in (self.module, self.line) if part) or "unknown source"


@dataclass(frozen=True)
class Node:
    """One operation: ``output = op(*inputs)``, tensors by name."""

    op: AnyOp
    inputs: tuple[str, ...]
    output: str
    source: Source = Source()

    def describe(self) -> str:
        """For messages: operator, output's name, and where it comes from."""
        return f"{self.op.kind} {self.output!r} ({self.source})"


@dataclass
class Graph:
    """Inputs, nodes in execution order, outputs, types of all tensors, values of the constants.

    Attributes:
        inputs: what the caller gives, in order.
        nodes: in execution order; each reads inputs, constants and outputs of earlier nodes.
        outputs: names of the tensors that are returned; the same one may be returned twice.
        structure: how the outputs are nested for the caller.
        types: the type of every tensor: inputs, constants, node outputs.
        constants: weights, biases, tables.
        example: a size for every symbol, the one that the model was captured with.
    """

    inputs: tuple[Input, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[str, ...] = ()
    structure: Structure = 0
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    example: dict[str, int] = field(default_factory=dict)

    def add_input(self, name: str, shape: tuple[Dim, ...], type: TensorType = FLOAT32) -> str:
        """Declare an input and return its name."""
        self._claim(name, type)
        self.inputs = (*self.inputs, Input(name, type, shape))
        return name

    def add_constant(self, name: str, value: np.ndarray, quantization: Quantization | None = None) -> str:
        """Store a constant under ``name`` (made unique) and return the name."""
        if value.dtype.name not in DTYPES:
            raise GraphError(f"constant {name!r} has dtype {value.dtype}, expected one of {', '.join(DTYPES)}")
        name = self.fresh(name)
        self._claim(name, TensorType(value.dtype.name, quantization))
        self.constants[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name

    def add_node(
        self, op: AnyOp, inputs: Iterable[str], output: str, type: TensorType = FLOAT32, source: Source | None = None
    ) -> str:
        """Append a node and return its output's name."""
        self._claim(output, type)
        self.nodes.append(Node(op, tuple(inputs), output, source or Source()))
        return output

    def _claim(self, name: str, type: TensorType) -> None:
        if name in self.types:
            raise GraphError(f"tensor {name!r} is defined twice")
        self.types[name] = type

    def fresh(self, name: str) -> str:
        """``name``, or ``name_1``, ``name_2``... where it is taken."""
        if name not in self.types:
            return name
        count = 1
        while f"{name}_{count}" in self.types:
            count += 1
        return f"{name}_{count}"

    def producers(self) -> dict[str, Node]:
        """The node that defines each activation."""
        return {node.output: node for node in self.nodes}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor, in execution order; a node that reads it twice is listed once."""
        found: dict[str, list[Node]] = {name: [] for name in self.types}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def activations(self) -> Iterator[str]:
        """Names of the inputs and of all nodes' outputs, in execution order."""
        yield from (entry.name for entry in self.inputs)
        yield from (node.output for node in self.nodes)

    def copy(self) -> Graph:
        """A copy whose lists and tables may be changed; constants' arrays are shared."""
        return replace(
            self, nodes=list(self.nodes), types=dict(self.types), constants=dict(self.constants),
            example=dict(self.example),
        )  # fmt: skip

    def replace_nodes(self, nodes: Iterable[Node]) -> None:
        """Make ``nodes`` the graph's nodes, then forget constants and types that nothing refers to."""
        self.nodes = list(nodes)
        used = {entry.name for entry in self.inputs} | set(self.outputs)
        for node in self.nodes:
            used.update(node.inputs)
            used.add(node.output)
        self.types = {name: type for name, type in self.types.items() if name in used}
        self.constants = {name: value for name, value in self.constants.items() if name in used}
