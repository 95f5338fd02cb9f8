"""Objects with a lock of their own, which forked processes find open."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from weakref import WeakSet


class Guarded:
    """Has a lock for what its methods change.

    A forked child has none of its parent's other threads: a lock that one of them held would stay closed in it for
    ever. What it guards is whole in the child all the same, because every change to it is one call.

    Args:
        make: makes the lock.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[bool]] = threading.Lock) -> None:
        self._make_lock = make
        self._open_lock()
        _guarded.add(self)

    def _open_lock(self) -> None:
        self._lock = self._make_lock()


_guarded: WeakSet[Guarded] = WeakSet()


def _open_locks() -> None:
    for each in tuple(_guarded):
        each._open_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_locks)
