"""Which layers need finer weights: the noise that rounding each one's weights to 8 bits causes at the outputs.

Most networks need none. Where 8-bit weights limit accuracy, the layers whose rounding hurts most for their size get 14
bits, kept as int16: within 1 % of the weights first, and where far too little signal is left (small depthwise networks,
mostly), as many as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import accumulate

import torch

from kvant.capture import Executor
from kvant.quantization.progress import Progress
from kvant.quantization.sensitivity import Probe, noise_of
from kvant.quantization.simulate import Plan
from kvant.quantization.weights import fine_weight
from kvant.quantization.widening import smallest
from kvant.quantization.yardstick import Yardstick

Noise = dict[str, float]

# The number of layers is told apart this finely: every trial corrects the biases of the whole network.
PARTS = 10
# The share of all weights that may be refined wherever weights limit accuracy: it hardly shows in the file.
SMALL_SHARE = 0.01


def refine_small(plan: Plan, noise: Noise) -> Plan:
    """``plan`` with 14-bit weights in the layers that cause the most noise for their size, 1 % of all weights."""
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
    exact = plan.float_weights()
    return replace(plan, weights=plan.weights | {name: fine_weight(exact[name]) for name in names})


def refine(
    plan: Plan,
    noise: Noise,
    yardstick: Yardstick,
    goal: float,
    settle: Callable[[Plan], Plan] = lambda plan: plan,
    parts: int = PARTS,
    share: float = 1.0,
) -> Plan:
    """``plan`` with 14-bit weights in as few layers as needed for ``goal`` dB at the outputs.

    Args:
        plan: everything decided, activations in 16 bits so that weights are what limits accuracy.
        noise: ``weight_noise`` of the plan.
        yardstick: measures signal to noise.
        settle: adjusts biases to changed weights.
        parts: how finely the number of layers is told apart.
        share: of all these layers' weights that may be refined, the first layer in any case.
    """
    total = sum(plan.weights[name].values.size for name in noise)
    # Even a tiny layer costs something: it runs with wider products.
    order = sorted(noise, key=lambda name: -noise[name] / (plan.weights[name].values.size + 0.2 * total / len(noise)))

    most = sum(so_far <= share * total for so_far in accumulate(plan.weights[name].values.size for name in order))

    @cache
    def refined(count: int) -> Plan:
        return settle(with_fine(plan, order[:count]))

    return refined(smallest(max(most, 1), lambda some: yardstick.measure_whole(refined(some)), goal, parts))


def weight_noise(plan: Plan, yardstick: Yardstick, show: Progress, probe: Probe) -> Noise:
    """Noise over signal at the outputs that the rounding of each layer's weights causes, by the layer's output.

    The gradient of a random combination of the outputs by a weight, times the weight's rounding error, squared and
    averaged over combinations and samples as ``probe`` says.
    """
    graph = plan.simulated_graph()
    executor = Executor(graph)
    constants = {node.output: node.inputs[1] for node in graph.nodes if node.output in plan.weights}
    weights = executor.differentiate(constants.values())
    tensors = {name: weights[constant] for name, constant in constants.items()}
    exact = plan.float_weights()
    errors = {name: torch.from_numpy(weight.dequantize() - exact[name]) for name, weight in plan.weights.items()}
    found = noise_of(
        lambda sample: (executor.run(yardstick.parts.middle(sample), gradients=True), tensors),
        lambda name, _: (errors[name],),
        yardstick,
        show.track(yardstick.samples, "measuring weights"),
        probe,
    )
    return dict.fromkeys(plan.weights, 0.0) | {name: noise for name, (noise,) in found.items()}
