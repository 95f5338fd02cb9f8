"""Finer activations of 8 bits: channels that are computed several times, each time rounded at other places.

Two copies of a channel, one moved up and one moved down by a quarter of a step, are never rounded alike: the mean of
their integers tells half steps apart. For n copies that is Hermite's identity,

    round(n x) / n = mean of round(x + (2 k + 1 - n) / (2 n)) over k = 0 ... n - 1,

so a layer that reads n copies, each with the n-th part of the weight, sees the n^2-th part of the noise. 0 stays 0 in
all of them, so ReLU and padding go with it. Everything is still in 8 bits; the price is multiplications. (Zhao et al.
2019, "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting", split channels to
halve their range.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kvant.graph import FLOAT32, Graph, Node, ops
from kvant.quantization.sensitivity import may_widen
from kvant.quantization.simulate import Plan
from kvant.quantization.weights import QuantizedWeight
from kvant.runtime import count_macs

# How many copies a tensor may have of each channel: each step leaves a quarter of its noise.
COPIES = (2, 4)
# Multiplications that copies may add, as a share of those there are.
SHARE = 0.4


def choose_copies(plan: Plan, noise: Mapping[str, float], share: float = SHARE) -> dict[str, int]:
    """How many copies each tensor has, of those that get more than one: most noise for the fewest multiplications.

    Args:
        plan: in 8 bits.
        noise: at the outputs, by tensor.
        share: of the multiplications, that copies may add.
    """
    consumers = plan.graph.consumers()
    macs = {each.node: each.count for each in count_macs(plan.graph)}
    reads = {node.output: node.inputs[0] for node in plan.graph.nodes}
    worth = []
    for name in _splittable(plan):
        cost = macs[name] + sum(macs[reader.output] for reader in consumers[name])
        before = 1
        for copies in COPIES:
            spared = noise.get(name, 0.0) * (before**-2 - copies**-2)
            worth.append((spared / (cost * (copies - before)), name, copies))
            before = copies

    def all_macs(chosen: Mapping[str, int]) -> int:
        return sum(count * chosen.get(name, 1) * chosen.get(reads[name], 1) for name, count in macs.items())

    chosen: dict[str, int] = {}
    most = (1 + share) * sum(macs.values())
    for gain, name, copies in sorted(worth, key=lambda entry: -entry[0]):
        more = chosen | {name: copies}
        if gain > 0 and all_macs(more) <= most:
            chosen = more
    return chosen


def _splittable(plan: Plan) -> list[str]:
    """The tensors of 8 bits that a convolution makes and only dense convolutions read."""
    consumers = plan.graph.consumers()
    return [
        node.output
        for node in plan.graph.nodes
        if _makes_copies(plan, node)
        and may_widen(plan.types[node.output])
        and node.output not in plan.graph.outputs
        and all(_reads_copies(plan, reader, node.output) for reader in consumers[node.output])
    ]


def _makes_copies(plan: Plan, node: Node) -> bool:
    op = node.op
    if not isinstance(op, ops.Conv) or op.clamp not in (None, (0.0, None)):
        return False
    return _of_channels(plan, node) and (op.groups == 1 or _depthwise(plan.graph, node))


def _reads_copies(plan: Plan, node: Node, name: str) -> bool:
    once = isinstance(node.op, ops.Conv) and node.op.groups == 1 and name not in node.inputs[1:]
    return once and _of_channels(plan, node)


def _of_channels(plan: Plan, node: Node) -> bool:
    """Whether the weights have a scale for each channel, of any value, and 8 bits or more."""
    weight = plan.weights[node.output]
    scheme = weight.scheme
    integers = weight.values.dtype != np.float32 and scheme.bits >= 8
    return integers and scheme.granularity == "channel" and scheme.form == "symmetric"


def _depthwise(graph: Graph, node: Node) -> bool:
    weight = graph.constants[node.inputs[1]]
    return isinstance(node.op, ops.Conv) and node.op.groups == weight.shape[0] and weight.shape[1] == 1


def split(plan: Plan, copies: Mapping[str, int]) -> Plan:
    """``plan`` with copies of all channels of some tensors, side by side: the same function but for rounding.

    Args:
        plan: in the types whose steps the copies divide.
        copies: how many, by tensor; ``choose_copies`` gives them.
    """
    return _Split(plan, copies).done()


class _Split:
    def __init__(self, plan: Plan, copies: Mapping[str, int]) -> None:
        self.plan = plan
        self.copies = copies
        self.graph = plan.graph.copy()
        self.types, self.weights, self.biases = dict(plan.types), dict(plan.weights), dict(plan.biases)
        self.nodes: list[Node] = []

    def done(self) -> Plan:
        for node in self.graph.nodes:
            if isinstance(node.op, ops.WEIGHTED) and node.inputs[0] in self.copies:
                node = self._reads(node, self.copies[node.inputs[0]])
            if node.output not in self.copies:
                self.nodes.append(node)
            elif _depthwise(self.graph, node):
                self._beside(node, self.copies[node.output])
            else:
                self.nodes.append(self._wider(node, self.copies[node.output]))
        self.graph.replace_nodes(self.nodes)
        return replace(self.plan, graph=self.graph, types=self.types, weights=self.weights, biases=self.biases)

    def _reads(self, node: Node, count: int) -> Node:
        """A layer that reads copies: each with its part of the weight."""
        weight = self.weights[node.output]
        self.weights[node.output] = replace(
            weight, values=np.concatenate([weight.values] * count, 1), scale=weight.scale / np.float32(count)
        )
        exact = self.graph.constants[node.inputs[1]] / np.float32(count)
        constant = self.graph.add_constant(node.inputs[1], np.concatenate([exact] * count, 1))
        return replace(node, inputs=(node.inputs[0], constant, *node.inputs[2:]))

    def _wider(self, node: Node, count: int) -> Node:
        """A layer that makes copies."""
        weight = self.weights[node.output]
        self.weights[node.output] = _of_copies(weight, count)
        exact = self.graph.constants[node.inputs[1]]
        constant = self.graph.add_constant(node.inputs[1], np.concatenate([exact] * count))
        return self._moved(node, constant, np.concatenate(self._offsets(node, count)), count)

    def _beside(self, node: Node, count: int) -> None:
        """Several layers that make one copy each: faster than one with several outputs for each channel."""
        weight, type = self.weights.pop(node.output), self.types[node.output]
        given = self.biases.pop(node.output, None)
        parts = []
        for offset in self._offsets(node, count):
            name = self.graph.fresh(f"{node.output}.copy")
            self.graph.types[name], self.types[name], self.weights[name] = FLOAT32, type, weight
            if given is not None:
                self.biases[name] = given
            self.nodes.append(self._moved(replace(node, output=name), node.inputs[1], offset, 1))
            parts.append(name)
        self.nodes.append(Node(ops.Concat(1), tuple(parts), node.output, node.source))

    def _moved(self, node: Node, constant: str, offset: np.ndarray, count: int) -> Node:
        """The layer with ``constant`` for weight, and with biases of ``count`` copies moved by ``offset``."""
        none = np.zeros(len(offset) // count, np.float32)
        exact = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else none
        self.biases[node.output] = np.tile(self.biases.get(node.output, none), count) + offset
        bias = self.graph.add_constant(f"{node.output}.bias", np.tile(exact, count) + offset)
        return replace(node, inputs=(node.inputs[0], constant, bias))

    def _offsets(self, node: Node, count: int) -> list[np.ndarray]:
        """What is added to the channels of each copy: float32 (C)."""
        quantization = self.types[node.output].quantization
        step = 0.0 if quantization is None else quantization.scale[0]
        channels = self.graph.constants[node.inputs[1]].shape[0]
        places = ((2 * number + 1 - count) / (2 * count) for number in range(count))
        return [np.full(channels, place * step, np.float32) for place in places]


def _of_copies(weight: QuantizedWeight, count: int) -> QuantizedWeight:
    return replace(weight, values=np.concatenate([weight.values] * count), scale=np.tile(weight.scale, count))
