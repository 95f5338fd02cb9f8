"""Videos: frames of a file or a camera in, drawn frames and JSON lines out, everything at the same time."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TextIO

import cv2
import numpy as np

from kvant.errors import VideoError
from kvant.format import replacing
from kvant.pose.overlap import ahead
from kvant.pose.person import Person
from kvant.pose.pictures import Picture

if TYPE_CHECKING:
    from kvant.pose.estimator import PoseEstimator

CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
"""Endings that a drawn video may have, and the codec of each."""

_DEFAULT_RATE = 25.0  # frames a second where a source does not know its own
Progress = Callable[[int], None]


class Frame(NamedTuple):
    """One frame: its number from 0, its time in seconds from the first, and the picture, BGR, H x W x 3, uint8."""

    number: int
    seconds: float
    picture: Picture


class Video:
    """The frames of a video file (a path) or of a camera (its number), once, in order.

    `frames` is how many the file says it has, None if it does not know; `rate` is frames a second. Raises VideoError
    if the source cannot be opened.

    >>> with Video("walk.mp4") as video:  # doctest: +SKIP
    ...     pictures = [frame.picture for frame in video]
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        self.is_camera = isinstance(source, int)
        # OpenCV takes names for addresses and patterns, too, and would open those.
        if not self.is_camera and not os.path.isfile(self.name):
            raise VideoError(f"{self.name} is not a file")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            what = "cannot be opened" if self.is_camera else "is not a video that OpenCV can read"
            raise VideoError(f"{self.name} {what}")
        count, rate = int(self._get(cv2.CAP_PROP_FRAME_COUNT)), self._get(cv2.CAP_PROP_FPS)
        self.frames = count if count > 0 and not self.is_camera else None
        self.rate = rate if 1 <= rate <= 1000 else _DEFAULT_RATE
        self._stopped = threading.Event()

    def _get(self, field: int) -> float:
        value = self._capture.get(field)
        return value if np.isfinite(value) else 0.0

    def __iter__(self) -> Iterator[Frame]:
        start = time.monotonic()
        for number in count():
            there, picture = self._capture.read()
            if not there or self._stopped.is_set():
                return
            seconds = time.monotonic() - start if self.is_camera else number / self.rate
            yield Frame(number, seconds, np.asarray(picture, dtype=np.uint8))

    def stop(self) -> None:
        """End the video after the frame that is being read; any thread may say so."""
        self._stopped.set()

    def close(self) -> None:
        """Give the file or the camera back."""
        self._capture.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class VideoReport:
    """What was done: frames, people in all of them, and the seconds it took."""

    frames: int
    people: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


def process_video(
    estimator: PoseEstimator,
    video: Video,
    drawn: str | os.PathLike[str] | None = None,
    lines: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> VideoReport:
    """Find people in every frame; one thread reads, this one draws and writes, others run the network.

    Several frames are in the network at once where it allows that, see `PoseEstimator.each`.

    Args:
        drawn: the video to write, with skeletons; its ending chooses container and codec, see `CODECS`.
        lines: the text file to write: a JSON object for each frame, {"frame": number, "seconds": time in the video,
            "people": [Person.to_dict(), ...]}.
        limit: stop after this many frames.
        progress: called with the number of frames done, after each.

    Files appear when all is done; on an error or Ctrl-C there is none, and one that was there before stays. Raises
    VideoError if no frame can be read or the video cannot be written, SaveError for a file that cannot be written.
    """
    _check_targets(video, drawn, lines)
    start, done, people = time.perf_counter(), 0, 0
    with ExitStack() as stack:
        stack.enter_context(_one_opencv_thread())
        out = stack.enter_context(_text_file(lines)) if lines is not None else None
        writer = stack.enter_context(_drawn_video(drawn, video.rate)) if drawn is not None else None
        frames = stack.enter_context(closing(ahead(islice(video, limit))))
        found = stack.enter_context(
            closing(estimator.each(lambda frame: (frame, estimator.detect(frame.picture)), frames))
        )
        for frame, there in found:
            done, people = done + 1, people + len(there)
            if out is not None:
                out.write(_line(frame, there))
            if writer is not None:
                writer(estimator.draw(frame.picture, there))
            if progress is not None:
                progress(done)
        if not done:
            raise VideoError(f"{video.name} has no frame that can be read")
    return VideoReport(done, people, time.perf_counter() - start)


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """The stages share the processors already; threads of OpenCV's own would only take them from the network."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _check_targets(video: Video, *targets: str | os.PathLike[str] | None) -> None:
    for target in targets:
        if target is not None and not video.is_camera and os.path.realpath(target) == os.path.realpath(video.name):
            raise VideoError(f"{video.name} is the video that is read; give another name for what is written")


def _line(frame: Frame, people: list[Person]) -> str:
    found = [person.to_dict() for person in people]
    return json.dumps({"frame": frame.number, "seconds": round(frame.seconds, 4), "people": found}) + "\n"


@contextmanager
def _text_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


@contextmanager
def _drawn_video(path: str | os.PathLike[str], rate: float) -> Iterator[Callable[[Picture], None]]:
    """A function that appends a frame to the video; the first one gives the size."""
    suffix = Path(path).suffix.lower()
    if suffix not in CODECS:
        raise VideoError(f"{os.fspath(path)}: a drawn video must end in one of {', '.join(CODECS)}")
    with replacing(path, suffix) as temporary:
        writer = cv2.VideoWriter()
        written = 0

        def write(frame: Picture) -> None:
            nonlocal written
            if not written and not writer.open(str(temporary), _fourcc(suffix), rate, frame.shape[1::-1]):
                raise VideoError(f"{os.fspath(path)}: OpenCV cannot write {CODECS[suffix]} video of this size")
            writer.write(frame)
            written += 1

        try:
            yield write
        finally:
            writer.release()
        _check_written(temporary, path, written)


def _fourcc(suffix: str) -> int:
    return cv2.VideoWriter.fourcc(*CODECS[suffix])


def _check_written(temporary: Path, path: str | os.PathLike[str], count: int) -> None:
    """OpenCV says nothing when a disk is full; what is there is counted instead."""
    with Video(temporary) as written:
        found = written.frames
    if found != count:
        raise VideoError(f"{os.fspath(path)}: only {found} of {count} frames could be written; is the disk full?")
