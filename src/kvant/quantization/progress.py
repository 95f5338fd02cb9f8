"""Progress of long work: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Shows how far each stage is, by ``rich`` where that is installed and standard error is a terminal.

    Args:
        show: True or False to force it; None decides by the terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show

    def track(self, items: Iterable[Item], stage: str) -> Iterator[Item]:
        """Yield ``items``, moving the bar of ``stage``."""
        if not self.show:
            yield from items
            return
        try:
            from rich.console import Console
            from rich.progress import track
        except ImportError:
            yield from items
            return
        total = len(items) if isinstance(items, Sized) else None
        yield from track(items, stage, total=total, console=Console(stderr=True), transient=True)
