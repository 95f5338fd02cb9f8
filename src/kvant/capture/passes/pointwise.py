"""Fusion of clamps into their producers, and of pointwise functions of one tensor into one function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from kvant.capture.passes.batchnorm import replace_clamp
from kvant.capture.passes.cleanup import remove_dead
from kvant.capture.passes.rewrite import rebuilt, sole_readers
from kvant.graph import Graph, Node, ops
from kvant.graph.ops import Clamp, Step

_TAKES_CLAMP = (ops.Conv, ops.ConvTranspose, ops.Linear, ops.MatMul, ops.Binary, ops.BatchNorm)
# Longer programs are left as several functions.
MAX_STEPS = 64


def clamp_of(node: Node) -> Clamp | None:
    """The bounds of a Pointwise that is a clamp and nothing else."""
    if not isinstance(node.op, ops.Pointwise) or len(node.inputs) != 1 or len(node.op.program) != 2:
        return None
    first, last = node.op.program
    if first.fn != "x" or last.fn != "clamp":
        return None
    return (last.a if math.isfinite(last.a) else None, last.b if math.isfinite(last.b) else None)


def fuse_clamps(graph: Graph) -> Graph:
    """Make a clamp (ReLU, ReLU6, hard tanh) part of the operator before it, if nothing else reads that one's result.

    The operator takes over the clamp's output name.
    """
    readers = sole_readers(graph)
    nodes: list[Node] = []
    position: dict[str, int] = {}
    for node in graph.nodes:
        bounds = clamp_of(node)
        before = position.get(node.inputs[0])
        if bounds is not None and before is not None and readers.get(node.inputs[0]) is node:
            fused = _fused(nodes[before], bounds)
            if fused is not None:
                nodes[before] = replace(fused, output=node.output)
                position[node.output] = before
                continue
        if isinstance(node.op, _TAKES_CLAMP):
            position[node.output] = len(nodes)
        nodes.append(node)
    return rebuilt(graph, nodes)


def _fused(producer: Node, bounds: Clamp) -> Node | None:
    if not isinstance(producer.op, _TAKES_CLAMP):
        return None
    low, high = producer.op.clamp or (None, None)
    # clamp(clamp(y, low, high), bounds): each bound of the first is clamped by the second.
    clamp = (_bound(low, bounds, bounds[0]), _bound(high, bounds, bounds[1]))
    return replace(producer, op=replace_clamp(producer.op, clamp))


def _bound(bound: float | None, outer: Clamp, default: float | None) -> float | None:
    if bound is None:
        return default
    low, high = outer
    bound = bound if low is None else max(bound, low)
    return bound if high is None else min(bound, high)


def fuse_pointwise(graph: Graph) -> Graph:
    """Make every function of a single tensor's elements one Pointwise: x * sigmoid(x), x * relu6(x + 3) / 6, chains.

    A result that others read too stays available: it is computed beside the fused function.
    """
    functions: dict[str, list[Node]] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        forms = _forms(node, functions)
        if forms:
            functions[node.output] = forms
        nodes.append(forms[-1] if forms else node)
    return remove_dead(rebuilt(graph, nodes))


def _forms(node: Node, functions: Mapping[str, list[Node]]) -> list[Node]:
    """``node`` as a Pointwise of ever earlier tensors, the nearest first; none if it is no function of one tensor."""
    if isinstance(node.op, ops.Pointwise):
        forms = [node]
    elif isinstance(node.op, ops.Binary):
        forms = _joined(node, node.op, functions)
    else:
        return []
    for before in functions.get(forms[-1].inputs[0], []) if forms else []:
        combined = _after(forms[0], before)
        if combined is not None:
            forms.append(combined)
    return forms


def _after(node: Node, before: Node) -> Node | None:
    """The Pointwise ``node`` of the result of the Pointwise ``before`` as one function of what that one reads."""
    if not isinstance(node.op, ops.Pointwise) or not isinstance(before.op, ops.Pointwise):
        return None
    program = tuple(
        step for own in node.op.program for step in (before.op.program if own.fn == "x" else (own,))
    )  # fmt: skip
    if len(program) > MAX_STEPS or (len(node.inputs) > 1 and len(before.inputs) > 1):
        return None
    axis = node.op.axis if len(node.inputs) > 1 else before.op.axis
    parameters = node.inputs[1:] or before.inputs[1:]
    return replace(node, op=ops.Pointwise(program, axis), inputs=(before.inputs[0], *parameters))


def _joined(node: Node, op: ops.Binary, functions: Mapping[str, list[Node]]) -> list[Node]:
    """A Binary whose operands are functions of the same tensor as one Pointwise of that tensor."""
    left, right = (_roots(name, functions) for name in node.inputs)
    for root in left:
        if root not in right:
            continue
        program = (*left[root], *right[root], Step(op.fn), *_clamp_steps(op.clamp))
        if len(program) <= MAX_STEPS:
            return [replace(node, op=ops.Pointwise(program), inputs=(root,))]
    return []


def _roots(name: str, functions: Mapping[str, list[Node]]) -> dict[str, tuple[Step, ...]]:
    """Every tensor that ``name`` is a function of, the nearest first: itself, and what its Pointwise forms read."""
    found: dict[str, tuple[Step, ...]] = {name: (Step("x"),)}
    for node in functions.get(name, []):
        if isinstance(node.op, ops.Pointwise) and len(node.inputs) == 1:
            found.setdefault(node.inputs[0], node.op.program)
    return found


def _clamp_steps(clamp: Clamp | None) -> tuple[Step, ...]:
    if clamp is None:
        return ()
    low, high = clamp
    return (Step("clamp", -math.inf if low is None else low, math.inf if high is None else high),)
