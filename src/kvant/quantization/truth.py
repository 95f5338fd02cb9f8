"""What the float network does on the kept samples, seen in one run.

Equalizing moves scale and offset between channels and changes nothing else, so one run of the graph as it was tells
what the equalized graphs would have shown, however they are equalized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch

from kvant.capture import Executor, last_uses
from kvant.graph import Graph, Node, ops
from kvant.quantization.equalize import Moves
from kvant.quantization.observers import OBSERVERS, AnyObserver
from kvant.quantization.statistics import Look, Sample, Statistics
from kvant.quantization.ties import makes_values
from kvant.quantization.workers import in_order

Means = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Truth:
    """What the float network showed on some samples.

    Attributes:
        outputs: those of the samples whose outputs were asked for, by the sample's number.
        means: the mean of each channel of every weighted node's output before its clamp, over positions, rows and the
            samples that were asked for: float64 (O), by the node's output.
        observers: for each way to equalize, of the activations that it changes.
    """

    outputs: dict[int, list[torch.Tensor]]
    means: Means
    observers: list[dict[str, AnyObserver]]


def look(
    graph: Graph,
    samples: Sequence[Sample],
    *,
    outputs_of: Collection[int],
    means_of: Collection[int],
    ways: Sequence[Moves],
    observer: str,
) -> Truth:
    """Run ``graph`` on each sample once.

    Args:
        graph: float graph, before it is equalized.
        samples: lists of tensors in the order of the graph's inputs.
        outputs_of: the numbers of samples whose outputs are wanted.
        means_of: the numbers of samples that enter the means.
        ways: for each way to equalize, what it does to the channels of which tensors.
        observer: the kind of observers, a key of ``OBSERVERS``.
    """
    run = _Run(graph, ways, observer)
    seen = [Statistics() for _ in ways]
    outputs: dict[int, list[torch.Tensor]] = {}
    means: dict[str, list[Mean]] = {}
    for at, (found, open_means, looks) in enumerate(in_order(run, samples)):
        if at in outputs_of:
            outputs[at] = found
        if at in means_of:
            for name, mean in open_means.items():
                means.setdefault(name, []).append(mean)
        for statistics, one in zip(seen, looks, strict=True):
            statistics.add(one, observer)
    return Truth(
        outputs,
        {name: together(parts) for name, parts in means.items()},
        [statistics.observers for statistics in seen],
    )


def moved(means: Means, moves: Moves) -> Means:
    """The means of the graph that is equalized by ``moves``, from those of the graph before."""
    found = dict(means)
    for name, (offset, divisor) in moves.items():
        if name in found:
            found[name] = (found[name] - torch.from_numpy(offset)) / torch.from_numpy(divisor)
    return found


class _Run:
    """Runs a graph on one sample: its outputs, the means of its layers, and a look for each way to equalize."""

    def __init__(self, graph: Graph, ways: Sequence[Moves], observer: str) -> None:
        self.executor = Executor(graph)
        self.steps = list(zip(graph.nodes, last_uses(graph), strict=True))
        rounded = makes_values(graph)
        self.ways = [{name: move for name, move in moves.items() if name in rounded} for moves in ways]
        self.observer = OBSERVERS[observer]

    def __call__(self, sample: Sample) -> tuple[list[torch.Tensor], dict[str, Mean], list[Look]]:
        graph, bindings = self.executor.graph, self.executor.bind(sample)
        means: dict[str, Mean] = {}
        looks = [Look() for _ in self.ways]
        values = dict(zip((entry.name for entry in graph.inputs), sample, strict=True))
        with torch.inference_mode():
            for node, dead in self.steps:
                if isinstance(node.op, ops.WEIGHTED):
                    result = self.executor.step(without_clamp(node), values, bindings)
                    means[node.output] = Mean.of(result, channel_axis(node))
                    result = clamped(node, result)
                else:
                    result = self.executor.step(node, values, bindings)
                values[node.output] = result
                self._look(looks, node.output, result)
                for name in dead:
                    values.pop(name, None)
        return [values[name] for name in graph.outputs], means, looks

    def _look(self, looks: list[Look], name: str, values: torch.Tensor) -> None:
        """Look at a map (N, C, ...) as each way makes it."""
        if not any(name in moves for moves in self.ways):
            return
        others = [axis for axis in range(values.dim()) if axis != 1]
        low, high = values.amin(others), values.amax(others)
        some = self.observer.some(values)
        channels = self.observer.channels_of_some(values)
        for found, moves in zip(looks, self.ways, strict=True):
            if name in moves:
                offset, divisor = (torch.from_numpy(array) for array in moves[name])
                least, most = float(((low - offset) / divisor).min()), float(((high - offset) / divisor).max())
                found.values[name] = (some - offset[channels]).div_(divisor[channels]), least, most


@dataclass(frozen=True)
class Mean:
    """The sum over all axes but one, float64, and of how many values."""

    total: torch.Tensor
    count: int

    @classmethod
    def of(cls, values: torch.Tensor, axis: int) -> Mean:
        """Of a tensor whose channels lie along ``axis``."""
        others = [index for index in range(values.dim()) if index != axis % values.dim()]
        total = values.sum(others) if others else values
        return cls(total.double(), values.numel() // total.numel())


def together(parts: Iterable[Mean]) -> torch.Tensor:
    """The mean of all parts: float64, one entry for each channel."""
    parts = list(parts)
    if not parts:
        raise ValueError("no samples")
    return torch.stack([part.total for part in parts]).sum(0) / sum(part.count for part in parts)


def channel_axis(node: Node) -> int:
    """The axis of a weighted node's output channels."""
    return -1 if isinstance(node.op, ops.Linear) else 1


def without_clamp(node: Node) -> Node:
    """The weighted node as it is before its clamp."""
    return replace(node, op=msgspec.structs.replace(node.op, clamp=None))


def clamped(node: Node, values: torch.Tensor) -> torch.Tensor:
    """What the node's clamp makes of ``values``."""
    clamp: ops.Clamp | None = node.op.clamp  # type: ignore[union-attr]
    return values if clamp is None else torch.clamp(values, clamp[0], clamp[1])
