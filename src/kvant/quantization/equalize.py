"""Cross-layer equalization: move scale from a layer's output channels into the layers that read them.

ReLU and the identity commute with a positive scale, so dividing channel c of a layer's output by s_c and multiplying
the readers' weights for channel c by s_c changes nothing in real arithmetic (Nagel et al. 2019, "Data-Free Quantization
through Weight Equalization and Bias Correction"). It changes everything for a tensor that has one scale for all
channels. Weights have one scale per output channel, so the producer never pays; a depthwise reader does not either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvant.graph import Graph, Node, ops
from kvant.quantization.statistics import Channels

# Beyond these a channel is dead, or the measured statistics are an accident.
_MOST = 2.0**12


@dataclass(frozen=True)
class Equalization:
    """A graph with moved scales and, for each tensor that changed, what its channels were divided by."""

    graph: Graph
    divisors: dict[str, np.ndarray]


def equalize(graph: Graph, channels: dict[str, Channels]) -> Equalization:
    """Equalize every tensor that a convolution makes and only convolutions read, at once or through transparent nodes.

    Args:
        graph: float graph, batch norm folded, clamps fused.
        channels: per-channel statistics of the tensors that convolutions read.

    Returns:
        A new graph; the one given is unchanged.
    """
    graph = graph.copy()
    _unshare_weights(graph)
    consumers = graph.consumers()
    divisors: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if not _homogeneous(node):
            continue
        family = _family(graph, node.output, consumers)
        seen = _seen(family, channels) if family else None
        if family is None or seen is None:
            continue
        divisor = _divisor(graph, seen, family.readers)
        _scale_producer(graph, node, divisor)
        for reader in family.readers:
            _scale_reader(graph, reader, divisor)
        for place in family.places:
            whole = divisors.setdefault(place.tensor, np.ones(place.channels, np.float32))
            whole[place.offset : place.offset + len(divisor)] *= divisor
    return Equalization(graph, divisors)


def _homogeneous(node: Node) -> bool:
    """f(s x) = s f(x) for s > 0: a convolution with no clamp but ReLU."""
    return isinstance(node.op, ops.Conv | ops.ConvTranspose) and node.op.clamp in (None, (0.0, None))


@dataclass(frozen=True)
class _Place:
    """Where a tensor's channels are found: in ``tensor`` of ``channels`` channels, from ``offset`` on."""

    tensor: str
    offset: int
    channels: int


@dataclass(frozen=True)
class _Reader:
    """A convolution that reads the channels from ``offset`` of its input on."""

    node: Node
    offset: int


@dataclass(frozen=True)
class _Family:
    """All places to which a tensor's channels travel without change, and the convolutions that read them there."""

    places: list[_Place]
    readers: list[_Reader]


def _family(graph: Graph, name: str, consumers: dict[str, list[Node]]) -> _Family | None:
    count = _channels_of(graph, name)
    places, readers = [_Place(name, 0, count)], []
    for place in places:
        if place.tensor in graph.outputs:
            return None
        for node in consumers[place.tensor]:
            if isinstance(node.op, ops.Conv | ops.ConvTranspose) and node.inputs.count(place.tensor) == 1:
                readers.append(_Reader(node, place.offset))
                continue
            moved = _travel(graph, node, place)
            if moved is None:
                return None
            places.append(moved)
    return _Family(places, readers) if readers else None


def _travel(graph: Graph, node: Node, place: _Place) -> _Place | None:
    """Where the channels are after ``node``, or None where it mixes or changes them."""
    match node.op:
        case ops.MaxPool() | ops.AveragePool() | ops.Resize():
            return _Place(node.output, place.offset, place.channels)
        case ops.Pad(mode="constant", value=0.0) if node.op.begin[:2] == node.op.end[:2] == (0, 0):
            return _Place(node.output, place.offset, place.channels)
        case ops.Concat(axis=1) if node.inputs.count(place.tensor) == 1:
            counts = [_channels_of(graph, name) for name in node.inputs]
            if 0 in counts:
                return None
            before = sum(counts[: node.inputs.index(place.tensor)])
            return _Place(node.output, before + place.offset, sum(counts))
    return None


def _channels_of(graph: Graph, name: str) -> int:
    """Size of axis 1, 0 where it is not fixed by the layers that make the tensor."""
    producer = next((node for node in graph.nodes if node.output == name), None)
    if producer is None:
        return 0
    match producer.op:
        case ops.Conv() | ops.ConvTranspose():
            return int(graph.constants[producer.inputs[1]].shape[0])
        case ops.MaxPool() | ops.AveragePool() | ops.Resize() | ops.Pad():
            return _channels_of(graph, producer.inputs[0])
        case ops.Concat(axis=1):
            counts = [_channels_of(graph, entry) for entry in producer.inputs]
            return 0 if 0 in counts else sum(counts)
    return 0


def _seen(family: _Family, channels: dict[str, Channels]) -> Channels | None:
    """Statistics of the family's channels, at the first place where they were observed."""
    count = family.places[0].channels
    for place in family.places:
        if place.tensor in channels:
            return channels[place.tensor].part(place.offset, count)
    return None


def _unshare_weights(graph: Graph) -> None:
    """Give each layer its own weight, since each is scaled differently."""
    seen: set[str] = set()
    for index, node in enumerate(graph.nodes):
        inputs = list(node.inputs)
        if not isinstance(node.op, ops.WEIGHTED):
            continue
        for position in range(1, len(inputs)):
            name = inputs[position]
            if name in seen and name in graph.constants:
                inputs[position] = graph.add_constant(name, graph.constants[name])
            seen.add(inputs[position])
        graph.nodes[index] = replace(node, inputs=tuple(inputs))


def _divisor(graph: Graph, seen: Channels, readers: list[_Reader]) -> np.ndarray:
    """What each channel is divided by; afterwards the largest channel of every tensor has a magnitude near 1.

    The magnitude of an activation is sqrt(max x rms). Depthwise readers follow for free, so all channels become equal;
    others pay for small activations with large weights, so the two share what there is (the square root).
    """
    activation = np.sqrt(seen.largest * seen.rms())
    wanted = activation
    if not all(_depthwise(graph, reader.node) for reader in readers):
        weight = np.max([_input_magnitude(graph, reader, len(activation)) for reader in readers], axis=0)
        alive = (weight > 0) & (activation > 0)
        wanted = np.where(alive, np.sqrt(activation / np.where(alive, weight, 1.0)), 0.0)
    if not (wanted > 0).any():
        return np.ones(len(wanted), np.float32)
    wanted = np.where(wanted > 0, wanted, 1.0) * max(
        float((activation / np.where(wanted > 0, wanted, 1.0)).max()), 1e-30
    )
    center = float(np.exp(np.log(wanted).mean()))
    return np.clip(wanted, center / _MOST, center * _MOST).astype(np.float32)


def _depthwise(graph: Graph, node: Node) -> bool:
    return isinstance(node.op, ops.Conv) and graph.constants[node.inputs[1]].shape[1] == 1 and node.op.groups > 1


def _input_magnitude(graph: Graph, reader: _Reader, count: int) -> np.ndarray:
    """(count): the largest weight that reads each channel, relative to the scale of its own output channel."""
    weight = np.abs(graph.constants[reader.node.inputs[1]])
    rows = weight.reshape(weight.shape[0], weight.shape[1], -1).max(2)
    rows = rows / np.maximum(rows.max(1, keepdims=True), 1e-30)
    groups = _groups(reader.node)
    every = rows.reshape(groups, weight.shape[0] // groups, weight.shape[1]).max(1).reshape(-1)
    return np.asarray(every[reader.offset : reader.offset + count])


def _groups(node: Node) -> int:
    return node.op.groups if isinstance(node.op, ops.Conv | ops.ConvTranspose) else 1


def _scale_producer(graph: Graph, node: Node, divisor: np.ndarray) -> None:
    weight = graph.constants[node.inputs[1]]
    graph.constants[node.inputs[1]] = weight / divisor.reshape(-1, *[1] * (weight.ndim - 1))
    if len(node.inputs) > 2:
        graph.constants[node.inputs[2]] = graph.constants[node.inputs[2]] / divisor


def _scale_reader(graph: Graph, reader: _Reader, divisor: np.ndarray) -> None:
    weight = graph.constants[reader.node.inputs[1]]
    groups = _groups(reader.node)
    whole = np.ones(weight.shape[1] * groups, np.float32)
    whole[reader.offset : reader.offset + len(divisor)] = divisor
    per_group = whole.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    graph.constants[reader.node.inputs[1]] = (split * per_group).reshape(weight.shape)
