"""The quantized network in float arithmetic: fast, close to the integers, and open to measurement at every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Graph, Node, Quantization, TensorType, ops
from kvant.quantization.schemes import Arithmetic
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.weights import QuantizedWeight
from kvant.runtime import Decision


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has been decided about a graph so far; not changed after it is made.

    Attributes:
        graph: float graph, prepared and equalized.
        types: integer type of every float activation.
        weights: integer weight of every weighted node, by the node's output.
        biases: float32 bias of every weighted node that has one, by the node's output.
        tables: staircases that weighted nodes read through, by the output of the node that stands for one and does
            nothing in the float graph.
        reals: how weighted nodes that take float32 multiply, by the node's output.
        decisions: what was tried on the way.
    """

    graph: Graph
    types: dict[str, TensorType]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, np.ndarray]
    tables: dict[str, ops.Pointwise] = field(default_factory=dict)
    reals: dict[str, Arithmetic] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()

    def float_weights(self) -> dict[str, np.ndarray]:
        """The float32 weight that each of ``weights`` stands for, by the node's output."""
        constants = self.graph.constants
        return {node.output: constants[node.inputs[1]] for node in self.graph.nodes if node.output in self.weights}

    def multiplied(self, node: Node) -> ops.AnyOp:
        """The operator of a weighted node as it runs: whether rows of its input are quantized then."""
        if self.reals.get(node.output) != "dynamic" or not isinstance(node.op, ops.Linear):
            return node.op
        return msgspec.structs.replace(node.op, dynamic=True)

    def simulated_graph(self) -> Graph:
        """The float graph whose weights are the reals that the integers stand for.

        Staircases, and rows that get their scales when they run, are rounded in it too.
        """
        graph = self.graph.copy()
        for index, node in enumerate(graph.nodes):
            if node.output in self.tables:
                graph.nodes[index] = replace(node, op=self.tables[node.output])
            if not isinstance(node.op, ops.WEIGHTED):
                continue
            inputs = [
                node.inputs[0],
                graph.add_constant(f"{node.output}.weight", self.weights[node.output].dequantize()),
            ]
            if node.output in self.biases:
                inputs.append(graph.add_constant(f"{node.output}.bias", self.biases[node.output]))
            graph.nodes[index] = replace(node, op=self.multiplied(node), inputs=tuple(inputs))
        graph.replace_nodes(graph.nodes)
        return graph


def fake_quantize(values: torch.Tensor, type: TensorType) -> torch.Tensor:
    """``values`` rounded to what the integers of ``type`` can stand for; float32, same shape."""
    if type.quantization is None:
        return values
    return from_zero(values, type.quantization, *type.integer_range()).mul_(type.quantization.scale[0])


def from_zero(values: torch.Tensor, quantization: Quantization, low: int, high: int) -> torch.Tensor:
    """The integers from ``low`` to ``high`` that stand for ``values``, less their zero point; float32, same shape."""
    zero = quantization.zero_point
    return torch.div(values, quantization.scale[0]).round_().clamp_(low - zero, high - zero)


def run_noting_choices(executor: Executor, sample: Sample) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The outputs of a network, and the places of what it chose by size, by name."""
    chosen = {node.output for node in executor.graph.nodes if isinstance(node.op, ops.TopK)}
    choices: dict[str, torch.Tensor] = {}

    def note(name: str, values: torch.Tensor) -> None:
        if name in chosen:
            choices[name] = values

    return executor.run(sample, note), choices


class Simulation:
    """Runs a plan in float arithmetic, rounding every activation where the integer network rounds it."""

    def __init__(self, plan: Plan) -> None:
        self.types = plan.types
        self.rounded = makes_values(plan.graph)
        self.executor = Executor(plan.simulated_graph())

    def run(self, sample: Sample, choices: Mapping[str, torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The outputs for one sample, with what the float network chose by size (``run_noting_choices``).

        Which of two nearly equal elements comes first is no matter of noise: compared is what is made of the same ones.
        """
        made = choices or {}
        return self.executor.run(sample, lambda name, values: made.get(name, self._round(name, values)))

    def _round(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        return fake_quantize(values, self.types[name]) if name in self.rounded else None
