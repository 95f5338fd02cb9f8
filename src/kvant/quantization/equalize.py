"""Cross-layer equalization: move scale from a layer's output channels into the layers that read them.

ReLU and the identity commute with a positive scale, so dividing channel c of a layer's output by s_c and multiplying
the readers' weights for channel c by s_c changes nothing in real arithmetic (Nagel et al. 2019, "Data-Free Quantization
through Weight Equalization and Bias Correction"). It changes everything for a tensor that has one scale for all
channels. Weights have one scale per output channel, so the producer never pays; a depthwise reader does not either.

Where nothing lies between two convolutions and the second one pads nothing, an offset of each channel moves as well:
out of the first one's bias, into the second one's. All channels then have the same middle, and together with the scales
each channel gets the whole range of the integers, as if the tensor were quantized channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvant.graph import Graph, Node, ops
from kvant.quantization.channels import Channels

# Beyond these a channel is dead, or the measured statistics are an accident.
_MOST = 2.0**12
# Ways to share the differences between channels: all of it in the weights (0) ... all channels equal (1).
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# A weight's noise counts this much more than an activation's: activations that hurt can get 16 bits, weights keep 8.
_WEIGHTS_MATTER = 4.0


@dataclass(frozen=True)
class Equalization:
    """A graph with moved scales and offsets, and for each tensor that changed what happened to its channels.

    Attributes:
        moves: by tensor, offset and divisor of each channel, float32 (C): x became (x - offset) / divisor.
    """

    graph: Graph
    moves: dict[str, tuple[np.ndarray, np.ndarray]]


def equalize(
    graph: Graph, channels: dict[str, Channels], *, center: bool = False, by_noise: bool = False
) -> Equalization:
    """Equalize every tensor that a convolution makes and only convolutions read, at once or through transparent nodes.

    Args:
        graph: float graph, batch norm folded, clamps fused.
        channels: per-channel statistics of the tensors that convolutions read.
        center: move offsets as well as scales.
        by_noise: share by expected noise, for activations in 8 bits; else for weights. Comes with ``center``.

    Returns:
        A new graph; the one given is unchanged.
    """
    graph = graph.copy()
    _unshare_weights(graph)
    consumers = graph.consumers()
    moves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for index, node in enumerate(graph.nodes):
        if not _homogeneous(node):
            continue
        family = _family(graph, node.output, consumers)
        seen = _seen(family, channels) if family else None
        if family is None or seen is None:
            continue
        offset = _offset(node, seen, family) if center else np.zeros(len(seen.low), np.float32)
        divisor = _divisor(graph, seen.moved(offset, np.ones_like(offset)), family.readers, by_noise or center)
        _shift(graph, node, family.readers, offset)
        _scale_producer(graph, graph.nodes[index], divisor)
        for reader in family.readers:
            _scale_reader(graph, reader, divisor)
        for place in family.places:
            unmoved = np.zeros(place.channels, np.float32), np.ones(place.channels, np.float32)
            offsets, divisors = moves.setdefault(place.tensor, unmoved)
            offsets[place.offset : place.offset + len(divisor)] = offset
            divisors[place.offset : place.offset + len(divisor)] = divisor
    return Equalization(graph, moves)


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


def _offset(node: Node, seen: Channels, family: _Family) -> np.ndarray:
    """What of each channel moves into the readers' biases: the middle, or behind ReLU the lowest value; float32 (C)."""
    if len(family.places) == 1 and all(unpadded(reader.node.op) for reader in family.readers):
        # What ReLU never cuts moves too (bias absorption, Nagel et al. 2019, section 4.1.3).
        open_ = node.op.clamp is None  # type: ignore[union-attr]
        return np.asarray((seen.low + seen.high) / 2 if open_ else np.maximum(seen.low, 0), np.float32)
    return np.zeros(len(seen.low), np.float32)


def unpadded(op: ops.AnyOp) -> bool:
    """Whether a shift of the operator's input shifts its whole output alike, borders included."""
    if isinstance(op, ops.Conv):
        return not any((*op.pads_begin, *op.pads_end))
    return isinstance(op, ops.Linear)


def _shift(graph: Graph, node: Node, readers: list[_Reader], offset: np.ndarray) -> None:
    """Move ``offset`` (C) out of the node's output and into what its readers add."""
    if not offset.any():
        return
    _add_bias(graph, node.output, -offset)
    for reader in readers:
        split = _split(graph, reader)
        moved = split * _as_read(reader, split, offset.astype(np.float64), 0.0)[..., None]
        _add_bias(graph, reader.node.output, moved.sum((2, 3)).reshape(-1))


def _add_bias(graph: Graph, output: str, shift: np.ndarray) -> None:
    """Add ``shift`` (O) to the bias of the node that makes ``output``; one without a bias gets one."""
    index = next(index for index, node in enumerate(graph.nodes) if node.output == output)
    node = graph.nodes[index]
    if len(node.inputs) > 2:
        graph.constants[node.inputs[2]] = (graph.constants[node.inputs[2]] + shift).astype(np.float32)
        return
    name = graph.add_constant(f"{output}.bias", shift.astype(np.float32))
    graph.nodes[index] = replace(node, inputs=(*node.inputs, name))


def _split(graph: Graph, reader: _Reader) -> np.ndarray:
    """A view of the reader's weight as (groups, O / groups, C / groups, kernel)."""
    weight, groups = graph.constants[reader.node.inputs[1]], _groups(reader.node)
    view: np.ndarray = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return view


def _as_read(reader: _Reader, split: np.ndarray, values: np.ndarray, elsewhere: float) -> np.ndarray:
    """``values`` (C) where the reader sees their channels, ``elsewhere`` at its other ones: (groups, 1, C / groups)."""
    whole = np.full(split.shape[0] * split.shape[2], elsewhere, values.dtype)
    whole[reader.offset : reader.offset + len(values)] = values
    return whole.reshape(split.shape[0], 1, split.shape[2])


def _divisor(graph: Graph, seen: Channels, readers: list[_Reader], by_noise: bool) -> np.ndarray:
    """What each channel is divided by; afterwards the largest channel has a magnitude of 1.

    Depthwise readers follow for free, so all channels become equal; others pay for small activations with large
    weights. Either the magnitude of an activation is sqrt(max x rms) and the two share what there is (the square root),
    which suits weights; or, for the sake of 8-bit activations, it is the largest value, and
    of several ways to share, the one with the least expected noise at the readers' outputs is taken.
    """
    reach = seen.largest()
    magnitude = reach if by_noise else np.sqrt(reach * seen.rms())
    # Moments come from some positions only: a channel that is almost never excited may have none.
    alive = magnitude > 0
    wanted = magnitude
    paying = [reader for reader in readers if not _depthwise(graph, reader.node)]
    if paying:
        weight = np.max([_input_magnitude(graph, reader, len(reach)) for reader in paying], axis=0)
        alive &= weight > 0
        inverse = 1 / np.where(alive, weight, 1.0)
        ways = [
            _scaled(magnitude**share * inverse ** (1 - share), magnitude, alive)
            for share in (_SHARES if by_noise else (0.5,))
        ]
        wanted = ways[0]
        if len(ways) > 1:
            wanted = min(ways, key=lambda way: sum(_expected_noise(graph, reader, seen, way) for reader in paying))
    return np.asarray(_scaled(wanted, magnitude, alive), np.float32)


def _scaled(wanted: np.ndarray, magnitude: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """``wanted`` (C) made safe, and such that the largest of ``magnitude`` (C) divided by it is 1."""
    if not alive.any():
        return np.ones(len(wanted))
    wanted = np.where(alive, wanted, 1.0)
    wanted = wanted * float((magnitude / wanted)[alive].max())
    center = float(np.exp(np.log(wanted[alive]).mean()))
    return np.asarray(np.where(alive, np.clip(wanted, center / _MOST, center * _MOST), center))


def _expected_noise(graph: Graph, reader: _Reader, seen: Channels, divisor: np.ndarray) -> float:
    """Noise over signal at the reader's outputs that rounding to 8 bits is expected to cause, summed over channels.

    Args:
        seen: statistics of the tensor before it is divided.
        divisor: what its channels are to be divided by.
    """
    split = _split(graph, reader)
    squares = (split.astype(np.float64) ** 2).sum(3)
    largest = np.abs(split).max(3)

    def spread(values: np.ndarray) -> np.ndarray:
        return _as_read(reader, split, values, 0.0)

    step = 2 * float((seen.largest() / divisor).max()) / 255
    activation = (squares * spread(divisor**2)).sum(2) * step**2
    weight_step = (largest * spread(divisor)).max(2) / 127
    weight = weight_step**2 * (split.shape[3] * spread(seen.variance() / divisor**2)).sum(2) * _WEIGHTS_MATTER
    signal = (squares * spread(seen.variance())).sum(2)
    return float(((activation + weight) / np.maximum(12 * signal, 1e-30)).sum())


def _depthwise(graph: Graph, node: Node) -> bool:
    return isinstance(node.op, ops.Conv) and graph.constants[node.inputs[1]].shape[1] == 1 and node.op.groups > 1


def _input_magnitude(graph: Graph, reader: _Reader, count: int) -> np.ndarray:
    """(count): the largest weight that reads each channel, relative to the scale of its own output channel."""
    rows = np.abs(_split(graph, reader)).max(3)
    rows = rows / np.maximum(rows.max(2, keepdims=True), 1e-30)
    return np.asarray(rows.max(1).reshape(-1)[reader.offset : reader.offset + count])


def _groups(node: Node) -> int:
    return node.op.groups if isinstance(node.op, ops.Conv | ops.ConvTranspose) else 1


def _scale_producer(graph: Graph, node: Node, divisor: np.ndarray) -> None:
    weight = graph.constants[node.inputs[1]]
    graph.constants[node.inputs[1]] = weight / divisor.reshape(-1, *[1] * (weight.ndim - 1))
    if len(node.inputs) > 2:
        graph.constants[node.inputs[2]] = graph.constants[node.inputs[2]] / divisor


def _scale_reader(graph: Graph, reader: _Reader, divisor: np.ndarray) -> None:
    name, split = reader.node.inputs[1], _split(graph, reader)
    scaled = split * _as_read(reader, split, divisor, 1.0)[..., None]
    graph.constants[name] = scaled.reshape(graph.constants[name].shape)
