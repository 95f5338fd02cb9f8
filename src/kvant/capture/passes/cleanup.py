"""Passes that remove what does nothing: identities, dead nodes, repeated constants, separate padding."""

from __future__ import annotations

from dataclasses import replace

from kvant.capture.passes.rewrite import rebuilt, resolve, sole_readers
from kvant.graph import Graph, Node, example_shapes, infer_shapes, ops


def remove_dead(graph: Graph) -> Graph:
    """Remove nodes that no output depends on, and the constants that only they read."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            kept.append(node)
    return rebuilt(graph, kept[::-1])


def remove_identities(graph: Graph) -> Graph:
    """Remove nodes that return what they are given, and merge transposes of transposes and reshapes of reshapes."""
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    by_output: dict[str, Node] = {}
    shapes = infer_shapes(graph, example_shapes(graph))
    for node in graph.nodes:
        node = replace(node, inputs=tuple(resolve(renamed, name) for name in node.inputs))
        node = _merged(node, by_output.get(node.inputs[0]))
        if _is_identity(node, shapes[node.inputs[0]], graph) and shapes[node.inputs[0]] == shapes[node.output]:
            renamed[node.output] = node.inputs[0]
            continue
        by_output[node.output] = node
        nodes.append(node)
    return remove_dead(rebuilt(graph, nodes, renamed))


def _merged(node: Node, before: Node | None) -> Node:
    """``node`` reading past the node ``before`` it, where the two are one move of elements."""
    if before is None:
        return node
    if isinstance(node.op, ops.Transpose) and isinstance(before.op, ops.Transpose):
        inner = before.op.permutation
        return replace(node, op=ops.Transpose(tuple(inner[axis] for axis in node.op.permutation)), inputs=before.inputs)
    if isinstance(node.op, ops.Reshape) and isinstance(before.op, ops.Reshape):
        return replace(node, inputs=before.inputs)
    return node


def _is_identity(node: Node, given: tuple[int, ...], graph: Graph) -> bool:
    """Whether ``node`` returns its input at any size; ``given`` is the input's shape at the example's."""
    match node.op:
        case ops.Transpose(permutation=permutation):
            return permutation == tuple(range(len(permutation)))
        case ops.Reshape(shape=shape) | ops.Expand(shape=shape):
            # All sizes but one fixed and equal to the example's: the last one has no choice.
            fixed = [dim for dim in shape if isinstance(dim, int) and dim != -1]
            entry = next((entry for entry in graph.inputs if entry.name == node.inputs[0]), None)
            if entry is not None and entry.shape == shape:
                return True
            return len(fixed) == len(shape) == len(given) and tuple(fixed) == given
        case ops.Concat():
            return len(node.inputs) == 1
        case ops.Pad(begin=begin, end=end):
            return not any((*begin, *end))
        case ops.Slice(start=0, stop=None, step=1):
            return True
    return False


def merge_constants(graph: Graph) -> Graph:
    """Keep one of several constants with the same name-independent contents."""
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for name, value in graph.constants.items():
        key = (value.dtype.name, value.shape, graph.types[name], value.tobytes())
        if key in first:
            renamed[name] = first[key]
        first.setdefault(key, name)
    return rebuilt(graph, graph.nodes, renamed)


def fold_pads(graph: Graph) -> Graph:
    """Make an explicit zero padding of the spatial axes part of the Conv that alone reads it."""
    readers = sole_readers(graph)
    pads = {node.output: node for node in graph.nodes if _folds(node, readers.get(node.output))}
    nodes = [
        _padded(node, pads[node.inputs[0]]) if node.inputs[0] in pads else node
        for node in graph.nodes
        if node.output not in pads
    ]
    return rebuilt(graph, nodes)


def _folds(node: Node, reader: Node | None) -> bool:
    if not isinstance(node.op, ops.Pad) or reader is None or not isinstance(reader.op, ops.Conv):
        return False
    sizes = (*node.op.begin, *node.op.end)
    fixed = all(isinstance(size, int) and size >= 0 for size in sizes)
    spatial = not any((*node.op.begin[:2], *node.op.end[:2]))
    return fixed and spatial and node.op.mode == "constant" and node.op.value == 0


def _padded(conv: Node, pad: Node) -> Node:
    if not isinstance(conv.op, ops.Conv) or not isinstance(pad.op, ops.Pad):
        return conv
    begin = tuple(own + extra for own, extra in zip(conv.op.pads_begin, pad.op.begin[2:], strict=True))  # type: ignore[operator]
    end = tuple(own + extra for own, extra in zip(conv.op.pads_end, pad.op.end[2:], strict=True))  # type: ignore[operator]
    op = ops.Conv(conv.op.strides, begin, end, conv.op.dilations, conv.op.groups, conv.op.clamp)
    return replace(conv, op=op, inputs=(pad.inputs[0], *conv.inputs[1:]))
