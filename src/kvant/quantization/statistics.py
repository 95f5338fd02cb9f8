"""One pass over the calibration data, in constant memory: ranges, channel statistics, and a few samples to keep."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from kvant.capture import MASKED, Executor, in_memory_order
from kvant.errors import CalibrationError
from kvant.graph import Graph, is_symbol, ops, show_shape
from kvant.quantization.channels import Channels
from kvant.quantization.observers import OBSERVERS, AnyObserver
from kvant.quantization.progress import Progress
from kvant.quantization.recipe import FEW_SAMPLES
from kvant.quantization.ties import makes_values
from kvant.quantization.workers import in_order

Sample = list[torch.Tensor]

# Values of a batch that are run at once, if these are several samples.
PIECE_VALUES = 1 << 16
# Scores below this are masked; so far below the smallest other one a score has no weight in a softmax to speak of.
_MASKED = MASKED / 2
_VANISHES = 10.0


@dataclass
class Statistics:
    """What one pass over the data learned.

    Attributes:
        observers: one for each activation at which rounding will happen.
        channels: of each tensor that a weighted layer reads.
        samples: a fixed number of samples, chosen by their content, so that the order of the data does not matter.
        shortest: of tokens, the sample with the fewest, none of ``samples``: what is averaged over few of them is the
            hardest to get right, and rare.
        batches, count: how many batches and samples the data had.
    """

    observers: dict[str, AnyObserver] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    shortest: Sample | None = None
    batches: int = 0
    count: int = 0

    def add(self, look: Look, kind: str) -> None:
        """Take in one look, by observers of ``kind``."""
        for name, channels in look.channels.items():
            self.channels.setdefault(name, Channels.unseen(len(channels.low))).add(channels)
        for name, (values, low, high) in look.values.items():
            if name not in self.observers:
                self.observers[name] = OBSERVERS[kind]()
            self.observers[name].observe(values, low, high)


def collect(
    graph: Graph, data: Iterable[Sample], observer: str, keep: int, progress: Progress, most: int | None = None
) -> Statistics:
    """Run ``graph`` over ``data`` once and return what was seen.

    Args:
        graph: float graph.
        data: one list of tensors, in the order of the graph's inputs, for each batch.
        observer: a key of ``OBSERVERS``.
        keep: how many samples to keep.
        most: run no more samples than this: which, their content decides. None is all.

    Raises:
        CalibrationError: there is no data, a batch does not fit the inputs, or it holds NaN or infinity.
    """
    seen = Statistics()
    split = is_made_of_samples(graph)
    kept = _Kept(
        max(keep, most or 0), split, tokens=any(entry.type.dtype in ("int64", "int32") for entry in graph.inputs)
    )

    def checked() -> Iterator[Sample]:
        for batch in progress.track(data, "calibrating"):
            seen.batches += 1
            check_batch(graph, batch, seen.batches)
            kept.offer(batch)
            if most is None:
                yield from _pieces(batch) if kept.split and observer != "moving_average" else [batch]
        if most is not None:
            yield from progress.track([*kept.samples()[:most], *kept.shortest()], "looking")

    looker = _Looker(graph, makes_values(graph), channel_axes(graph), observer)
    for look in in_order(looker, checked()):
        seen.add(look, observer)
    if seen.batches == 0:
        raise CalibrationError("calibration data is empty: give at least one batch, better a hundred pictures")
    seen.samples, seen.count = kept.samples()[:keep], min(kept.offered, most or kept.offered)
    seen.shortest = next(kept.shortest(), None)
    if not seen.samples and seen.shortest is not None:
        seen.samples, seen.shortest = [seen.shortest], None
    return seen


def is_made_of_samples(graph: Graph) -> bool:
    """Whether the first axis of all inputs counts samples: it is free, and no other axis has its size."""
    first = {entry.shape[0] for entry in graph.inputs if entry.shape}
    others = {dim for entry in graph.inputs for dim in entry.shape[1:]}
    return all(map(is_symbol, first)) and not first & others


def observe(graph: Graph, samples: Iterable[Sample], names: set[str], observer: str) -> dict[str, AnyObserver]:
    """Observers, of the kind ``observer``, of the activations ``names`` of ``graph`` on ``samples``."""
    seen = Statistics()
    for look in in_order(_Looker(graph, names, {}, observer), samples):
        seen.add(look, observer)
    return seen.observers


def at_least(observer: AnyObserver, channels: Channels | None) -> AnyObserver:
    """Extend the extremes seen on a few samples to those that all data reached, as channels tell."""
    if channels is not None:
        observer.low = min(observer.low, float(channels.low.min()))
        observer.high = max(observer.high, float(channels.high.max()))
    return observer


def part(samples: list[Sample], *, fit_most: bool = False) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit on, and samples held out to decide on; too few to part serve for both.

    A quarter is held out, and half of 17 to 32: biases are known well from 16, and how much noise is left from 4 or 8
    is not.

    Args:
        fit_most: a quarter is held out of any number, for what is fitted needs most of them: all weights learn from
            them, or each is of few tokens.
    """
    if len(samples) < 4:
        return samples, samples
    count = max(len(samples) // 4, min(len(samples) // 2, 3))
    if not fit_most and len(samples) > FEW_SAMPLES:
        count = max(count, min(len(samples) // 2, FEW_SAMPLES))
    return samples[:-count], samples[-count:]


@dataclass
class Look:
    """What one batch showed: statistics of channels; of activations some values (where they count) and the extremes."""

    channels: dict[str, Channels] = field(default_factory=dict)
    values: dict[str, tuple[torch.Tensor, float, float]] = field(default_factory=dict)


class _Looker:
    """Runs a graph on one batch and looks at the activations ``names``, and at the channels of those with an axis."""

    def __init__(self, graph: Graph, names: set[str], axes: dict[str, int], observer: str) -> None:
        self.executor = Executor(graph)
        self.names = names
        self.axes = axes
        self.joined = _joined(graph, axes)
        self.parts = {part for parts in self.joined.values() for part in parts}
        self.weighed = _weighed(graph)
        self.some = OBSERVERS[observer].some

    def __call__(self, batch: Sample) -> Look:
        look, seen = Look(), dict[str, Channels]()

        def watch(name: str, values: torch.Tensor) -> None:
            if values.dtype == torch.float32 and (name in self.names or name in self.axes or name in self.parts):
                self._look(look, seen, name, values)

        self.executor.run(batch, watch)
        return replace(look, channels={name: channels for name, channels in seen.items() if name in self.axes})

    def _look(self, look: Look, seen: dict[str, Channels], name: str, values: torch.Tensor) -> None:
        if name in self.weighed:
            values = _lifted(values)
        if name in self.axes or name in self.parts:
            parts = [seen[part] for part in self.joined.get(name, [])]
            seen[name] = Channels.of(values, self.axes.get(name, 1), parts)
            low, high = float(seen[name].low.min()), float(seen[name].high.max())
        else:
            low, high = (float(value) for value in torch.aminmax(in_memory_order(values)))
        if name in self.names:
            if not (np.isfinite(low) and np.isfinite(high)):
                raise CalibrationError(f"activation {name!r} became NaN or infinite on calibration data")
            look.values[name] = (self.some(values), low, high)


def _joined(graph: Graph, axes: dict[str, int]) -> dict[str, list[str]]:
    """Tensors of ``axes`` that are other activations side by side along channels: large ones, some again and again."""
    return {
        node.output: list(node.inputs)
        for node in graph.nodes
        if isinstance(node.op, ops.Concat)
        and node.op.axis == axes.get(node.output) == 1
        and not any(name in graph.constants or axes.get(name, 1) != 1 for name in node.inputs)
    }


def _weighed(graph: Graph) -> set[str]:
    """Tensors that nothing reads but softmax, reshaped or not."""
    readers, found = graph.consumers(), set[str]()
    for node in reversed(graph.nodes):
        uses = [] if node.output in graph.outputs else readers[node.output]
        if uses and all(
            isinstance(use.op, ops.Softmax) or (isinstance(use.op, ops.Reshape) and use.output in found) for use in uses
        ):
            found.add(node.output)
    return found


def _lifted(values: torch.Tensor) -> torch.Tensor:
    """Scores whose masked ones are no lower than where their weight vanishes, so that they need no range."""
    allowed = values[values > _MASKED]
    if allowed.numel() == values.numel():
        return values
    return values.clamp_min((float(allowed.min()) if allowed.numel() else 0.0) - _VANISHES)


def channel_axes(graph: Graph) -> dict[str, int]:
    """The tensors that weighted layers read, with the axis of their channels."""
    axes: dict[str, int] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Conv | ops.ConvTranspose):
            axes[node.inputs[0]] = 1
        elif isinstance(node.op, ops.Linear):
            axes.setdefault(node.inputs[0], -1)
    return axes


def check_batch(graph: Graph, batch: Sample, number: int) -> None:
    """Refuse what the graph could not run or what would poison the ranges."""
    if len(batch) != len(graph.inputs):
        raise CalibrationError(
            f"calibration batch {number} has {len(batch)} tensors, the model takes {len(graph.inputs)}"
        )
    for entry, values in zip(graph.inputs, batch, strict=True):
        if values.dim() != len(entry.shape):
            raise CalibrationError(
                f"calibration batch {number}: input {entry.name!r} has shape {show_shape(tuple(values.shape))}, "
                f"expected {show_shape(entry.shape)}"
            )
        for dim, size in zip(entry.shape, values.shape, strict=True):
            if (isinstance(dim, int) and dim != size) or size == 0:
                raise CalibrationError(
                    f"calibration batch {number}: input {entry.name!r} has shape {show_shape(tuple(values.shape))}, "
                    f"expected {show_shape(entry.shape)}"
                )
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise CalibrationError(f"calibration batch {number}: input {entry.name!r} holds NaN or infinity")


_Entry = tuple[int, int, Sample]


class _Kept:
    """The samples with the smallest hashes of their content: any order of the data keeps the same ones.

    Of ``tokens`` the sample with the fewest is set aside.
    """

    def __init__(self, keep: int, split: bool, tokens: bool) -> None:
        self.keep = keep
        self.split = split
        self.tokens = tokens
        self.heap: list[_Entry] = []
        self.aside: _Entry | None = None
        self.offered = 0

    def offer(self, batch: Sample) -> None:
        for sample in _split(batch) if self.split else [batch]:
            digest = hashlib.blake2b(digest_size=8)
            for values in sample:
                digest.update(values.contiguous().numpy().tobytes())
            self.offered += 1
            entry = (-int.from_bytes(digest.digest(), "big"), self.offered, [values.clone() for values in sample])
            longer = self._longer(entry) if self.tokens else entry
            if longer is None:
                continue
            if len(self.heap) < self.keep:
                heapq.heappush(self.heap, longer)
            else:
                heapq.heappushpop(self.heap, longer)

    def _longer(self, entry: _Entry) -> _Entry | None:
        """Of ``entry`` and what is set aside the one with more tokens; the other one is set aside from now on."""
        if self.aside is None:
            self.aside = entry
            return None
        self.aside, longer = sorted((self.aside, entry), key=lambda each: (_filled(each[2]), -each[0]))
        return longer

    def samples(self) -> list[Sample]:
        return [sample for _, _, sample in sorted(self.heap, key=lambda entry: -entry[0])]

    def shortest(self) -> Iterator[Sample]:
        if self.aside is not None:
            yield self.aside[2]


def _filled(sample: Sample) -> list[int]:
    """How many values of each tensor are not 0, as padding and its mask are, ascending: places count to the end."""
    return sorted(int(values.count_nonzero()) for values in sample)


def _split(batch: Sample, at_once: int = 1) -> Iterable[Sample]:
    """Pieces of ``at_once`` samples along the first axis, where all inputs agree on it."""
    sizes = {values.shape[0] if values.dim() else 0 for values in batch}
    if len(sizes) != 1 or 0 in sizes or sizes == {1}:
        return [batch]
    return ([values[index : index + at_once] for values in batch] for index in range(0, sizes.pop(), at_once))


def _pieces(batch: Sample) -> Iterable[Sample]:
    """Parts of a batch that keep every worker busy and the memory for activations small."""
    values = max((entry.numel() // max(entry.shape[0], 1) for entry in batch if entry.dim()), default=1)
    return _split(batch, max(PIECE_VALUES // max(values, 1), 1))
