"""Factors that something else can take over: of channels, the convolutions that read them; of inputs, their scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvant.capture.passes.rewrite import rebuilt, sole_readers
from kvant.graph import Graph, Node, Quantization, TensorType, evaluate_program, ops


def fold_channel_scales(graph: Graph) -> Graph:
    """Fold each depthwise 1x1 Conv without activation into the convolutions that read it, where no one else does.

    One rounding, one tensor and one pass over memory less each; exact in real arithmetic. The folded weights are
    computed in float64 and rounded once.
    """
    copy = graph.copy()
    consumers = graph.consumers()
    gone: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        before = gone.get(node.inputs[0])
        if before is not None:
            node = _absorb(copy, node, before)
        if node.output not in graph.outputs and _scales_channels(copy, node, consumers[node.output]):
            gone[node.output] = node
        else:
            nodes.append(node)
    return rebuilt(copy, nodes)


def _scales_channels(graph: Graph, node: Node, readers: list[Node]) -> bool:
    """Whether ``node`` is a depthwise 1x1 Conv that only convolutions read, and those can take it over."""
    op = node.op
    if not isinstance(op, ops.Conv) or op.clamp is not None or not readers:
        return False
    if any(name not in graph.constants for name in node.inputs[1:]):
        return False
    shape = graph.constants[node.inputs[1]].shape
    plain = set(op.strides) == {1} and not any((*op.pads_begin, *op.pads_end))
    if not plain or shape != (op.groups, 1, *[1] * (len(shape) - 2)):
        return False
    return all(_absorbs(graph, reader, node) for reader in readers)


def _absorbs(graph: Graph, reader: Node, node: Node) -> bool:
    if not isinstance(reader.op, ops.Conv | ops.ConvTranspose) or reader.inputs.count(node.output) != 1:
        return False
    if reader.inputs[0] != node.output or any(name not in graph.constants for name in reader.inputs[1:]):
        return False
    # A bias reaches every position but the padding, so only an unpadded convolution turns it into a bias of its own.
    padded = any((*reader.op.pads_begin, *reader.op.pads_end))
    return len(node.inputs) == 2 or (isinstance(reader.op, ops.Conv) and not padded)


def _absorb(graph: Graph, reader: Node, node: Node) -> Node:
    """``reader`` reading what ``node`` reads, with ``node``'s factors in its weights and its offsets in its bias."""
    op = reader.op
    if not isinstance(op, ops.Conv | ops.ConvTranspose):
        raise TypeError(f"{reader.describe()} is no convolution")
    weight = graph.constants[reader.inputs[1]].astype(np.float64)
    grouped = weight.reshape(op.groups, -1, *weight.shape[1:])
    spread = (op.groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    factor = graph.constants[node.inputs[1]].astype(np.float64).reshape(spread)
    scaled = (grouped * factor).reshape(weight.shape)
    inputs = [node.inputs[0], graph.add_constant(reader.inputs[1], scaled.astype(np.float32)), *reader.inputs[2:]]
    if len(node.inputs) == 3:
        offset = graph.constants[node.inputs[2]].astype(np.float64).reshape(spread)
        bias = (grouped * offset).reshape(weight.shape[0], -1).sum(1)
        own = graph.constants[reader.inputs[2]].astype(np.float64) if len(inputs) > 2 else 0.0
        name = reader.inputs[2] if len(inputs) > 2 else f"{reader.inputs[1]}.bias"
        inputs[2:] = [graph.add_constant(name, (bias + own).astype(np.float32))]
    return replace(reader, inputs=tuple(inputs))


def fold_input_scales(graph: Graph) -> Graph:
    """Make a factor that an input of integers is multiplied by its scale: bytes divided by 255 stay the bytes they are.

    Exact in real arithmetic, but for the rounding of the scale to float32.
    """
    readers, copy = sole_readers(graph), graph.copy()
    renamed: dict[str, str] = {}
    for entry in graph.inputs:
        if entry.type.quantization is not None:
            integers, node = _moved(readers, entry.name)
            if node is None or not isinstance(node.op, ops.Dequantize):
                continue
            _, last = _moved(readers, node.output)
            factor = None if last is None else _factor(last, entry.type)
            if last is not None and factor is not None:
                scaled = TensorType(entry.type.dtype, Quantization((factor,)))
                copy.inputs = tuple(replace(each, type=scaled) if each is entry else each for each in copy.inputs)
                copy.types |= dict.fromkeys([entry.name, *integers], scaled)
                renamed[last.output] = last.inputs[0]
    return rebuilt(copy, [node for node in copy.nodes if node.output not in renamed], renamed)


def _moved(readers: dict[str, Node], name: str) -> tuple[list[str], Node | None]:
    """Where the integers of ``name`` are moved to, each by the only reader, and who reads them then."""
    places: list[str] = []
    node = readers.get(name)
    while node is not None and _only_moves(node, name):
        name = node.output
        places.append(name)
        node = readers.get(name)
    return places, node


def _only_moves(node: Node, name: str) -> bool:
    """Whether nothing but the integers of ``name``, and zeros, are in the node's output."""
    if node.inputs[0] != name or len(node.inputs) > (2 if isinstance(node.op, ops.Gather) else 1):
        return False
    return isinstance(node.op, ops.MOVES) and getattr(node.op, "value", 0.0) == 0


def _factor(node: Node, type: TensorType) -> float | None:
    """The positive float32 by which ``node`` multiplies every number of ``type``, if that is all it does."""
    if not isinstance(node.op, ops.Pointwise) or len(node.inputs) != 1:
        return None
    low, high = type.integer_range()
    numbers = np.arange(low, high + 1, dtype=np.float64)
    values = evaluate_program(node.op.program, numbers)
    factor = float(np.float32(values[-1] / numbers[-1]))
    alike = np.allclose(values, numbers * factor, rtol=1e-6, atol=0) and np.isfinite(factor)
    return factor if alike and factor > 0 else None
