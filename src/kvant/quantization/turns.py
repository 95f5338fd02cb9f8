"""One quantization at a time in a process, in float32 on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

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
            with self._lock, _plain_torch():
                return function(*args, **kwargs)

        return in_turn


@contextmanager
def _plain_torch() -> Iterator[None]:
    """As if no ``torch.autocast`` and no other default device were around it."""
    with ExitStack() as stack:
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


_turns = _Turns()


def in_turn(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """``function`` by one thread at a time, in float32 on the CPU whatever torch's settings are around it.

    torch.export puts other tensors in the place of a module's own while it traces it, and changes settings of the whole
    process: another thread that reads the same module then, or traces one, gets errors from within torch or takes what
    it sees for weights. No time is lost, because one quantization uses all threads.
    """
    return _turns.taken(function)
