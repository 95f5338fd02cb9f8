"""Objects with a lock of their own, which forked processes find open."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class Guarded:
    """Has a lock for what its methods change.

    A forked child has none of its parent's other threads: a lock that one of them held would stay closed in it for
    ever. What it guards is whole in the child all the same, because every change to it is one call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _guarded.add(self)


_guarded: WeakSet[Guarded] = WeakSet()


def _open_locks() -> None:
    for each in tuple(_guarded):
        each._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_locks)
