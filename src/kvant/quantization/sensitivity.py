"""What an error somewhere costs at the outputs: noise over signal there, by gradients.

For a random direction v over the outputs, one backward pass gives the gradient of <v, outputs> at every activation at
once; its product with the error that rounding makes there, squared and averaged over directions and samples, is that
activation's share of the output noise. The same holds for weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kvant.capture import Executor
from kvant.graph import TensorType
from kvant.quantization.progress import Progress
from kvant.quantization.ranges import with_share
from kvant.quantization.simulate import Plan, fake_quantize
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.workers import in_order
from kvant.quantization.yardstick import SHORTEST_SLACK_DB, Yardstick

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Probe:
    """How noise is estimated.

    Attributes:
        directions: random ones for each sample.
        by_channel: whether products are squared channel by channel. Rounding errs independently in each, so the mean is
            that of squares of whole sums, which spread as much as single draws; but what neighbours err alike is lost.
    """

    directions: int = 3
    by_channel: bool = False


def may_widen(type: TensorType) -> bool:
    """Whether a tensor has 8 bits; fewer ones were wished for."""
    return type.dtype == "uint8" and type.quantization is not None and type.quantization.bits is None


def group_noise(
    plan: Plan,
    yardstick: Yardstick,
    group_of: dict[str, str],
    show: Progress,
    probe: Probe,
    shares: Sequence[float] = (1.0,),
) -> dict[str, list[float]]:
    """Noise over signal at the outputs that each group of tied activations would cause by rounding.

    Args:
        shares: of the ranges that ``plan`` has.

    Returns:
        By group, the noise with each of ``shares``.
    """
    executor = Executor(plan.simulated_graph())
    rounded = makes_values(plan.graph)

    def run(sample: Sample) -> tuple[list[torch.Tensor], Tensors]:
        tape = _Tape(rounded)
        return executor.run(yardstick.parts.middle(sample), tape, gradients=True), tape.seen

    def errors(name: str, values: torch.Tensor) -> Iterator[torch.Tensor]:
        type = plan.types[name]
        if may_widen(type):
            for share in shares:
                yield fake_quantize(values, with_share(type, share)).sub_(values)

    noise: dict[str, list[float]] = {}
    samples = show.track(yardstick.samples, "measuring sensitivity")
    for name, found in noise_of(run, errors, yardstick, samples, probe).items():
        _add(noise, group_of[name], found)
    if yardstick.shortest is not None:
        for group, found in group_noise(plan, yardstick.shortest, group_of, show, probe, shares).items():
            _add(noise, group, [10 ** (-SHORTEST_SLACK_DB / 10) * each for each in found])
    return noise


def noise_of(
    run: Callable[[Sample], tuple[list[torch.Tensor], Tensors]],
    errors: Callable[[str, torch.Tensor], Iterable[torch.Tensor]],
    yardstick: Yardstick,
    samples: Iterable[Sample],
    probe: Probe,
) -> dict[str, list[float]]:
    """Noise over signal at the outputs that small errors in each of some tensors cause, by the tensor's name.

    Args:
        run: gives, for a sample, the outputs, and the tensors by which they can be differentiated.
        errors: the errors of a tensor that are told apart, from its name and value.
        samples: those of ``yardstick``, in order.
    """

    def effects(numbered: tuple[int, Sample]) -> dict[str, list[float]]:
        at, sample = numbered
        generator = torch.Generator().manual_seed(at)
        found: dict[str, list[float]] = {}

        def add(name: str, values: torch.Tensor, gradient: torch.Tensor) -> None:
            products = (gradient * wrong for wrong in errors(name, values.detach()))
            sums = [_by_channel(each) if probe.by_channel else each.sum() for each in products]
            here = [float(each.square().sum()) / probe.directions for each in sums]
            if here:
                _add(found, name, here)

        with torch.enable_grad():
            outputs, tensors = run(sample)
            leaves = {name: values for name, values in tensors.items() if values.is_leaf}
            for name, values in tensors.items():
                if name not in leaves:
                    # A gradient is looked at when it passes: all of them at once would be as large as the activations.
                    values.register_hook(partial(add, name, values.detach()))  # type: ignore[no-untyped-call]
            for direction in range(probe.directions):
                loss = yardstick.random_direction(at, outputs, generator)
                more = direction + 1 < probe.directions
                gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=more, allow_unused=True)
                for (name, values), gradient in zip(leaves.items(), gradients, strict=True):
                    if gradient is not None:
                        add(name, values, gradient)
        return found

    noise: dict[str, list[float]] = {}
    for found in in_order(effects, enumerate(samples)):
        for name, effect in found.items():
            _add(noise, name, effect)
    return noise


def _add(noise: dict[str, list[float]], name: str, more: list[float]) -> None:
    noise[name] = [old + new for old, new in zip(noise.get(name, [0.0] * len(more)), more, strict=True)]


def _by_channel(effects: torch.Tensor) -> torch.Tensor:
    """The sum over each slice along axis 1."""
    return effects.sum([axis for axis in range(effects.dim()) if axis != 1]) if effects.dim() > 1 else effects


class _Tape:
    """Keeps the activations of one run that can be differentiated."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.seen: Tensors = {}

    def __call__(self, name: str, values: torch.Tensor) -> torch.Tensor | None:
        if name not in self.names:
            return None
        if not values.requires_grad:
            values = values.detach().requires_grad_()
        self.seen[name] = values
        return values
