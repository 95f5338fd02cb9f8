"""Work that several threads do, with results in the order of what they work on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Result, None, None]:
    """Yield what `pool` makes of each of `items` by `function`, in their order.

    At most `most` items are taken before the first result of them is wanted. An exception of `function` is raised here,
    in its turn. When the generator is closed, or left by an exception, what was not begun is not done.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(results_in_order(pool, abs, [-1, 2], most=4))
    [1, 2]
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
