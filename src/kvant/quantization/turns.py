"""One quantization at a time in a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from kvant.runtime import Guarded

Given = ParamSpec("Given")
Made = TypeVar("Made")


class _Turns(Guarded):
    """Threads take turns; a thread that has its turn may call again, such as calibration data that quantizes."""

    def __init__(self) -> None:
        super().__init__(threading.RLock)

    def taken(self, function: Callable[Given, Made]) -> Callable[Given, Made]:
        @wraps(function)
        def in_turn(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            with self._lock:
                return function(*args, **kwargs)

        return in_turn


_turns = _Turns()


def in_turn(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """``function`` by one thread at a time.

    torch.export puts other tensors in the place of a module's own while it traces it, and changes settings of the whole
    process: another thread that reads the same module then, or traces one, gets errors from within torch or takes what
    it sees for weights. No time is lost, because one quantization uses all threads.
    """
    return _turns.taken(function)
