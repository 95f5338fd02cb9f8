"""What goes to the terminal: results to standard output, everything about the work to standard error."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# Columns of a table: where nobody looks at it on a terminal, and at least, for rich leaves out what finds no room.
_WIDTH, _LEAST_WIDTH = 160, 40


def clean(text: object) -> str:
    """``text`` without characters that could steer a terminal: names in a file are written by others."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def help_of(command: Callable[..., None]) -> str:
    """A command's docstring, each paragraph on a line of its own: typer shows line breaks as they are."""
    return "\n\n".join(" ".join(each.split()) for each in (inspect.getdoc(command) or "").split("\n\n"))


def megabytes(count: int) -> str:
    """A size for a person to read.

    >>> megabytes(2_150_000)
    '2.15 MB'
    """
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number of things, in words.

    >>> counted(1, "picture"), counted(2, "picture"), counted(5, "person", "people")
    ('1 picture', '2 pictures', '5 people')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def people(count: int) -> str:
    """A number of people, in words."""
    return counted(count, "person", "people")


def fail(message: object) -> None:
    """One error on standard error; later lines of the message are kept, control characters are not."""
    lines = [clean(line) for line in str(message).splitlines()] or ["unknown error"]
    print("kvant: error: " + "\n".join(lines), file=sys.stderr)


def say(message: str) -> None:
    """A remark for a person who watches: nothing is said when standard error is no terminal."""
    if sys.stderr.isatty():
        print(clean(message), file=sys.stderr)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; numbers are set to the right, long names are wrapped, never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown = [[value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() for row in shown if row[index])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(clean(value)) for value in row))
    console = Console()
    console.width = max(console.width, _LEAST_WIDTH) if console.is_terminal else _WIDTH
    print(f"\n{title}\n")
    console.print(table)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on standard error with how many are done and how fast; the function it gives moves it on by one.

    Nothing is shown, and nothing costs time, when standard error is no terminal. Lines printed meanwhile stand above
    the bar.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


def show_warnings_briefly() -> None:
    """Python's warnings as one line each, without the place in the code they come from."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"kvant: warning: {clean(message)}", file=sys.stderr)

    warnings.showwarning = show
