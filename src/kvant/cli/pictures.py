"""Pictures of which some cannot be read: as what is worked on, and as calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import typer

from kvant.cli import output
from kvant.errors import ImageError, InputError

Picture = npt.NDArray[np.uint8]
NetworkInput = npt.NDArray[np.float32]


class BrokenPictures:
    """Pictures that cannot be read: each is named and skipped, and in the end the command fails."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Work on one picture."""
        try:
            yield
        except (ImageError, InputError) as error:
            self.add(error)

    def add(self, error: ImageError | InputError) -> None:
        """Name one."""
        output.fail(error)
        self.count += 1

    def finish(self) -> None:
        """Exit with 1 if there were any."""
        if self.count:
            output.fail(f"{output.counted(self.count, 'picture')} skipped")
            raise typer.Exit(1)


class CalibrationPictures:
    """Picture files as a network wants them, read one by one.

    Those that cannot be read are `broken`: they are named when they are met first, and left out. Iterating raises
    ImageError if none is left.

    Args:
        paths: the files.
        prepare: makes the network's inputs of pictures (BGR, H x W x 3, uint8), one of each.
    """

    def __init__(self, paths: Sequence[Path], prepare: Callable[[Iterator[Picture]], Iterable[NetworkInput]]) -> None:
        self.paths, self.prepare = list(paths), prepare
        self.broken = BrokenPictures()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[NetworkInput]]:
        for array in self.prepare(self._read()):
            yield (array,)
        if not self.paths:
            raise ImageError("none of the pictures can be read")

    def first(self) -> NetworkInput:
        """The first input; raises ImageError if there is none."""
        return next(iter(self))[0]

    def _read(self) -> Iterator[Picture]:
        from kvant.pose import read_image

        for path in tuple(self.paths):
            try:
                picture = read_image(path)
            except ImageError as error:
                self.broken.add(error)
                self.paths.remove(path)
            else:
                yield picture
