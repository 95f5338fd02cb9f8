"""Samples side by side: each worker computes on one thread, so that results do not depend on how many there are.

Sums of float32 come out differently when torch splits them among threads, and a decision may turn on the last bit. One
thread for each sample gives the same file on every number of threads, and wastes less time on waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from kvant.quantization.memory import Spare
from kvant.runtime import results_in_order

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPARE = Spare()
_POOL: ContextVar[tuple[ThreadPoolExecutor, int] | None] = ContextVar("kvant_workers", default=None)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within, torch computes on one thread, and ``in_order`` on as many workers as torch had threads.

    torch's number of threads is what it was afterwards. Within another ``one_thread_each`` nothing changes.
    """
    if _POOL.get() is not None:
        yield
        return
    _SPARE.keep()
    _SPARE.give_back()  # what was freed before: the workers' memory comes from elsewhere
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "kvant-worker", initializer=torch.set_num_threads, initargs=(1,))
    token = _POOL.set((pool, count))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        pool.shutdown(cancel_futures=True)
        _POOL.reset(token)
        torch.set_num_threads(count)


def of_each(count: int, function: Callable[..., Result], *what: object) -> list[Result]:
    """``function`` of each number below ``count`` and ``what``, in inference mode; see ``in_order``.

    >>> of_each(3, pow, 2)
    [0, 1, 4]
    """
    found = list(each_in_order(count, function, *what))
    _SPARE.give_back()
    return found


def each_in_order(count: int, function: Callable[..., Result], *what: object) -> Iterator[Result]:
    """The same one by one, so that few results are there at once.

    For steps of a network: memory that one frees, the next one wants, so none is given back.
    """

    def one(number: int) -> Result:
        with torch.inference_mode():
            return function(number, *what)

    return _in_order(one, range(count))


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function`` of each of ``items``, in their order; a few are computed ahead by the workers, if there are any.

    >>> list(in_order(abs, [-1, 2]))
    [1, 2]
    """
    for result in _in_order(function, items):
        yield result
        _SPARE.give_back()


def _in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    workers = _POOL.get()
    if workers is None or workers[1] == 1:
        yield from map(function, items)
        return
    pool, count = workers
    yield from results_in_order(pool, function, items, most=count + 1)
