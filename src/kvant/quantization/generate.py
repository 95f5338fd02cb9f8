"""Inputs for level 1, which has no data: noise, shaped until every batch norm sees what training left in it.

A batch norm remembers mean and variance of each channel that it normalized. Inputs under which all of a network's
batch norms see these again are as good as data for ranges, equalization and bias correction (Cai et al. 2020, "ZeroQ";
Nagel et al. 2019 take the ranges from the same statistics in closed form). Where a network has no batch norm, noise of
the example's mean and deviation is all there is, and the result says so.
"""

from __future__ import annotations

import math

import torch

from kvant.capture import Executor
from kvant.graph import Graph, is_symbol, ops
from kvant.quantization.progress import Progress
from kvant.quantization.statistics import Sample
from kvant.quantization.workers import in_order, one_thread_each

# Samples that are shaped together: their statistics are those of a batch.
BATCH = 4
STEPS = 40
# Of Adam, in standard deviations of the input.
RATE = 0.3
# Steps that make the misfit so many times the least were too long.
DIVERGED = 3.0
SEED = 2019
# Octaves of noise: neighbouring pixels of pictures are alike.
_OCTAVES = 5


def generate(graph: Graph, example: Sample, count: int, show: Progress) -> tuple[list[Sample], str]:
    """Inputs for ``graph``, and a sentence that says what they are.

    Args:
        graph: as it was captured: batch norm not folded.
        example: one input; its sizes are those of the samples, its mean and deviation those that noise begins with.
            Integers are drawn from its own.
        count: how many samples.

    Returns:
        Samples of the example's size.
    """
    generator = torch.Generator().manual_seed(SEED)
    norms = _norms(graph)
    with one_thread_each():
        noise = [_noise(values, count, generator) for values in example]
        if not norms or not any(values.is_floating_point() for values in example):
            why = "whose inputs are not real" if norms else "without batch norm"
            return _single(noise, count), f"{count} inputs of noise, for a network {why}"
        executor = Executor(graph)
        starts = [[values[at : at + BATCH] for values in noise] for at in range(0, count, BATCH)]
        shaped = in_order(lambda start: _shaped(executor, norms, start), show.track(starts, "shaping inputs"))
        batches = list(shaped)
    samples = [sample for batch in batches for sample in _single(batch, len(batch[0]))]
    return samples, f"{count} inputs of noise, shaped by the statistics of {len(norms)} batch norms"


def _norms(graph: Graph) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and deviation, float32 (C), of each tensor that a batch norm reads."""
    found = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.BatchNorm):
            mean, variance = (torch.from_numpy(graph.constants[name]) for name in node.inputs[3:5])
            found[node.inputs[0]] = mean.clone(), (variance + node.op.eps).sqrt()
    return found


def _noise(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` times noise like ``values``, along a new first axis.

    Reals have the example's mean and deviation (0 and 1, where it is constant), and maps are smooth at several scales.
    Integers are drawn from the example's.
    """
    shape = (count, *values.shape)
    if not values.is_floating_point():
        at = torch.randint(max(values.numel(), 1), shape, generator=generator)
        return values.reshape(-1)[at]
    noise = torch.randn(shape, generator=generator)
    if values.dim() == 4:
        noise = _smooth(noise.flatten(0, 1), generator).reshape(shape)
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return noise * deviation + mean if deviation > 0 else noise


def _smooth(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise (N, C, H, W) of deviation 1 at one and at coarser and coarser scales together."""
    total = noise.clone()
    for octave in range(1, _OCTAVES):
        size = [max(math.ceil(length / 2**octave), 1) for length in noise.shape[2:]]
        coarse = torch.randn((*noise.shape[:2], *size), generator=generator)
        wide = torch.nn.functional.interpolate(coarse, noise.shape[2:], mode="bilinear", align_corners=False)
        total += wide / wide.std(correction=0).clamp_min(1e-6)
    return total / math.sqrt(_OCTAVES)


def _single(batches: list[torch.Tensor], count: int) -> list[Sample]:
    return [[values[index] for values in batches] for index in range(count)]


def _shaped(
    executor: Executor, norms: dict[str, tuple[torch.Tensor, torch.Tensor]], batch: list[torch.Tensor]
) -> list[torch.Tensor]:
    """``batch`` (items, *example's shape) moved, by gradient, to where the batch norms see their statistics."""
    scales = [values.std(correction=0).clamp_min(1e-6) if values.is_floating_point() else None for values in batch]
    moved = [
        values if scale is None else (values / scale).requires_grad_()
        for values, scale in zip(batch, scales, strict=True)
    ]

    def inputs() -> list[torch.Tensor]:
        return [v if s is None else v * s for v, s in zip(moved, scales, strict=True)]

    free = [values for values in moved if values.requires_grad]
    optimizer, rate = torch.optim.Adam(free, RATE), RATE
    best, kept = math.inf, [values.detach().clone() for values in free]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.zero_grad()
        misfit = _Misfit(norms)
        for items in _items(executor.graph, inputs()):
            executor.run(items, misfit, gradients=True)
        found = float(misfit.total.detach())
        if found < best:
            best, kept = found, [values.detach().clone() for values in free]
        if not found <= DIVERGED * best:
            # Too far: back to the best, and on from there in smaller steps.
            rate /= 3
            optimizer = torch.optim.Adam(free, rate)
            _assign(free, kept)
            continue
        torch.autograd.backward(misfit.total)
        optimizer.step()
    _assign(free, kept)
    return [values.detach() for values in inputs()]


def _assign(targets: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)


def _items(graph: Graph, batch: list[torch.Tensor]) -> list[Sample]:
    """All items at once where the first axis of all inputs is a free batch, else one by one."""
    if all(entry.shape and is_symbol(entry.shape[0]) for entry in graph.inputs):
        return [[values.flatten(0, 1) for values in batch]]
    return _single(batch, len(batch[0]))


class _Misfit:
    """Adds up how far the statistics of what batch norms read are from what the batch norms remember."""

    def __init__(self, norms: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.norms = norms
        self.total = torch.zeros(())

    def __call__(self, name: str, values: torch.Tensor) -> None:
        if name not in self.norms:
            return
        mean, deviation = self.norms[name]
        others = [axis for axis in range(values.dim()) if axis != 1]
        shift = (values.mean(others) - mean) / deviation
        spread = (values.var(others, correction=0) + 1e-12).sqrt() / deviation - 1
        self.total = self.total + (shift.square() + spread.square()).mean()
