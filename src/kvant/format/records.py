"""The file's header as strict typed records, and the way between them and a ``Graph``.

Unknown fields, wrong types and unknown operators are refused while decoding. What the graph means is checked by
``kvant.graph.validate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from kvant.errors import FormatError
from kvant.format.packing import Packing
from kvant.graph import Dim, DType, Graph, Input, Node, Quantization, Source, TensorType
from kvant.graph.ops import AnyOp


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the header's records: nothing unknown is read, defaults are not written."""


class Version(_Record, frozen=True):
    """Version of the file format: another major cannot be read, a newer minor can unless it needs a new feature."""

    major: int
    minor: int


class Gate(msgspec.Struct, frozen=True):
    """The part of the header that every version of the format has, read first and on its own."""

    version: Version
    features: tuple[str, ...] = ()


class ActivationType(_Record, frozen=True):
    """Type of an activation; ``scale`` is there when it is quantized."""

    dtype: DType = "float32"
    scale: float | None = None
    zero_point: int = 0
    bits: int | None = None


class InputRecord(_Record, frozen=True):
    """A graph input."""

    name: str
    type: ActivationType
    shape: tuple[Dim, ...]


class ConstantRecord(_Record, frozen=True):
    """A constant. With ``axis`` its scales are a tensor of the file, without it ``scale`` is the only one.

    With ``packing`` the file holds codes in its place, and the table that they are read by; with ``half`` it holds the
    float16 that its float32 values are.
    """

    name: str
    dtype: DType
    scale: float | None = None
    zero_point: int = 0
    axis: int | None = None
    bits: int | None = None
    group: int | None = None
    packing: Packing | None = None
    half: bool = False


class NodeRecord(_Record, frozen=True):
    """One operation with its output's type and the place in the model that it comes from."""

    op: AnyOp
    inputs: tuple[str, ...]
    output: str
    type: ActivationType
    module: str = ""
    line: str = ""


class Header(_Record, frozen=True):
    """Everything in the file but the tensors' bytes."""

    version: Version
    producer: str
    inputs: tuple[InputRecord, ...]
    constants: tuple[ConstantRecord, ...]
    nodes: tuple[NodeRecord, ...]
    outputs: tuple[str, ...]
    structure: Any
    features: tuple[str, ...] = ()
    example: dict[str, int] = {}
    golden: int = 0
    metadata: dict[str, str] = {}


def constant_order(graph: Graph) -> list[str]:
    """Names of the constants: in the order in which nodes read them, then by name."""
    read = dict.fromkeys(name for node in graph.nodes for name in node.inputs if name in graph.constants)
    return [*read, *sorted(name for name in graph.constants if name not in read)]


def to_header(
    graph: Graph,
    version: Version,
    features: tuple[str, ...],
    producer: str,
    golden: int,
    metadata: Mapping[str, str],
    packings: Mapping[str, Packing],
    halves: frozenset[str] | set[str] = frozenset(),
) -> Header:
    """The header of a file that holds ``graph``, some of whose constants are packed."""
    return Header(
        version=version,
        features=features,
        producer=producer,
        inputs=tuple(InputRecord(entry.name, _activation(entry.type), entry.shape) for entry in graph.inputs),
        constants=tuple(
            _constant(name, graph.types[name], packings.get(name), name in halves) for name in constant_order(graph)
        ),
        nodes=tuple(_node(graph, node) for node in graph.nodes),
        outputs=tuple(graph.outputs),
        structure=graph.structure,
        example=dict(sorted(graph.example.items())),
        golden=golden,
        metadata=dict(sorted(metadata.items())),
    )


def _activation(type: TensorType) -> ActivationType:
    if type.quantization is None:
        return ActivationType(type.dtype)
    quantization = type.quantization
    return ActivationType(type.dtype, quantization.scale[0], quantization.zero_point, quantization.bits)


def _constant(name: str, type: TensorType, packing: Packing | None, half: bool) -> ConstantRecord:
    quantization = type.quantization
    if quantization is None:
        return ConstantRecord(name, type.dtype, packing=packing, half=half)
    single = quantization.scale[0] if quantization.axis is None else None
    return ConstantRecord(
        name, type.dtype, single, quantization.zero_point, quantization.axis, quantization.bits, quantization.group,
        packing,
    )  # fmt: skip


def _node(graph: Graph, node: Node) -> NodeRecord:
    return NodeRecord(
        op=node.op,
        inputs=node.inputs,
        output=node.output,
        type=_activation(graph.types[node.output]),
        module=node.source.module,
        line=node.source.line,
    )


def to_graph(header: Header, constants: dict[str, np.ndarray], scales: Mapping[str, np.ndarray]) -> Graph:
    """The graph that ``header`` describes; ``scales`` holds the scales of the constants that have an axis.

    Raises:
        FormatError: a constant is listed twice, or has a scale and an axis.
    """
    types: dict[str, TensorType] = {}
    for entry in header.inputs:
        types[entry.name] = _activation_type(entry.type)
    for constant in header.constants:
        if constant.name in types:
            raise FormatError(f"tensor {constant.name!r} is defined twice")
        types[constant.name] = _constant_type(constant, scales)
    for node in header.nodes:
        types[node.output] = _activation_type(node.type)
    return Graph(
        inputs=tuple(Input(entry.name, types[entry.name], entry.shape) for entry in header.inputs),
        nodes=[Node(node.op, node.inputs, node.output, Source(node.module, node.line)) for node in header.nodes],
        outputs=header.outputs,
        structure=header.structure,
        types=types,
        constants=constants,
        example=dict(header.example),
    )


def _activation_type(record: ActivationType) -> TensorType:
    if record.scale is None:
        if record.bits is not None:
            raise FormatError(f"a type of {record.bits} bits has no scale")
        return TensorType(record.dtype)
    return TensorType(record.dtype, Quantization((float(record.scale),), record.zero_point, bits=record.bits))


def _constant_type(record: ConstantRecord, scales: Mapping[str, np.ndarray]) -> TensorType:
    if record.axis is not None:
        if record.scale is not None:
            raise FormatError(f"constant {record.name!r} has both one scale and an axis of scales")
        values = tuple(float(value) for value in scales[record.name])
        return TensorType(record.dtype, Quantization(values, record.zero_point, record.axis, record.bits, record.group))
    if record.scale is None:
        if record.bits is not None or record.group is not None:
            raise FormatError(f"constant {record.name!r} has bits or groups, but no scale")
        return TensorType(record.dtype)
    return TensorType(
        record.dtype, Quantization((float(record.scale),), record.zero_point, None, record.bits, record.group)
    )
