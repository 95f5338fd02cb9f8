"""Ctrl-C in a place where Python ignores exceptions stops the work all the same."""

from __future__ import annotations

import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from kvant.interrupts import interrupts_arrive
from kvant.pose.demo import __main__ as demo
from samples import Thing, lose_ctrl_c, lose_ctrl_c_and_go_on

pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture(autouse=True)
def same_hook() -> Iterator[None]:
    hook = sys.unraisablehook
    yield
    assert sys.unraisablehook is hook


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_python_loses_it() -> None:
    lose_ctrl_c()


def test_it_comes_again() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_arrive():
        lose_ctrl_c_and_go_on()


def test_it_comes_at_the_end_of_short_work() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_arrive():
        lose_ctrl_c()


def test_it_wakes_what_waits_for_a_thread() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_arrive():
        lose_ctrl_c()
        threading.Event().wait(60)


def test_each_is_raised_once() -> None:
    with interrupts_arrive():
        with pytest.raises(KeyboardInterrupt):
            lose_ctrl_c_and_go_on()
        time.sleep(0.05)
    time.sleep(0.05)


def test_torch_is_let_out_first() -> None:
    """Raised where torch's C++ code has called Python, it may abort the process."""
    stages = []

    def __torch_dispatch__() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        stages.append("left")

    with pytest.raises(KeyboardInterrupt), interrupts_arrive():
        __torch_dispatch__()
        time.sleep(60)
    assert stages == ["left"]


def test_another_handler_is_left_alone() -> None:
    seen = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    with interrupts_arrive():
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]


def test_other_exceptions_are_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    thing = Thing()
    with interrupts_arrive():
        reference = weakref.ref(thing, lambda _: 1 / 0)
        del thing
    assert reference() is None
    assert seen == [ZeroDivisionError]
    monkeypatch.undo()


def test_the_demo_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "run", lose_ctrl_c_and_go_on)
    assert demo.main([]) == 130
    assert "interrupted" in capsys.readouterr().err
