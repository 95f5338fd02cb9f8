"""Sequential empirical bias correction: take the mean error of each layer out of its bias, from first to last.

Rounding errors times inputs that are not zero on average shift a layer's mean output, and the shifts add up with depth
(Nagel et al. 2019, section 4.2; Finkelstein et al. 2019). The quantized network runs node by node on all samples; each
layer's bias absorbs the difference from the float network's mean before the next layer is looked at, so a layer
corrects what the earlier ones could not.

What is read of a layer is what its clamp leaves. So the means may be those of clamped values, the shift larger by the
share of values that it moves. Weights that are rounded anew are fitted to values before the clamp, and biases are too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch

from kvant.capture import Executor, last_uses
from kvant.graph import Graph, Node, TensorType, ops
from kvant.quantization.equalize import unpadded
from kvant.quantization.held import Held
from kvant.quantization.learned import learned
from kvant.quantization.progress import Progress
from kvant.quantization.rounding import compensated, gather, rounds_well
from kvant.quantization.simulate import Plan
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.workers import in_order, of_each

Tensors = dict[str, torch.Tensor]
_LEAST_OPEN = 1 / 16  # of a channel's values that its clamp leaves as they are: of fewer the share is not known well


def float_means(graph: Graph, samples: list[Sample], of_clamped: bool) -> dict[str, list[Mean]]:
    """The mean of each channel of every weighted node's output, before its clamp or behind it, in the float network.

    Returns:
        For each sample, by the node's output; over positions and, for linear layers, rows.
    """
    executor = Executor(graph)
    steps = list(zip(graph.nodes, last_uses(graph), strict=True))

    def means(sample: Sample) -> dict[str, Mean]:
        found: dict[str, Mean] = {}
        bindings = executor.bind(sample)
        values = dict(zip((entry.name for entry in graph.inputs), sample, strict=True))
        with torch.inference_mode():
            for node, dead in steps:
                if isinstance(node.op, ops.WEIGHTED):
                    open_values = executor.step(without_clamp(node), values, bindings)
                    values[node.output] = clamped(node, open_values)
                    read = values[node.output] if of_clamped else open_values
                    found[node.output] = Mean.of(read, channel_axis(node))
                else:
                    values[node.output] = executor.step(node, values, bindings)
                drop(values, dead)
        return found

    parts = list(in_order(means, samples))
    return {name: [part[name] for part in parts] for name in parts[0]}


def correct(
    plan: Plan,
    samples: list[Sample],
    wanted: dict[str, list[Mean]],
    show: Progress,
    *,
    compensate: bool = False,
    of_clamped: bool = False,
    robust: bool = True,
) -> Plan:
    """``plan`` with the mean error on ``samples`` taken out of the biases.

    Args:
        plan: what is decided so far; its types say where the quantized network rounds.
        samples: lists of tensors in the order of the graph's inputs, all of them run in step.
        wanted: ``float_means`` of the graph on the same samples, with the same ``of_clamped``.
        compensate: also round each layer's weights anew, by ``kvant.quantization.rounding``, where that is affordable.
        of_clamped: take the means of clamped values.
        robust: correct for the typical sample, not for the mean of all.

    Returns:
        A plan in which every weighted node has a bias, but those whose error the next layers' biases take out.
    """
    return _Correction(plan, samples, wanted, compensate, of_clamped, robust).run(show)


class _Correction:
    def __init__(
        self,
        plan: Plan,
        samples: list[Sample],
        wanted: dict[str, list[Mean]],
        compensate: bool,
        of_clamped: bool,
        robust: bool,
    ) -> None:
        self.plan = plan
        self.wanted = wanted
        self.of_clamped = of_clamped
        self.robust = robust
        self.weights = dict(plan.weights)
        simulated = plan.simulated_graph()
        self.rough = Executor(simulated)
        self.steps = list(zip(plan.graph.nodes, simulated.nodes, last_uses(plan.graph), strict=True))
        self.rounded = makes_values(plan.graph)
        self.biases = dict(plan.biases)
        self.consumers = plan.graph.consumers()
        self.bindings = [self.rough.bind(sample) for sample in samples]
        # The float network runs beside the quantized one only where weights are rounded to its activations.
        learns = any(weight.scheme.rounding == "learned" for weight in plan.weights.values())
        self.compensate = compensate
        self.exact = Executor(plan.graph) if compensate or learns else None
        self.got = [Held(small=self.exact is not None) for _ in samples]
        self.true = [Held() for _ in samples] if self.exact is not None else []
        for at, sample in enumerate(samples):
            for entry, values in zip(plan.graph.inputs, sample, strict=True):
                self.got[at].hold(entry.name, values, self._type(entry.name))
                if self.true:
                    self.true[at].hold(entry.name, values)

    def run(self, show: Progress) -> Plan:
        with torch.inference_mode():
            for node, rough, dead in show.track(self.steps, "correcting biases"):
                if isinstance(node.op, ops.WEIGHTED):
                    self._weighted(node, rough)
                elif not (isinstance(node.op, ops.TopK) and self.exact is not None):
                    of_each(len(self.got), self._step, node, rough)
                self._follow(node)
                if isinstance(node.op, ops.TopK):
                    self._choose_alike(node)
                for held in (*self.got, *self.true):
                    held.drop(dead)
        return replace(self.plan, weights=self.weights, biases=self.biases)

    def _step(self, at: int, node: Node, rough: Node) -> None:
        if not self.got[at].join(node):
            self.got[at].hold(node.output, self._computed(at, rough), self._type(node.output))

    def _computed(self, at: int, rough: Node) -> torch.Tensor:
        return self.rough.step(rough, self.got[at], self.bindings[at])

    def _follow(self, node: Node) -> None:
        """Run the float network's node, if it runs at all."""
        exact = self.exact
        if exact is None:
            return

        def step(at: int) -> None:
            true = self.true[at]
            if not true.join(node):
                true.hold(node.output, exact.step(node, true, self.bindings[at]))

        of_each(len(self.got), step)

    def _choose_alike(self, node: Node) -> None:
        """What the float network chose by size: what is made of it is compared row by row."""
        for got, true in zip(self.got, self.true, strict=False):
            got.hold(node.output, true[node.output])

    def _weighted(self, node: Node, rough: Node) -> None:
        if self.exact is not None:
            self._round_anew(node, rough)
        shift = self._shift(node, without_clamp(rough))
        added = None
        if node.output in self.biases or not self._absorbed(node):
            added = shift.float()
            self.biases[node.output] = self.biases.get(node.output, np.zeros(len(shift), np.float32)) + added.numpy()
        of_each(len(self.got), self._close, node, added)

    def _shift(self, node: Node, open_rough: Node) -> torch.Tensor:
        """What the node's bias lacks; the node is computed without its clamp."""
        seen = of_each(len(self.got), self._open_step, node, open_rough)
        wanted, got = self.wanted[node.output], [mean for mean, _ in seen]
        if self.robust:
            shift = typical(torch.stack([one.value() - other.value() for one, other in zip(wanted, got, strict=True)]))
        else:
            shift = _together(wanted) - _together(got)
        shares = [share for _, share in seen if share is not None]
        return shift / _together(shares).clamp(min=_LEAST_OPEN) if shares else shift

    def _open_step(self, at: int, node: Node, open_rough: Node) -> tuple[Mean, Mean | None]:
        """Compute the node without its clamp.

        Returns:
            The mean of its channels, and the share of them that the clamp leaves alone if the mean is that behind it.
        """
        values, axis = self._computed(at, open_rough), channel_axis(node)
        self.got[at].hold(node.output, values)
        if not self.of_clamped or node.op.clamp is None:  # type: ignore[union-attr]
            return Mean.of(values, axis), None
        inside = clamped(node, values)
        return Mean.of(inside, axis), Mean.of((inside == values).float(), axis)

    def _close(self, at: int, node: Node, added: torch.Tensor | None) -> None:
        """Add what the bias gained, clamp and round."""
        values = self.got[at].take(node.output)
        if added is not None:
            values += beside(added, node, values)
        self.got[at].hold(node.output, clamped(node, values), self._type(node.output))

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
        moments = gather(node, weight, _Pairs(self.true, self.got, node.inputs[0]))
        if not learns and not moments.determined():
            return
        anew = learned(weight, before, moments) if learns else compensated(weight, before, moments)
        self.weights[node.output] = anew
        self.rough.set_constant(rough.inputs[1], anew.dequantize())

    def _type(self, name: str) -> TensorType | None:
        """What an activation is rounded to, if it is."""
        return self.plan.types[name] if name in self.rounded else None


@dataclass(frozen=True)
class _Pairs(Sequence[tuple[torch.Tensor, torch.Tensor]]):
    """An activation in the float and in the quantized network, by sample, each made when it is asked for."""

    true: list[Held]
    got: list[Held]
    name: str

    def __len__(self) -> int:
        return len(self.got)

    def __getitem__(self, at: Any) -> Any:
        return self.true[at][self.name], self.got[at][self.name]


def typical(values: torch.Tensor) -> torch.Tensor:
    """The mean over axis 0 of the middle third of each column: float64 (C) from (samples, C).

    A few samples may excite channels a hundred times as much as all others (the "massive activations" of Sun et al.
    2024), and what 8 bits clip of these would move the bias for all.

    >>> typical(torch.tensor([[0.0], [1.0], [2.0], [99.0]])).item()
    1.5
    """
    spare = len(values) // 3
    return values.double().sort(0).values[spare : len(values) - spare].mean(0)


@dataclass(frozen=True)
class Mean:
    """The sum over all axes but one, float64, and of how many values."""

    total: torch.Tensor
    count: int

    @classmethod
    def of(cls, values: torch.Tensor, axis: int) -> Mean:
        """That of all values with the same index along ``axis``."""
        others = list(range(values.dim() - 1))
        total = values.movedim(axis, -1).sum(others) if others else values
        return cls(total.double(), values.numel() // total.numel())

    def value(self) -> torch.Tensor:
        """float64 (C)."""
        return self.total / self.count


def _together(parts: Sequence[Mean]) -> torch.Tensor:
    """The mean of all parts: float64, one entry for each channel."""
    return torch.stack([part.total for part in parts]).sum(0) / sum(part.count for part in parts)


def channel_axis(node: Node) -> int:
    """The axis of a weighted node's output channels."""
    return -1 if isinstance(node.op, ops.Linear) else 1


def beside(numbers: torch.Tensor, node: Node, values: torch.Tensor) -> torch.Tensor:
    """One of ``numbers`` (C) for each channel of a weighted node's ``values``, in a shape that goes with theirs."""
    axis = channel_axis(node) % values.dim()
    return numbers.reshape([-1 if index == axis else 1 for index in range(values.dim())])


def drop(values: Tensors, names: list[str]) -> None:
    for name in names:
        values.pop(name, None)


def without_clamp(node: Node) -> Node:
    return replace(node, op=msgspec.structs.replace(node.op, clamp=None))


def clamped(node: Node, values: torch.Tensor) -> torch.Tensor:
    clamp: ops.Clamp | None = node.op.clamp  # type: ignore[union-attr]
    return values if clamp is None else torch.clamp(values, clamp[0], clamp[1])
