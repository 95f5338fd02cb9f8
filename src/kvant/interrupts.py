"""Ctrl-C where Python would lose it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_SECONDS = 0.01  # by then what ignores exceptions is mostly over; if not, it is tried once more


@contextmanager
def interrupts_arrive() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block, or at its end, also where Python ignores exceptions.

    A signal's handler runs between any two instructions of the main thread. If these are a destructor's, or those of a
    weak reference's callback, as in every import and all over torch, Python prints what is raised and goes on, and the
    work that should have stopped runs on to its end. Here the signal is sent anew a moment later.

    To be entered in the main thread. Other exceptions that are ignored are shown as ever.
    """
    before, main = sys.unraisablehook, threading.get_ident()
    lost, changing = threading.Event(), threading.Lock()

    def send() -> None:
        with changing:
            if lost.is_set():
                lost.clear()
                signal.pthread_kill(main, signal.SIGINT)

    def notice(unraisable: UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        lost.set()
        timer = threading.Timer(_AGAIN_SECONDS, send)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = notice
    try:
        yield
    finally:
        sys.unraisablehook = before
        with changing:  # what was sent has arrived, what was not is not sent any more
            is_lost = lost.is_set()
            lost.clear()
        if is_lost:
            raise KeyboardInterrupt
