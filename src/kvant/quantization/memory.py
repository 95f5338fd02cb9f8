"""Memory that was freed and that the C library keeps: given back to the system before it grows large.

Activations of pictures of many sizes leave holes behind in which nothing later fits, each thread its own, and they come
to more than all that is in use. glibc gives them back when asked.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from threading import Lock

import numpy as np

# The process may grow by so many bytes before what is free is given back. Less costs time: pages are made anew.
SPARE = 128 << 20
# Once glibc has seen a block of this size freed (its limit is 32 MB), it keeps twice as much at the end of each heap.
_LARGEST_BLOCK = (32 << 20) - (64 << 10)
_STATE = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Spare:
    """Gives freed memory back whenever the process has grown by some bytes since the last time; only with glibc."""

    def __init__(self) -> None:
        knows = sys.platform == "linux" and _STATE.exists()  # a sandbox may have no /proc
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if knows else None
        self._lock = Lock()
        self._least = 0

    def keep(self) -> None:
        """Let glibc keep what is freed until it is given back, as it does in any process that once freed a large block.

        Else it gives the end of a heap back again and again, and what comes next makes the same pages anew.
        """
        if self._trim is not None:
            np.empty(_LARGEST_BLOCK, np.uint8)

    def give_back(self, spare: int = SPARE) -> None:
        """Called between pieces of work, from any thread; nothing happens before the process has grown by ``spare``."""
        if self._trim is None or not self._lock.acquire(blocking=False):
            return
        try:
            now = resident_bytes()
            self._least = min(self._least, now)
            if now >= self._least + spare:
                self._trim(0)
                self._least = resident_bytes()
        finally:
            self._lock.release()


def resident_bytes() -> int:
    """Bytes of the process that are in memory."""
    return int(_STATE.read_text("ascii").split()[1]) * _PAGE
