from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kvant.pose.overlap import ahead, at_once


def test_order_is_kept() -> None:
    assert list(ahead(range(1000), depth=3)) == list(range(1000))
    assert list(ahead([])) == []


def test_items_are_made_while_others_are_used() -> None:
    """Two threads wait for each other: without overlap neither could go on."""
    both = threading.Barrier(2, timeout=10)

    def items() -> Iterator[int]:
        yield 0
        both.wait()
        yield 1

    found = ahead(items())
    assert next(found) == 0
    both.wait()
    assert next(found) == 1


def test_no_more_than_depth_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for value in range(100):
            made.append(value)
            yield value

    found = ahead(items(), depth=2)
    next(found)
    time.sleep(0.3)
    # One was taken, two wait, one is in hand.
    assert len(made) <= 4
    found.close()
    assert len(made) <= 4


def test_an_error_comes_after_what_was_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)


@pytest.mark.parametrize("close", [True, False])
def test_leaving_ends_the_thread_and_closes_the_items(close: bool) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    found = ahead(items())
    next(found)
    assert threading.active_count() == before + 1
    if close:
        found.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt())
    assert closed.is_set()
    assert threading.active_count() == before


def test_chains_end_together() -> None:
    before = threading.active_count()
    chain = ahead(value + 1 for value in ahead(value * 2 for value in ahead(range(10**9))))
    assert [next(chain) for _ in range(5)] == [1, 3, 5, 7, 9]
    chain.close()
    assert threading.active_count() == before


def test_an_error_while_closing_is_not_lost() -> None:
    class Items:
        def __iter__(self) -> Iterator[int]:
            return iter([1])

        def close(self) -> None:
            raise OSError("still open")

    with pytest.raises(OSError, match="still open"):
        list(ahead(Items()))


def test_results_keep_the_order_of_the_items() -> None:
    def later_if_even(value: int) -> int:
        time.sleep(0.002 * (value % 2 == 0))
        return -value

    assert list(at_once(later_if_even, range(50), workers=4)) == [-value for value in range(50)]
    assert list(at_once(abs, [], workers=2)) == []


def test_workers_work_at_the_same_time_and_each_starts_once() -> None:
    both, started = threading.Barrier(2, timeout=10), []

    def wait(_: int) -> str:
        both.wait()
        return threading.current_thread().name

    names = list(at_once(wait, range(8), 2, lambda: started.append(threading.current_thread().name)))
    assert set(names) == set(started)
    assert len(started) == len(set(started)) == 2


def test_no_more_than_two_items_a_worker_are_taken_at_once() -> None:
    taken = []

    def items() -> Iterator[int]:
        for value in range(100):
            taken.append(value)
            yield value

    found = at_once(abs, items(), workers=2)
    next(found)
    assert len(taken) == 4
    found.close()
    assert len(taken) == 4


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_function_comes_in_its_turn(error: type[BaseException]) -> None:
    def fails_at_three(value: int) -> int:
        if value == 3:
            raise error("three")
        return value

    before, found = threading.active_count(), []
    with pytest.raises(error, match="three"):
        for value in at_once(fails_at_three, range(10), workers=3):
            found.append(value)
    assert found == [0, 1, 2]
    assert threading.active_count() == before
