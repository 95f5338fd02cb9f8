"""Parts of large samples: what an error costs is a matter of neighbourhoods, and a whole picture takes much memory."""

from __future__ import annotations

import torch

from kvant.capture import Executor
from kvant.errors import InputError, ShapeError
from kvant.graph import is_symbol
from kvant.quantization.statistics import Sample

# Height and width of a part, and the multiple of pixels at which it begins, so that strides fall as on the whole.
SIDE = 256
ALIGNED = 32


class Parts:
    """Takes parts of a graph's samples; whole samples where the graph does not take other sizes.

    A part is a square of ``SIDE`` of maps (N, C, H, W) whose height and width are free, where these are larger.

    Args:
        executor: of the float graph.
        sample: one by which it is tried whether the graph takes parts.
    """

    def __init__(self, executor: Executor, sample: Sample) -> None:
        self.axes: list[list[int]] = [
            [axis for axis in (2, 3) if len(shape) == 4 and is_symbol(shape[axis])]
            for shape in (entry.shape for entry in executor.graph.inputs)
        ]
        middle = self.middle(sample)
        if middle is not sample:
            try:
                executor.run(middle)
            except (InputError, ShapeError):
                self.axes = [[] for _ in self.axes]

    def middle(self, sample: Sample) -> Sample:
        """The middle."""
        return self._cut(sample, None)

    def random(self, sample: Sample, generator: torch.Generator) -> Sample:
        """A part somewhere."""
        return self._cut(sample, generator)

    def _cut(self, sample: Sample, generator: torch.Generator | None) -> Sample:
        cut, any_cut = [], False
        for axes, values in zip(self.axes, sample, strict=True):
            for axis in axes:
                spare = values.shape[axis] - SIDE
                if spare > 0:
                    start = spare // 2 if generator is None else _below(spare + 1, generator)
                    values, any_cut = values.narrow(axis, start // ALIGNED * ALIGNED, SIDE), True
            cut.append(values)
        return cut if any_cut else sample


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
