"""Sequential empirical bias correction: take the mean error of each layer out of its bias, from first to last.

Rounding errors times inputs that are not zero on average shift a layer's mean output, and the shifts add up with depth
(Nagel et al. 2019, section 4.2; Finkelstein et al. 2019). The quantized network runs node by node on all samples; each
layer's bias absorbs the difference from the float network's mean before the next layer is looked at, so a layer
corrects what the earlier ones could not.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import torch

from kvant.capture import Executor, last_uses
from kvant.graph import Graph, Node, ops
from kvant.quantization.equalize import unpadded
from kvant.quantization.progress import Progress
from kvant.quantization.rounding import compensated, gather, rounds_well
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values

Tensors = dict[str, torch.Tensor]


def float_means(graph: Graph, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """The mean of each channel of every weighted node's output, before its clamp, in the float network.

    Returns:
        float64 (O) by the node's output; means over ``samples``, positions and, for linear layers, rows.
    """
    executor = Executor(graph)
    sums = {node.output: _Mean(_axis(node)) for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
    steps = list(zip(graph.nodes, last_uses(graph), strict=True))
    with torch.inference_mode():
        for sample in samples:
            bindings = executor.bind(sample)
            values = dict(zip((entry.name for entry in graph.inputs), sample, strict=True))
            for node, dead in steps:
                if node.output in sums:
                    open_values = executor.step(_without_clamp(node), values, bindings)
                    sums[node.output].add(open_values)
                    values[node.output] = _clamped(node, open_values)
                else:
                    values[node.output] = executor.step(node, values, bindings)
                _drop(values, dead)
    return {name: mean.value() for name, mean in sums.items()}


def correct(
    plan: Plan, samples: list[Sample], wanted: dict[str, torch.Tensor], show: Progress, *, compensate: bool = False
) -> Plan:
    """``plan`` with the mean error on ``samples`` taken out of the biases.

    Args:
        plan: what is decided so far; its types say where the quantized network rounds.
        samples: lists of tensors in the order of the graph's inputs, all of them run in step.
        wanted: ``float_means`` of the graph on the same samples.
        compensate: also round each layer's weights anew, by ``kvant.quantization.rounding``, where that is affordable.

    Returns:
        A plan in which every weighted node has a bias, but those whose error the next layers' biases take out.
    """
    return _Correction(plan, samples, wanted, compensate).run(show)


class _Correction:
    def __init__(self, plan: Plan, samples: list[Sample], wanted: dict[str, torch.Tensor], compensate: bool) -> None:
        self.plan = plan
        self.wanted = wanted
        self.weights = dict(plan.weights)
        simulated = plan.simulated_graph()
        self.rough = Executor(simulated)
        self.steps = list(zip(plan.graph.nodes, simulated.nodes, last_uses(plan.graph), strict=True))
        self.rounded = makes_values(plan.graph)
        self.biases = dict(plan.biases)
        self.consumers = plan.graph.consumers()
        self.got: list[Tensors] = []
        self.bindings = [self.rough.bind(sample) for sample in samples]
        # The float network runs beside the quantized one only where weights are rounded to its activations.
        self.exact = Executor(plan.graph) if compensate else None
        self.true: list[Tensors] = []
        for sample in samples:
            named = {entry.name: values for entry, values in zip(plan.graph.inputs, sample, strict=True)}
            self.got.append({name: self._round(name, values) for name, values in named.items()})
            if compensate:
                self.true.append(named)

    def run(self, show: Progress) -> Plan:
        with torch.inference_mode():
            for node, rough, dead in show.track(self.steps, "correcting biases"):
                if isinstance(node.op, ops.WEIGHTED):
                    self._weighted(node, rough)
                else:
                    for got, bindings in zip(self.got, self.bindings, strict=True):
                        got[node.output] = self._round(node.output, self.rough.step(rough, got, bindings))
                self._follow(node)
                for values in (*self.got, *self.true):
                    _drop(values, dead)
        return replace(self.plan, weights=self.weights, biases=self.biases)

    def _follow(self, node: Node) -> None:
        """Run the float network's node, if it runs at all."""
        if self.exact is not None:
            for true, bindings in zip(self.true, self.bindings, strict=True):
                true[node.output] = self.exact.step(node, true, bindings)

    def _weighted(self, node: Node, rough: Node) -> None:
        if self.exact is not None:
            self._round_anew(node, rough)
        open_rough = _without_clamp(rough)
        mean = _Mean(_axis(node))
        for got, bindings in zip(self.got, self.bindings, strict=True):
            got[node.output] = self.rough.step(open_rough, got, bindings)
            mean.add(got[node.output])
        if node.output in self.biases or not self._absorbed(node):
            shift = (self.wanted[node.output] - mean.value()).float()
            self.biases[node.output] = self.biases.get(node.output, np.zeros(len(shift), np.float32)) + shift.numpy()
            for got in self.got:
                values, axis = got[node.output], _axis(node)
                values += shift.reshape([-1 if index == axis % values.dim() else 1 for index in range(values.dim())])
        for got in self.got:
            got[node.output] = self._round(node.output, _clamped(node, got[node.output]))

    def _absorbed(self, node: Node) -> bool:
        """Whether a shift of the output reaches only biases of later layers, which then take it out there."""
        if node.op.clamp is not None or node.output in self.plan.graph.outputs:  # type: ignore[union-attr]
            return False
        readers = self.consumers[node.output]
        return all(reader.output in self.biases and unpadded(reader.op) for reader in readers)

    def _round_anew(self, node: Node, rough: Node) -> None:
        weight = self.plan.graph.constants[node.inputs[1]]
        if not rounds_well(node, weight) or not self.weights[node.output].rounds_anew:
            return
        name = node.inputs[0]
        pairs = [(true[name], got[name]) for true, got in zip(self.true, self.got, strict=True)]
        moments = gather(node, weight, pairs)
        if not moments.determined():
            return
        anew = compensated(weight, self.weights[node.output], moments)
        self.weights[node.output] = anew
        self.rough.set_constant(rough.inputs[1], anew.dequantize())

    def _round(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return fake_quantize(values, self.plan.types[name]) if name in self.rounded else values


class _Mean:
    """The mean over all axes but one, of tensors that come one by one."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.total: torch.Tensor | None = None
        self.count = 0

    def add(self, values: torch.Tensor) -> None:
        others = [index for index in range(values.dim()) if index != self.axis % values.dim()]
        part = values.sum(others, dtype=torch.float64) if others else values.double()
        self.total = part if self.total is None else self.total + part
        self.count += values.numel() // part.numel()

    def value(self) -> torch.Tensor:
        """float64, one entry for each channel."""
        if self.total is None:
            raise ValueError("no samples")
        return self.total / self.count


def _axis(node: Node) -> int:
    """The axis of a weighted node's output channels."""
    return -1 if isinstance(node.op, ops.Linear) else 1


def _drop(values: Tensors, names: list[str]) -> None:
    for name in names:
        values.pop(name, None)


def _without_clamp(node: Node) -> Node:
    return replace(node, op=msgspec.structs.replace(node.op, clamp=None))


def _clamped(node: Node, values: torch.Tensor) -> torch.Tensor:
    clamp: ops.Clamp | None = node.op.clamp  # type: ignore[union-attr]
    return values if clamp is None else torch.clamp(values, clamp[0], clamp[1])
