"""Sequential empirical bias correction: take the mean error of each layer out of its bias, from first to last.

Rounding errors times inputs that are not zero on average shift a layer's mean output, and the shifts add up with depth
(Nagel et al. 2019, section 4.2; Finkelstein et al. 2019). The quantized network runs node by node on all samples; each
layer's bias absorbs the difference from the float network's mean before the next layer is looked at, so a layer
corrects what the earlier ones could not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from kvant.capture import Executor, last_uses
from kvant.graph import Node, TensorType, ops
from kvant.quantization.equalize import unpadded
from kvant.quantization.learned import learned
from kvant.quantization.progress import Progress
from kvant.quantization.rounding import compensated, gather, rounds_well
from kvant.quantization.simulate import Plan, integers_of
from kvant.quantization.statistics import Sample
from kvant.quantization.truth import Mean, Means, channel_axis, clamped, together, without_clamp
from kvant.quantization.workers import in_order

Result = TypeVar("Result")
Tensors = dict[str, torch.Tensor]


def correct(plan: Plan, samples: list[Sample], wanted: Means, show: Progress, *, compensate: bool = False) -> Plan:
    """``plan`` with the mean error on ``samples`` taken out of the biases.

    Args:
        plan: what is decided so far; its types say where the quantized network rounds.
        samples: lists of tensors in the order of the graph's inputs, all of them run in step.
        wanted: the means of the float graph's layers on the same samples, before their clamps.
        compensate: also round each layer's weights anew, by ``kvant.quantization.rounding``, where that is affordable.

    Returns:
        A plan in which every weighted node has a bias, but those whose error the next layers' biases take out.
    """
    return _Correction(plan, samples, wanted, compensate).run(show)


class _Correction:
    def __init__(self, plan: Plan, samples: list[Sample], wanted: Means, compensate: bool) -> None:
        self.plan = plan
        self.wanted = wanted
        self.weights = dict(plan.weights)
        simulated = plan.simulated_graph()
        self.rough = Executor(simulated)
        self.steps = [
            (node, rough, [name for name in dead if name != node.output])
            for node, rough, dead in zip(plan.graph.nodes, simulated.nodes, last_uses(plan.graph), strict=True)
        ]
        self.biases = dict(plan.biases)
        self.consumers = plan.graph.consumers()
        self.got: list[_Held] = []
        self.bindings = [self.rough.bind(sample) for sample in samples]
        # The float network runs beside the quantized one only where weights are rounded to its activations.
        learns = any(weight.scheme.rounding == "learned" for weight in plan.weights.values())
        self.compensate = compensate
        self.exact = Executor(plan.graph) if compensate or learns else None
        self.true: list[_Held] = []
        # In 16 bits the float network's activations lose next to nothing.
        wide = {name: type for name, type in plan.types.items() if type.dtype == "int16"}
        for sample in samples:
            got = _Held(plan.types)
            for entry, values in zip(plan.graph.inputs, sample, strict=True):
                got.hold(entry.name, values)
            self.got.append(got)
            if self.exact is not None:
                true = _Held(wide)
                true.update(zip((entry.name for entry in plan.graph.inputs), sample, strict=True))
                self.true.append(true)

    def run(self, show: Progress) -> Plan:
        with torch.inference_mode():
            for node, rough, dead in show.track(self.steps, "correcting biases"):
                if isinstance(node.op, ops.WEIGHTED):
                    self._weighted(node, rough, dead)
                else:
                    self._each(self._follow, node, dead)
                    self._each(self._step, node, rough, dead)
        return replace(self.plan, weights=self.weights, biases=self.biases)

    def _each(self, function: Callable[..., Result], *what: object) -> list[Result]:
        """``function`` of the number of each sample and ``what``."""

        def one(at: int) -> Result:
            with torch.inference_mode():
                return function(at, *what)

        return list(in_order(one, range(len(self.got)), whole=False))

    def _step(self, at: int, node: Node, rough: Node, dead: list[str]) -> None:
        got = self.got[at]
        got.hold(node.output, self.rough.step(rough, got, self.bindings[at]))
        _drop(got, dead)

    def _follow(self, at: int, node: Node, dead: list[str]) -> None:
        """Run the float network's node, if it runs at all."""
        if self.exact is not None:
            true = self.true[at]
            true.hold(node.output, self.exact.step(node, true, self.bindings[at]))
            _drop(true, dead)

    def _open_follow(self, at: int, node: Node, dead: list[str]) -> None:
        """Compute the float network's node without its clamp."""
        if self.exact is not None:
            true = self.true[at]
            true[node.output] = self.exact.step(without_clamp(node), true, self.bindings[at])
            _drop(true, dead)

    def _weighted(self, node: Node, rough: Node, dead: list[str]) -> None:
        if self.exact is not None:
            self._each(self._open_follow, node, dead)
            self._round_anew(node, rough)
            self._each(self._clamp, node)
        shift = self.wanted[node.output] - together(self._each(self._open_step, node, without_clamp(rough), dead))
        added = None
        if node.output in self.biases or not self._absorbed(node):
            added = shift.float()
            self.biases[node.output] = self.biases.get(node.output, np.zeros(len(shift), np.float32)) + added.numpy()
        self._each(self._close, node, added)

    def _clamp(self, at: int, node: Node) -> None:
        self.true[at].hold(node.output, clamped(node, self.true[at][node.output]))

    def _open_step(self, at: int, node: Node, open_rough: Node, dead: list[str]) -> Mean:
        """Compute the node without its clamp, and the mean of its channels."""
        values = self.got[at][node.output] = self.rough.step(open_rough, self.got[at], self.bindings[at])
        _drop(self.got[at], dead)
        return Mean.of(values, channel_axis(node))

    def _close(self, at: int, node: Node, added: torch.Tensor | None) -> None:
        """Add what the bias gained, clamp and round."""
        values, axis = self.got[at][node.output], channel_axis(node)
        if added is not None:
            values += added.reshape([-1 if index == axis % values.dim() else 1 for index in range(values.dim())])
        self.got[at].hold(node.output, clamped(node, values))

    def _absorbed(self, node: Node) -> bool:
        """Whether a shift of the output reaches only biases of later layers, which then take it out there."""
        if node.op.clamp is not None or node.output in self.plan.graph.outputs:  # type: ignore[union-attr]
            return False
        readers = self.consumers[node.output]
        return all(reader.output in self.biases and unpadded(reader.op) for reader in readers)

    def _round_anew(self, node: Node, rough: Node) -> None:
        weight = self.plan.graph.constants[node.inputs[1]]
        before = self.weights[node.output]
        learns = before.scheme.rounding == "learned" and before.values.dtype != np.float32
        if not rounds_well(node, weight) or not (learns or (self.compensate and before.rounds_anew)):
            return
        pairs = [(true[node.output], got[node.inputs[0]]) for true, got in zip(self.true, self.got, strict=True)]
        moments = gather(node, weight, pairs)
        if not learns and not moments.determined():
            return
        anew = learned(weight, before, moments) if learns else compensated(weight, before, moments)
        self.weights[node.output] = anew
        self.rough.set_constant(rough.inputs[1], anew.dequantize())


class _Held(Tensors):
    """Activations of one sample, by name. Those that ``hold`` rounds are kept as integers, in half the room."""

    def __init__(self, types: dict[str, TensorType]) -> None:
        super().__init__()
        self.types = types

    def hold(self, name: str, values: torch.Tensor) -> None:
        """Keep ``values`` as their type rounds them; what lies on its integers already stays the same."""
        type = self.types.get(name)
        if type is None or type.quantization is None:
            self[name] = values
        else:
            self[name] = integers_of(values, type.quantization, type.integer_range()).to(torch.int16)

    def __getitem__(self, name: str) -> torch.Tensor:
        values = super().__getitem__(name)
        quantization = self.types[name].quantization if values.dtype == torch.int16 else None
        return values if quantization is None else values.float().mul_(quantization.scale[0])


def _drop(values: Tensors, names: list[str]) -> None:
    for name in names:
        values.pop(name, None)
