"""Which layers need finer weights: the noise that rounding each one's weights to 8 bits causes at the outputs.

Most networks need none. Where 8-bit weights limit accuracy, the layers whose rounding hurts most for their size get 12
bits, kept as int16: within 1 % of the weights first, and where far too little signal is left (small depthwise networks,
mostly), as many as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from kvant.capture import Executor
from kvant.quantization.progress import Progress
from kvant.quantization.sensitivity import DIRECTIONS, smallest
from kvant.quantization.simulate import Plan
from kvant.quantization.weights import fine_weight
from kvant.quantization.yardstick import Yardstick

# The number of layers is told apart this finely: every trial corrects the biases of the whole network.
PARTS = 10
# The share of all weights that may be refined wherever weights limit accuracy: it hardly shows in the file.
SMALL_SHARE = 0.01


def refine_small(plan: Plan, yardstick: Yardstick, show: Progress) -> Plan:
    """``plan`` with 14-bit weights in the layers that cause the most noise for their size, 1 % of all weights."""
    noise = weight_noise(plan, yardstick, show)
    sizes = {name: weight.values.size for name, weight in plan.weights.items()}
    room = SMALL_SHARE * sum(sizes.values())
    chosen = []
    for name in sorted(noise, key=lambda name: -noise[name] / sizes[name]):
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    return with_fine(plan, chosen)


def with_fine(plan: Plan, names: Iterable[str]) -> Plan:
    """``plan`` with 14-bit weights, rounded to nearest, in the layers with these outputs."""
    fine = {name: fine_weight(_float_weight(plan, name).numpy()) for name in names}
    return replace(plan, weights=plan.weights | fine)


def refine(
    plan: Plan,
    yardstick: Yardstick,
    goal: float,
    settle: Callable[[Plan], Plan],
    show: Progress,
) -> Plan:
    """``plan`` with 14-bit weights in as few layers as needed for ``goal`` dB at the outputs.

    Args:
        plan: everything decided, activations in 16 bits so that weights are what limits accuracy.
        yardstick: measures signal to noise.
        settle: adjusts biases to changed weights.
    """
    noise = weight_noise(plan, yardstick, show)
    total = sum(plan.weights[name].values.size for name in noise)
    # Even a tiny layer costs something: it runs with wider products.
    order = sorted(noise, key=lambda name: -noise[name] / (plan.weights[name].values.size + 0.2 * total / len(noise)))

    def refined(count: int) -> Plan:
        return settle(with_fine(plan, order[:count]))

    count, _ = smallest(len(order), lambda some: yardstick.measure_whole(refined(some)), goal, PARTS)
    return refined(count)


def weight_noise(plan: Plan, yardstick: Yardstick, show: Progress) -> dict[str, float]:
    """Noise over signal at the outputs that the rounding of each layer's weights causes, by the layer's output.

    The gradient of a random combination of the outputs by a weight, times the weight's rounding error, squared and
    averaged over combinations and samples.
    """
    graph = plan.simulated_graph()
    executor = Executor(graph)
    constants = {node.output: node.inputs[1] for node in graph.nodes if node.output in plan.weights}
    errors = {
        name: torch.from_numpy(weight.dequantize()) - _float_weight(plan, name) for name, weight in plan.weights.items()
    }
    tensors = executor.differentiate(constants.values())
    generator = torch.Generator().manual_seed(0)
    noise = dict.fromkeys(plan.weights, 0.0)
    for at, sample in enumerate(show.track(yardstick.samples, "measuring weights")):
        with torch.enable_grad():
            outputs = executor.run(sample, gradients=True)
            for direction in range(DIRECTIONS):
                loss = yardstick.random_direction(at, outputs, generator)
                more = direction + 1 < DIRECTIONS
                found = torch.autograd.grad(loss, list(tensors.values()), retain_graph=more, allow_unused=True)
                for name, gradient in zip(constants, found, strict=True):
                    if gradient is not None:
                        effect = float((gradient * errors[name]).sum(dtype=torch.float64))
                        noise[name] += effect * effect / DIRECTIONS
    return noise


def _float_weight(plan: Plan, name: str) -> torch.Tensor:
    """The float32 weight of the layer whose output is ``name``."""
    node = plan.graph.producers()[name]
    return torch.from_numpy(plan.graph.constants[node.inputs[1]])
