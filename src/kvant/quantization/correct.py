"""Sequential empirical bias correction: take the mean error of each layer out of its bias, from first to last.

Rounding errors times inputs that are not zero on average shift a layer's mean output, and the shifts add up with depth
(Nagel et al. 2019, section 4.2; Finkelstein et al. 2019). The float and the quantized network run side by side, node by
node, on the same samples; each layer's bias absorbs the difference of the means before the next layer is looked at, so
a layer corrects what the earlier ones could not.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import torch

from kvant.capture import Executor
from kvant.graph import Node, ops
from kvant.quantization.progress import Progress
from kvant.quantization.rounding import compensated, gather, rounds_well
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values

Tensors = dict[str, torch.Tensor]


def correct(plan: Plan, samples: list[Sample], show: Progress, *, compensate: bool = False) -> Plan:
    """``plan`` with the mean error on ``samples`` taken out of the biases.

    Args:
        plan: what is decided so far; its types say where the quantized network rounds.
        samples: lists of tensors in the order of the graph's inputs, all of them run in step.
        compensate: also round each layer's weights anew, by ``kvant.quantization.rounding``, where that is affordable.

    Returns:
        A plan in which every weighted node has a bias, but those whose error the next layers' biases take out.
    """
    return _Correction(plan, samples, compensate).run(show)


class _Correction:
    def __init__(self, plan: Plan, samples: list[Sample], compensate: bool) -> None:
        self.plan = plan
        self.compensate = compensate
        self.weights = dict(plan.weights)
        simulated = plan.simulated_graph()
        self.exact = Executor(plan.graph)
        self.rough = Executor(simulated)
        self.pairs = list(zip(plan.graph.nodes, simulated.nodes, strict=True))
        self.rounded = makes_values(plan.graph)
        self.biases = dict(plan.biases)
        self.consumers = plan.graph.consumers()
        self.wanted: list[Tensors] = []
        self.got: list[Tensors] = []
        self.bindings = [self.exact.bind(sample) for sample in samples]
        for sample in samples:
            named = {entry.name: values for entry, values in zip(plan.graph.inputs, sample, strict=True)}
            self.wanted.append(named)
            self.got.append({name: self._round(name, values) for name, values in named.items()})

    def run(self, show: Progress) -> Plan:
        last_use = {name: index for index, (node, _) in enumerate(self.pairs) for name in node.inputs}
        with torch.inference_mode():
            for index, (node, rough) in enumerate(show.track(self.pairs, "correcting biases")):
                if isinstance(node.op, ops.WEIGHTED):
                    self._weighted(node, rough)
                else:
                    self._other(node, rough)
                self._forget(index, last_use)
        return replace(self.plan, weights=self.weights, biases=self.biases)

    def _other(self, node: Node, rough: Node) -> None:
        for wanted, got, bindings in zip(self.wanted, self.got, self.bindings, strict=True):
            wanted[node.output] = self.exact.step(node, wanted, bindings)
            got[node.output] = self._round(node.output, self.rough.step(rough, got, bindings))

    def _weighted(self, node: Node, rough: Node) -> None:
        if self.compensate:
            self._round_anew(node, rough)
        clamp = node.op.clamp  # type: ignore[union-attr]
        open_node, open_rough = _without_clamp(node), _without_clamp(rough)
        for wanted, got, bindings in zip(self.wanted, self.got, self.bindings, strict=True):
            wanted[node.output] = self.exact.step(open_node, wanted, bindings)
            got[node.output] = self.rough.step(open_rough, got, bindings)
        if node.output not in self.biases and self._absorbed(node):
            self._finish(node, clamp)
            return
        axis = -1 if isinstance(node.op, ops.Linear) else 1
        shift = self._shift(node.output, axis)
        self.biases[node.output] = self.biases.get(node.output, np.zeros(len(shift), np.float32)) + shift.numpy()
        for got in self.got:
            values = got[node.output]
            values += shift.reshape([-1 if index == axis % values.dim() else 1 for index in range(values.dim())])
        self._finish(node, clamp)

    def _finish(self, node: Node, clamp: ops.Clamp | None) -> None:
        for wanted, got in zip(self.wanted, self.got, strict=True):
            wanted[node.output] = _clamped(wanted[node.output], clamp)
            got[node.output] = self._round(node.output, _clamped(got[node.output], clamp))

    def _absorbed(self, node: Node) -> bool:
        """Whether a shift of the output reaches only biases of later layers, which then take it out there."""
        if node.op.clamp is not None or node.output in self.plan.graph.outputs:  # type: ignore[union-attr]
            return False
        readers = self.consumers[node.output]
        return all(reader.output in self.biases and _unpadded(reader.op) for reader in readers)

    def _round_anew(self, node: Node, rough: Node) -> None:
        weight = self.plan.graph.constants[node.inputs[1]]
        if self.weights[node.output].fine or not rounds_well(node, weight):
            return
        name = node.inputs[0]
        pairs = [(wanted[name], got[name]) for wanted, got in zip(self.wanted, self.got, strict=True)]
        moments = gather(node, weight, pairs)
        if not moments.determined():
            return
        anew = compensated(weight, self.weights[node.output].scale, moments)
        self.weights[node.output] = anew
        self.rough.set_constant(rough.inputs[1], anew.dequantize())

    def _shift(self, name: str, axis: int) -> torch.Tensor:
        """float32 (O): mean of float minus quantized output over samples and all axes but that of the channels."""
        parts, count = [], 0
        for wanted, got in zip(self.wanted, self.got, strict=True):
            difference = wanted[name] - got[name]
            others = [index for index in range(difference.dim()) if index != axis % difference.dim()]
            part = difference.sum(others, dtype=torch.float64) if others else difference.double()
            parts.append(part)
            count += difference.numel() // part.numel()
        return (torch.stack(parts).sum(0) / count).float()

    def _round(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return fake_quantize(values, self.plan.types[name]) if name in self.rounded else values

    def _forget(self, index: int, last_use: dict[str, int]) -> None:
        for name in self.pairs[index][0].inputs:
            if last_use[name] == index:
                for tensors in (*self.wanted, *self.got):
                    tensors.pop(name, None)


def _without_clamp(node: Node) -> Node:
    return replace(node, op=msgspec.structs.replace(node.op, clamp=None))


def _unpadded(op: ops.AnyOp) -> bool:
    if isinstance(op, ops.Conv):
        return not any((*op.pads_begin, *op.pads_end))
    return isinstance(op, ops.Linear)


def _clamped(values: torch.Tensor, clamp: ops.Clamp | None) -> torch.Tensor:
    return values if clamp is None else torch.clamp(values, clamp[0], clamp[1])
