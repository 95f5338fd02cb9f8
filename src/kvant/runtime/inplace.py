"""Concatenation without copies: its inputs are written where they belong, within the memory of its output.

A tensor has a home in another one if what makes it can leave gaps between pixels and whoever reads it can skip them. A
later concatenation of some of the same tensors may take the memory over once nobody reads the former one, so that
only what is new is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvant.runtime.lower import Context
from kvant.runtime.memory import ALIGNMENT
from kvant.runtime.steps import Concat, Conv, ConvPair, Step


@dataclass(frozen=True)
class Home:
    """Where a tensor lies: from element ``column`` of the pixels of ``storage``, which are ``pitch`` elements apart."""

    storage: str
    column: int
    pitch: int


@dataclass(frozen=True)
class _Part:
    """Columns of a concatenation's memory that a tensor takes."""

    name: str
    begin: int
    end: int

    def holds(self, other: _Part) -> bool:
        return self.begin <= other.begin and other.end <= self.end


class _Graph:
    """Who makes and who reads each tensor, by position in the plan."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.steps: Sequence[Step] = context.steps
        self.maker = {step.output: index for index, step in enumerate(self.steps)}
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for index, step in enumerate(self.steps):
            for position, name in enumerate(step.inputs):
                self.readers.setdefault(name, []).append((index, position))
        self.fixed = {*context.graph.outputs, *context.aliases, *context.aliases.values()}

    def last_use(self, name: str) -> int:
        return max([self.maker[name], *(index for index, _ in self.readers.get(name, []))])

    def may_have_gaps(self, name: str) -> bool:
        """Whether maker and readers of a tensor can deal with pixels that lie further apart than their channels."""
        if name in self.fixed or name not in self.maker or not self._writes_pixels(self.steps[self.maker[name]]):
            return False
        return all(self._reads_pixels(self.steps[index], position) for index, position in self.readers.get(name, []))

    def _writes_pixels(self, step: Step) -> bool:
        return isinstance(step.work, Conv | ConvPair) or self.joins_channels(step)

    def _reads_pixels(self, step: Step, position: int) -> bool:
        return (isinstance(step.work, Conv | ConvPair) and position == 0) or self.joins_channels(step)

    def joins_channels(self, step: Step) -> bool:
        """Whether a step concatenates along what lies innermost in memory.

        Joining whole tensors along an outer axis copies runs of the same sizes where all axes before have one entry.
        """
        if not isinstance(step.work, Concat):
            return False
        sizes = tuple(self.context.laid_out(name)[-1] for name in step.inputs)
        return step.work.sizes == sizes and sum(sizes) == self.context.laid_out(step.output)[-1]


def find_homes(context: Context) -> dict[str, Home]:
    """The home of every tensor that does not simply have memory of its own."""
    graph = _Graph(context)
    parents: dict[str, _Part] = {}  # of a tensor: the tensor it lies in, and where
    parts: dict[str, list[_Part]] = {}  # what lies in a tensor's memory
    for index, step in enumerate(graph.steps):
        if graph.joins_channels(step):
            _place_inputs(graph, index, parents, parts)
    return {name: _resolve(graph, name, parents) for name in {*parents, *parts}}


def _place_inputs(graph: _Graph, index: int, parents: dict[str, _Part], parts: dict[str, list[_Part]]) -> None:
    step = graph.steps[index]
    wanted = _columns(step)
    root = next(
        (name for name in _candidates(wanted, parents) if _may_take_over(graph, index, name, parents, parts)), None
    )
    free_from = -1  # nobody reads what else lies there after this step
    if root is not None:
        parents[step.output] = _Part(root, 0, wanted[-1].end)
        free_from = max(graph.last_use(part.name) for part in _others(root, wanted, parents, parts))
    home = root or step.output
    placed = []
    for part in wanted:
        once = step.inputs.count(part.name) == 1 and part.name not in parents
        if once and graph.may_have_gaps(part.name) and graph.maker[part.name] > free_from:
            parents[part.name] = _Part(home, part.begin, part.end)
            placed.append(part)
    if placed or root is not None:
        parts.setdefault(home, []).extend([*placed, _Part(step.output, 0, wanted[-1].end)])


def _columns(step: Step) -> list[_Part]:
    found, begin = [], 0
    for name, size in zip(step.inputs, step.work.sizes if isinstance(step.work, Concat) else (), strict=True):
        found.append(_Part(name, begin, begin + size))
        begin += size
    return found


def _candidates(wanted: Sequence[_Part], parents: dict[str, _Part]) -> list[str]:
    """Tensors in which inputs of a concatenation lie already, where it wants them."""
    homes = [(part, parents[part.name]) for part in wanted if part.name in parents]
    return [home.name for part, home in homes if (home.begin, home.end) == (part.begin, part.end)]


def _others(
    root: str, wanted: Sequence[_Part], parents: dict[str, _Part], parts: dict[str, list[_Part]]
) -> list[_Part]:
    """What lies in the memory of ``root`` and would be written over."""
    shared = [part for part in wanted if part.name in parents and parents[part.name].name == root]
    return [part for part in parts[root] if not any(kept.holds(part) for kept in shared)]


def _may_take_over(
    graph: _Graph, index: int, root: str, parents: dict[str, _Part], parts: dict[str, list[_Part]]
) -> bool:
    step = graph.steps[index]
    wanted, others = _columns(step), _others(root, _columns(step), parents, parts)
    whole = next(part for part in parts[root] if part.name == root)
    same_size = whole.end == wanted[-1].end
    dead = all(graph.last_use(part.name) < index for part in others)
    return same_size and dead and root not in parents and graph.may_have_gaps(root) and graph.may_have_gaps(step.output)


def _resolve(graph: _Graph, name: str, parents: dict[str, _Part]) -> Home:
    column, root = 0, name
    while root in parents:
        column, root = column + parents[root].begin, parents[root].name
    channels = graph.context.laid_out(root)[-1]
    line = ALIGNMENT // graph.context.type(root).numpy.itemsize
    # Whole cache lines, so that no vector of channels straddles two; an odd number, so that the pixels of a row do not
    # push each other out of the cache.
    lines = -(-channels // line) | 1
    return Home(root, column, lines * line if graph.may_have_gaps(root) else channels)
