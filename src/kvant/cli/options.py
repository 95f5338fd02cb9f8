"""Options that several commands have."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvant import SaveError
from kvant.format import MAX_GOLDEN, check_replaceable


class Backend(StrEnum):
    """Back ends that a user may ask for."""

    NATIVE = "native"
    REFERENCE = "reference"


class Bits(StrEnum):
    """Widths of activations."""

    EIGHT = "8"
    SIXTEEN = "16"


class Effort(StrEnum):
    """How much time quantization may take."""

    FAST = "fast"
    DEFAULT = "default"
    BEST = "best"


File = Annotated[Path, typer.Argument(metavar="FILE", help="A .kvant file.", show_default=False)]
Out = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="The .kvant file to write.", show_default=False)
]
BackendOption = Annotated[
    Backend | None, typer.Option(help="The back end to use; by default the native one.", show_default=False)
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES|speed",
        help="Bytes that laid out weights may take, or `speed` for no bound; by default half more than in the file, "
        "or 32 MB more if that is more, but at most 2.5 times as much.",
        show_default=False,
    ),
]
BitsOption = Annotated[Bits, typer.Option("--bits", help="Width of activations.")]
Wide = Annotated[
    list[str] | None,
    typer.Option(
        "--wide", metavar="PATTERN", help="16-bit activations for tensors or modules of this name; repeatable."
    ),
]
TargetSqnr = Annotated[
    float | None,
    typer.Option(metavar="DB", help="Widen activations until the outputs' signal-to-noise ratio is this."),
]
EffortOption = Annotated[Effort, typer.Option("--effort", help="Time for accuracy, and for more layers in 8 bits.")]
GoldenCount = Annotated[
    int,
    typer.Option(
        "--golden",
        min=0,
        max=MAX_GOLDEN,
        metavar="N",
        help="Keep N calibration inputs and their outputs in the file for `kvant verify`.",
    ),
]


def to_budget(text: str | None) -> int | Literal["speed"] | None:
    """The memory budget that an option gives.

    >>> to_budget("100000000")
    100000000
    """
    if text is None or text == "speed":
        return text  # type: ignore[return-value]
    if not text.isdecimal() or len(text) > 18:
        raise typer.BadParameter(f"{text[:40]!r} is neither a number of bytes nor the word speed")
    return int(text)


def check_writable(path: Path, *others: Path | None) -> None:
    """Find out before the long work, not after it, that a file cannot be written there, or takes the place of others.

    `others` are files that are read, or written too.
    """
    if any(other is not None and os.path.realpath(other) == os.path.realpath(path) for other in others):
        raise SaveError(f"{str(path)!r} is needed for something else; give another name for what is written")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SaveError(f"the folder {str(folder)!r} does not exist")
    check_replaceable(path)
