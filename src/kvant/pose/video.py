"""Videos: frames of a file or a camera in, drawn frames and JSON lines out, everything at the same time."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Self

import cv2

from kvant.errors import VideoError
from kvant.format import explained, replacing
from kvant.pose.overlap import ahead
from kvant.pose.person import Person
from kvant.pose.pictures import Picture
from kvant.pose.recording import recording
from kvant.pose.sources import CameraSource, FileSource
from kvant.pose.yuv import YuvPicture
from kvant.runtime import native

if TYPE_CHECKING:
    from kvant.pose.estimator import PoseEstimator

_NETWORK_THREADS = 4  # so many threads of the network make less than one thread can encode
Progress = Callable[[int], None]


class Frame(NamedTuple):
    """One frame: its number from 0, its time in seconds from the first, and the picture as the video holds it."""

    number: int
    seconds: float
    yuv: YuvPicture

    @property
    def picture(self) -> Picture:
        """The picture in BGR, H x W x 3, uint8."""
        return self.yuv.to_bgr()


class Video:
    """The frames of a video file (a path) or of a camera (its number), once, in order.

    `frames` is how many the file says it has, None if it does not know; `rate` is frames a second. Raises VideoError
    if the source cannot be opened, or read to its end.

    >>> with Video("walk.mp4") as video:  # doctest: +SKIP
    ...     pictures = [frame.picture for frame in video]
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        self.is_camera = isinstance(source, int)
        self._source = CameraSource(source) if isinstance(source, int) else FileSource(self.name)
        self.frames, self.rate = self._source.frames, self._source.rate
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        for number, (seconds, picture) in enumerate(self._source):
            if self._stopped.is_set():
                return
            yield Frame(number, seconds, picture)

    def stop(self) -> None:
        """End the video after the frame that is being read; any thread may say so."""
        self._stopped.set()

    def close(self) -> None:
        """Give the file or the camera back."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encoding_threads() -> int:
    """As many as keep up with the network's; more of them would only cost time."""
    return max(1, native.num_threads() // _NETWORK_THREADS)


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
        drawn: the video to write, with skeletons; its ending chooses container and codec, see `CONTAINERS`.
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
        writer = stack.enter_context(recording(drawn, video.rate, _encoding_threads())) if drawn is not None else None
        frames = stack.enter_context(closing(ahead(islice(video, limit))))
        found = stack.enter_context(closing(estimator.each(lambda frame: (frame, estimator.detect(frame.yuv)), frames)))
        for frame, there in found:
            done, people = done + 1, people + len(there)
            if out is not None:
                out(_line(frame, there))
            if writer is not None:
                with writer.frame(frame.yuv) as (plain, copy):
                    estimator.draw(plain, there, out=copy)
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
    named = [os.path.realpath(target) for target in targets if target is not None]
    if len(set(named)) < len(named):
        raise VideoError(f"{named[0]} cannot be both the drawn video and the lines; give two names")
    for target in targets:
        if target is not None and not video.is_camera and os.path.realpath(target) == os.path.realpath(video.name):
            raise VideoError(f"{video.name} is the video that is read; give another name for what is written")


def _line(frame: Frame, people: list[Person]) -> str:
    found = [person.to_dict() for person in people]
    return json.dumps({"frame": frame.number, "seconds": round(frame.seconds, 4), "people": found}) + "\n"


@contextmanager
def _text_file(path: str | os.PathLike[str]) -> Iterator[Callable[[str], None]]:
    """A function that appends to the file."""
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:

        def append(text: str) -> None:
            rest = text.encode()
            with explained(path):
                while rest:  # of what does not fit on a disk some is written
                    rest = rest[file.write(rest) :]

        yield append
