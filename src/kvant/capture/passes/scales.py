"""A depthwise 1x1 convolution multiplies each channel by a number: the convolutions that read it can do that too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvant.capture.passes.rewrite import rebuilt
from kvant.graph import Graph, Node, ops


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
