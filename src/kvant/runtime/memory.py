"""Where activations live: one block of memory for each plan, shared by tensors whose lives do not overlap."""

from __future__ import annotations

import bisect
import mmap

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
_HUGE = 2 * 2**20  # bytes of a huge page, with which the processor finds addresses faster


def aligned(size: int) -> int:
    """``size`` rounded up to whole cache lines, at least one."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def block(size: int) -> npt.NDArray[np.uint8]:
    """``size`` bytes straight from the system, at the start of a page; they go back when nothing refers to them.

    From malloc, blocks of ever new sizes would leave holes that only smaller ones fit into, and memory would grow.

    Raises:
        MemoryError: the system has not so many.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        storage = np.empty(size + ALIGNMENT, np.uint8)
        return storage[-storage.ctypes.data % ALIGNMENT :][:size]
    # Private: a forked child must not write into its parent's activations.
    try:
        memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the activations need {size:,} bytes, which the system does not give") from error
    if size >= 2 * _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class Arena:
    """Offsets within a growing block: freed ranges are used again, the smallest one that fits first.

    >>> arena = Arena()
    >>> first, second = arena.allocate(100), arena.allocate(64)
    >>> arena.free(first, 100)
    >>> first, second, arena.allocate(128), arena.size
    (0, 128, 0, 192)
    """

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (offset, bytes), sorted, never adjacent

    def allocate(self, size: int) -> int:
        """The offset of a free range of ``size`` bytes."""
        size = aligned(size)
        fitting = [(length, offset) for offset, length in self._free if length >= size]
        if fitting:
            length, offset = min(fitting)
            self._free.remove((offset, length))
        else:
            offset, length = self._grow(size)
        if length > size:
            bisect.insort(self._free, (offset + size, length - size))
        return offset

    def _grow(self, size: int) -> tuple[int, int]:
        """Extend the block so that it ends with ``size`` free bytes, counting a free range at its end."""
        offset = self.size
        if self._free and sum(self._free[-1]) == self.size:
            offset, _ = self._free.pop()
        self.size = offset + size
        return offset, size

    def free(self, offset: int, size: int) -> None:
        """Give a range back, joined with free neighbours."""
        size = aligned(size)
        place = bisect.bisect(self._free, (offset, 0))
        if place < len(self._free) and self._free[place][0] == offset + size:
            size += self._free.pop(place)[1]
        if place > 0 and sum(self._free[place - 1]) == offset:
            offset, before = self._free.pop(place - 1)
            size += before
        bisect.insort(self._free, (offset, size))
