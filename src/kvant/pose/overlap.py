"""Doing the next thing while the last one is still being worked on, and several things at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from typing import TypeVar

from kvant.runtime import results_in_order

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHECK_SECONDS = 0.1  # how soon a thread that waits for room notices that nobody wants what it makes


def ahead(items: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """Yield `items` in order; a thread makes them, at most `depth` ahead of whoever takes them.

    An exception of `items` is raised here, after what came before it. When the generator is closed, or left by an
    exception, the thread stops, closes `items` if it can be closed, and has ended when this returns.

    >>> list(ahead(value * value for value in range(4)))
    [0, 1, 4, 9]
    """
    queue: Queue[Item | _End] = Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(queue, items, stop), daemon=True)
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()


def at_once(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, start: Callable[[], None] | None = None
) -> Generator[Result, None, None]:
    """Yield `function` of each of `items`, in their order; so many threads work on it, each calls `start` first.

    At most two items a worker are taken before the first result of them is wanted. An exception of `function` is raised
    here, in its turn. When the generator is closed, or left by an exception, what was not begun is not done, and the
    threads have ended when this returns.

    >>> list(at_once(abs, [-1, 2], workers=2))
    [1, 2]
    """
    with ThreadPoolExecutor(workers, "kvant-at-once", start) as pool:
        yield from results_in_order(pool, function, items, most=2 * workers)


class _End:
    """No more items; `error` says why, if they did not just end."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _fill(queue: Queue[Item | _End], items: Iterable[Item], stop: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            if not _put(queue, item, stop):
                break
    except BaseException as error:  # belongs to whoever takes the items: raised there
        end = _End(error)
    try:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        end = _End(error)
    _put(queue, end, stop)


def _put(queue: Queue[Item | _End], item: Item | _End, stop: threading.Event) -> bool:
    """Put when there is room; False if nobody wants it any more."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=_CHECK_SECONDS)
        except Full:
            continue
        return True
    return False
