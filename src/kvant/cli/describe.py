"""Facts about a .kvant file, for ``kvant info``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from kvant.errors import FormatError
from kvant.format import Contents
from kvant.graph import Graph, TensorType, example_shapes, infer_shapes, ops, show_shape
from kvant.runtime import DECISIONS, Decision, count_macs, from_metadata


@dataclass(frozen=True)
class TensorFacts:
    """One tensor: an input, an activation or a constant; a constant may have one scale per index of ``axis``."""

    name: str
    kind: str
    dtype: str
    shape: list[int] | None
    scale: float | list[float] | None
    zero_point: int | None
    axis: int | None

    def row(self) -> tuple[str, ...]:
        """For a table."""
        scale = f"{self.scale:.6g}" if isinstance(self.scale, float) else ""
        if isinstance(self.scale, list):
            scale = f"{min(self.scale):.3g} to {max(self.scale):.3g} ({len(self.scale)})"
        shape = "" if self.shape is None else show_shape(self.shape)
        zero = "" if self.zero_point is None else str(self.zero_point)
        return self.name, self.kind, self.dtype, shape, scale, zero


@dataclass(frozen=True)
class Description:
    """What ``kvant info`` shows. ``multiplications`` counts multiply-accumulates by the types of their operands."""

    facts: dict[str, Any]
    operators: dict[str, int]
    multiplications: dict[str, int]
    tensors: list[TensorFacts]
    decisions: list[Decision]

    def shares(self) -> list[tuple[str, int, float]]:
        """Operands, count and share of all multiplications, the largest first."""
        total = sum(self.multiplications.values())
        ordered = sorted(self.multiplications.items(), key=lambda entry: (-entry[1], entry[0]))
        return [(kind, count, count / total) for kind, count in ordered]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = {kind: {"count": count, "share": share} for kind, count, share in self.shares()}
        return {
            **self.facts,
            "operators": self.operators,
            "multiplications": shares,
            "decisions": [msgspec.to_builtins(entry) for entry in self.decisions],
            "tensors": [asdict(entry) for entry in self.tensors],
        }


def describe(contents: Contents) -> Description:
    """Collect the facts about a file."""
    graph, decisions = contents.graph, _decisions(contents)
    multiplications: Counter[str] = Counter()
    for entry in count_macs(graph):
        multiplications[" x ".join(entry.dtypes)] += entry.count
    return Description(
        facts=_facts(contents) | {"metadata": _others(contents, decisions)},
        operators=dict(sorted(Counter(node.op.kind for node in graph.nodes).items())),
        multiplications=dict(sorted(multiplications.items())),
        tensors=_tensors(graph),
        decisions=decisions,
    )


def _decisions(contents: Contents) -> list[Decision]:
    """What was decided; nothing where the metadata hold something else under that name, which is then shown."""
    try:
        return from_metadata(contents.metadata)
    except FormatError:
        return []


def _others(contents: Contents, decisions: list[Decision]) -> dict[str, str]:
    """The metadata that are no decisions."""
    return {key: value for key, value in contents.metadata.items() if key != DECISIONS or not decisions}


def _facts(contents: Contents) -> dict[str, Any]:
    graph, info = contents.graph, contents.info
    weights = sum(graph.constants[name].size for name in _weights(graph))
    constants: Counter[str] = Counter()
    for value in graph.constants.values():
        constants[value.dtype.name] += value.size
    return {
        "format": ".".join(map(str, info.version)),
        "features": list(info.features),
        "producer": info.producer,
        "sha256": info.sha256,
        "file_bytes": info.file_bytes,
        "header_bytes": info.header_bytes,
        "weights": weights,
        "float_bytes": 4 * weights,
        "inputs": [
            {"name": entry.name, "dtype": entry.type.dtype, "shape": show_shape(entry.shape)} for entry in graph.inputs
        ],
        "outputs": _outputs(graph),
        "activations": dict(sorted(Counter(graph.types[name].dtype for name in graph.activations()).items())),
        "constants": dict(sorted(constants.items())),
        "golden": len(contents.golden),
    }


def _weights(graph: Graph) -> set[str]:
    """Weights and biases of the layers that multiply; tables and scales are not the model's parameters."""
    return {name for node in graph.nodes if isinstance(node.op, ops.WEIGHTED) for name in node.inputs[1:]}


def _outputs(graph: Graph) -> list[dict[str, str]]:
    shapes = infer_shapes(graph, example_shapes(graph))
    return [
        {"name": name, "dtype": graph.types[name].dtype, "shape": f"{show_shape(shapes[name])} at the example size"}
        for name in graph.outputs
    ]


def _tensors(graph: Graph) -> list[TensorFacts]:
    inputs = {entry.name for entry in graph.inputs}
    found = []
    for name in graph.activations():
        found.append(_tensor(name, "input" if name in inputs else "activation", graph.types[name], None))
    for name, value in graph.constants.items():
        found.append(_tensor(name, "constant", graph.types[name], list(value.shape)))
    return found


def _tensor(name: str, kind: str, type: TensorType, shape: list[int] | None) -> TensorFacts:
    quantization = type.quantization
    if quantization is None:
        return TensorFacts(name, kind, type.dtype, shape, None, None, None)
    scale = quantization.scale[0] if quantization.axis is None else list(quantization.scale)
    return TensorFacts(name, kind, type.dtype, shape, scale, quantization.zero_point, quantization.axis)
