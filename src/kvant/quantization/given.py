"""Activations whose integers are known beforehand: an input's own, and the zeros and ones of masks."""

from __future__ import annotations

import math

import numpy as np

from kvant.graph import Graph, Node, Quantization, TensorType, evaluate_program, ops
from kvant.quantization.ranges import scale_of
from kvant.quantization.schemes import ActivationScheme
from kvant.quantization.ties import makes_values, moved_inputs, moves

MASK = TensorType("uint8", Quantization((1.0,)))
_BITS = np.array([0.0, 1.0])
# Numbers of every size, at which a function shows whether it is nothing but 0 and 1.
_NUMBERS = np.concatenate([-np.logspace(30, -30, 1201), [0.0], np.logspace(-30, 30, 1201)])


def given_types(graph: Graph, group_of: dict[str, str]) -> dict[str, TensorType]:
    """The types of groups that hold nothing but the integers of an input, or zeros and ones: they lose nothing."""
    made = [group_of[name] for name in makes_values(graph)]
    given: dict[str, TensorType] = {}
    for node in graph.nodes:
        if node.output not in group_of or made.count(group_of[node.output]) != 1:
            continue
        if isinstance(node.op, ops.Dequantize):
            given[group_of[node.output]] = graph.types[node.inputs[0]]
        elif _is_mask(graph, node, all(given.get(group_of.get(name, "")) == MASK for name in node.inputs)):
            given[group_of[node.output]] = MASK
    return given


def fits(type: TensorType, scheme: ActivationScheme) -> bool:
    """Whether integers of ``type``, whose zero point is 0, are what ``scheme`` asks for."""
    return scheme.bits >= 8 and (scheme.form != "power_of_two" or math.frexp(scale_of(type))[0] == 0.5)


def _is_mask(graph: Graph, node: Node, of_masks: bool) -> bool:
    """Whether ``node``, all of whose inputs are such if it is ``of_masks``, makes nothing but zeros and ones."""
    if isinstance(node.op, ops.Pointwise):
        numbers = _BITS if of_masks else _NUMBERS
        return len(node.inputs) == 1 and _zeros_and_ones(evaluate_program(node.op.program, numbers))
    if isinstance(node.op, ops.Binary):
        return node.op.fn in ("mul", "max", "min") and node.op.clamp is None and of_masks
    constants = [graph.constants[name] for name in moved_inputs(node) if name in graph.constants]
    return moves(node) and len(constants) == len(moved_inputs(node)) and all(map(_zeros_and_ones, constants))


def _zeros_and_ones(values: np.ndarray) -> bool:
    return bool(np.isin(values, _BITS).all())
