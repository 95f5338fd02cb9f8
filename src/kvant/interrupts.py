"""Ctrl-C where Python would lose it, or torch end the process."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_SECONDS = 0.01  # by then what is in the way is mostly over; if not, it is tried once more


@contextmanager
def interrupts_arrive() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block, or at its end, also where it is in the wrong place at first.

    A signal's handler runs between any two instructions of the main thread. If these are a destructor's, or those of a
    weak reference's callback, as in every import and all over torch, Python prints what is raised and goes on, and the
    work that should have stopped runs on to its end. If torch's C++ code called them by ``__torch_dispatch__``, as it
    does in every export, the process may be aborted, and files stay behind. In both cases the signal is sent anew a
    moment later.

    To be entered in the main thread. Other exceptions that are ignored are shown as ever, and another handler of the
    signal than Python's own is left alone.
    """
    hook, main = sys.unraisablehook, threading.get_ident()
    changing, is_late = threading.Lock(), False

    # Called at any moment: takes no lock.
    def send_later() -> None:
        nonlocal is_late
        is_late = True
        _thread.start_new_thread(send, ())

    def send() -> None:
        nonlocal is_late
        time.sleep(_AGAIN_SECONDS)
        with changing:
            if is_late:
                is_late = False
                signal.pthread_kill(main, signal.SIGINT)

    def notice(unraisable: UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            send_later()
        else:
            hook(unraisable)

    def handle(_: int, frame: FrameType | None) -> None:
        if not _is_called_by_torch(frame):
            raise KeyboardInterrupt
        send_later()

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, handle)
    sys.unraisablehook = notice
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if is_usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with changing:  # what was sent has arrived, what was not is not sent any more
            was_late, is_late = is_late, False
        if was_late:
            raise KeyboardInterrupt


def _is_called_by_torch(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__torch_dispatch__":
        frame = frame.f_back
    return frame is not None
