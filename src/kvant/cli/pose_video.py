"""``kvant pose video``: skeletons on videos."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from kvant import pose
from kvant.cli import options, output
from kvant.cli.pose_options import Height, Network, Scales, open_file

# Frames that a container promises and does not hold: this share of them is a mistake of its index, more is damage.
_TOLERATED = 0.01


def video(
    file: options.File,
    source: Annotated[
        str, typer.Argument(metavar="VIDEO", help="A video file, or the number of a camera.", show_default=False)
    ],
    drawn: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="VIDEO", help="The video to write, .mp4 for example.", dir_okay=False),
    ] = None,
    lines: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write a line of JSON for each frame.", dir_okay=False),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N frames.")] = None,
    network: Network = None,
    height: Height = 368,
    scales: Scales = "1",
    memory_budget: options.MemoryBudget = None,
    backend: options.BackendOption = None,
) -> None:
    """Find people in a video and draw their skeletons.

    Reading, running and drawing overlap. Ctrl-C ends a recording from a camera and keeps it; of a file nothing is kept.
    """
    if drawn is None and lines is None:
        raise typer.BadParameter("nothing to write: give --output, --json or both")
    for target in (drawn, lines):
        if target is not None:
            options.check_writable(target, file)
    estimator = open_file(file, network, height, scales, backend, memory_budget)
    is_camera = source.isdecimal() and len(source) < 100
    with pose.Video(int(source) if is_camera else source) as opened:
        total = min(filter(None, (opened.frames, frames)), default=None)
        with _stops_with_ctrl_c(opened), output.progress("frames", total) as advance:
            report = pose.process_video(estimator, opened, drawn, lines, frames, lambda _: advance())
    counts = f"{output.counted(report.frames, 'frame')}, {output.people(report.people)}"
    written = ", ".join(output.clean(path) for path in (drawn, lines) if path is not None)
    print(f"{counts}, {report.rate:.1f} frames/s, {written}")
    if opened.frames is not None and total is not None and report.frames < total * (1 - _TOLERATED):
        output.fail(f"{source} ends after {report.frames} of {total} frames: it is damaged or incomplete")
        raise typer.Exit(1)


@contextmanager
def _stops_with_ctrl_c(opened: pose.Video) -> Iterator[None]:
    """A camera has no end of its own: the first Ctrl-C is its end, the second stops everything."""
    if not opened.is_camera:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        opened.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
