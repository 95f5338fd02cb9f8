"""Masks that only functions read which are flat far out: what is masked need not lie far out of everything else.

Detectors add infinity to the logits of anchors that lie outside the picture, and take the sigmoid of the best ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvant.capture.builder import MASKED
from kvant.capture.passes.rewrite import rebuilt
from kvant.graph import Graph, Node, ops

# What is masked, and how far behind everything else it must be: a sigmoid is within 1e-7 of its end there.
_FAR = -MASKED / 2
_BEHIND = 16.0


def bring_masks_near(graph: Graph) -> Graph:
    """Constants whose far entries end in sigmoids alone, with these entries just far enough."""
    copy, consumers, nodes = graph.copy(), graph.consumers(), list[Node]()
    for node in graph.nodes:
        inputs = list(node.inputs)
        if node.op == ops.Binary("add") and _ends_in_sigmoids(graph, node.output, consumers):
            for at, name in enumerate(inputs):
                near = _near(graph.constants.get(name))
                if near is not None:
                    inputs[at] = copy.add_constant(name, near)
        nodes.append(replace(node, inputs=tuple(inputs)))
    return rebuilt(copy, nodes)


def _near(value: np.ndarray | None) -> np.ndarray | None:
    """A constant whose masked entries are near, if it has both these and others."""
    if value is None or value.dtype != np.float32:
        return None
    others = np.abs(value[np.abs(value) < _FAR])
    if others.size in (0, value.size):
        return None
    most = np.float32(others.max() + _BEHIND)
    return np.asarray(np.clip(value, -most, most), np.float32)


def _ends_in_sigmoids(graph: Graph, name: str, consumers: dict[str, list[Node]]) -> bool:
    readers = consumers[name]
    if name in graph.outputs or not readers:
        return False
    return all(_is_sigmoid(node) or _hands_on(graph, node, name, consumers) for node in readers)


def _hands_on(graph: Graph, node: Node, name: str, consumers: dict[str, list[Node]]) -> bool:
    moves = isinstance(node.op, ops.MOVES) and not isinstance(node.op, ops.Concat | ops.MaxPool)
    return moves and node.inputs[0] == name and _ends_in_sigmoids(graph, node.output, consumers)


def _is_sigmoid(node: Node) -> bool:
    """Whether a function sees nothing of its argument but the sigmoid."""
    if not isinstance(node.op, ops.Pointwise) or len(node.inputs) != 1:
        return False
    program = node.op.program
    after = [program[at + 1].fn if at + 1 < len(program) else "" for at, step in enumerate(program) if step.fn == "x"]
    return set(after) == {"sigmoid"}
