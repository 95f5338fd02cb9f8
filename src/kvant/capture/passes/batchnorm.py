"""Inference batch norm is y = a x + b per channel: part of the layer before it, or a layer of its own."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvant.capture.passes.rewrite import rebuilt, sole_readers
from kvant.errors import GraphError
from kvant.graph import Graph, Node, example_shapes, infer_shapes, ops

Vector = NDArray[np.float64]


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold each BatchNorm into the Conv, ConvTranspose or Linear before it, if nothing else reads that.

    The folded weights are computed in float64 and rounded once. The layer takes over the batch norm's output name.
    """
    shapes = infer_shapes(graph, example_shapes(graph))
    copy = graph.copy()
    readers = sole_readers(graph)
    folded: dict[str, Node] = {}
    for node in graph.nodes:
        norm = readers.get(node.output)
        if norm is not None and isinstance(norm.op, ops.BatchNorm) and _folds(graph, node, len(shapes[node.output])):
            folded[node.output] = _fold(copy, node, norm)
    gone = {replacement.output for replacement in folded.values()}
    kept = (node for node in graph.nodes if node.output not in gone)
    return rebuilt(copy, [folded.get(node.output, node) for node in kept])


def _folds(graph: Graph, node: Node, rank: int) -> bool:
    constant = all(name in graph.constants for name in node.inputs[1:])
    if isinstance(node.op, ops.Linear):
        # Batch norm runs along axis 1, which is the features' axis of matrices only.
        return node.op.clamp is None and constant and rank == 2
    return isinstance(node.op, ops.Conv | ops.ConvTranspose) and node.op.clamp is None and constant


def _fold(graph: Graph, node: Node, norm: Node) -> Node:
    if not isinstance(node.op, ops.WEIGHTED) or not isinstance(norm.op, ops.BatchNorm):
        raise GraphError(f"{node.describe()} cannot take over {norm.describe()}")
    factor, offset = affine(graph, norm)
    weight = graph.constants[node.inputs[1]].astype(np.float64)
    bias = graph.constants[node.inputs[2]].astype(np.float64) if len(node.inputs) > 2 else 0.0
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    names = [
        graph.add_constant(node.inputs[1], weight.astype(np.float32)),
        graph.add_constant(_bias_name(node), (bias * factor + offset).astype(np.float32)),
    ]
    op = replace_clamp(node.op, norm.op.clamp)
    return replace(node, op=op, inputs=(node.inputs[0], *names), output=norm.output)


def _bias_name(node: Node) -> str:
    return node.inputs[2] if len(node.inputs) > 2 else node.inputs[1].removesuffix("weight") + "bias"


def replace_clamp(op: ops.AnyOp, clamp: ops.Clamp | None) -> ops.AnyOp:
    """``op`` with another fused activation."""
    return msgspec.structs.replace(op, clamp=clamp)


def affine(graph: Graph, norm: Node) -> tuple[Vector, Vector]:
    """Factor and offset per channel of a BatchNorm node, in float64."""
    if not isinstance(norm.op, ops.BatchNorm):
        raise GraphError(f"{norm.describe()} is no batch norm")
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.inputs[1:])
    factor = gamma / np.sqrt(variance + norm.op.eps)
    return factor, beta - mean * factor


def replace_batch_norm(graph: Graph) -> Graph:
    """Turn each BatchNorm that is left into a depthwise 1x1 Conv (for rank 3 and 4), else into a product and a sum."""
    shapes = infer_shapes(graph, example_shapes(graph))
    copy = graph.copy()
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node.op, ops.BatchNorm):
            nodes += _as_layers(copy, node, len(shapes[node.inputs[0]]))
        else:
            nodes.append(node)
    return rebuilt(copy, nodes)


def _as_layers(graph: Graph, node: Node, rank: int) -> list[Node]:
    if not isinstance(node.op, ops.BatchNorm):
        raise GraphError(f"{node.describe()} is no batch norm")
    factor, offset = (vector.astype(np.float32) for vector in affine(graph, node))
    prefix = node.output
    if rank in (3, 4):
        axes = rank - 2
        weight = graph.add_constant(f"{prefix}.weight", factor.reshape(-1, 1, *[1] * axes))
        bias = graph.add_constant(f"{prefix}.bias", offset)
        zeros, ones = (0,) * axes, (1,) * axes
        conv = ops.Conv(ones, zeros, zeros, ones, groups=factor.size, clamp=node.op.clamp)
        return [replace(node, op=conv, inputs=(node.inputs[0], weight, bias))]
    shape = (-1, *[1] * (rank - 2))
    scale = graph.add_constant(f"{prefix}.scale", factor.reshape(shape))
    shift = graph.add_constant(f"{prefix}.shift", offset.reshape(shape))
    product = graph.fresh(f"{prefix}.scaled")
    graph.types[product] = graph.types[node.output]
    return [
        replace(node, op=ops.Binary("mul"), inputs=(node.inputs[0], scale), output=product),
        replace(node, op=ops.Binary("add", node.op.clamp), inputs=(product, shift)),
    ]
