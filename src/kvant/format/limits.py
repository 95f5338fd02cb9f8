"""What a file may hold at most. Every limit is checked before anything of that size is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvant.errors import FormatError
from kvant.graph import Graph

MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 256
MAX_RANK = 8
MAX_GOLDEN = 1024
# What all activations that are alive at one time may take, at the example size.
MAX_PLANNED_BYTES = 2**36


def check_planned_memory(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a graph whose activations would need more than ``MAX_PLANNED_BYTES`` at once at its example size.

    Raises:
        FormatError: naming the tensor at which the limit is passed.
    """
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
    alive = 0
    for entry in graph.inputs:
        alive = _grow(graph, shapes, entry.name, alive)
    for index, node in enumerate(graph.nodes):
        alive = _grow(graph, shapes, node.output, alive)
        for name in dict.fromkeys((*node.inputs, node.output)):
            if name not in graph.constants and last_use.get(name, index) == index:
                alive -= _size(graph, shapes, name)


def _grow(graph: Graph, shapes: Mapping[str, tuple[int, ...]], name: str, alive: int) -> int:
    alive += _size(graph, shapes, name)
    if alive > MAX_PLANNED_BYTES:
        raise FormatError(
            f"at its example size the graph needs more than {MAX_PLANNED_BYTES} bytes of activations "
            f"(tensor {name!r} has shape {shapes[name]})"
        )
    return alive


def _size(graph: Graph, shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return math.prod(shapes[name]) * graph.types[name].numpy.itemsize
