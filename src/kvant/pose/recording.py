"""Writing a drawn video: H.264 by x264, through PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np

from kvant.errors import VideoError
from kvant.format import explained, replacing
from kvant.pose.sources import FileSource, view_of
from kvant.pose.yuv import Plane, YuvPicture


class Container(NamedTuple):
    """How a kind of file is written: FFmpeg's names of the container and of the codec."""

    format: str
    codec: str


CONTAINERS = {
    ".avi": Container("avi", "mpeg4"),
    ".m4v": Container("mp4", "libx264"),
    ".mkv": Container("matroska", "libx264"),
    ".mov": Container("mov", "libx264"),
    ".mp4": Container("mp4", "libx264"),
}
"""Endings that a drawn video may have."""

# The same quality for every frame, 39 dB on photos, however many bytes that takes: choosing it by frame takes longer.
# So does looking for coefficients that are small enough to leave out. A finer first frame (a factor of 3 instead of
# 1.4) leaves less to write in those after it; a few more coefficients that become 0 (21 by default) keep its bytes.
_X264 = "no-dct-decimate=1:ipratio=3:deadzone-inter=22:merange=4"
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "qp": "26", "x264-params": _X264},
    "mpeg4": {"qmin": "3", "qmax": "3"},
}
_MOST_TICKS = 65535  # MPEG-4 counts time in at most so many parts of a second


class Recording:
    """A video that is being written to `path`, a file whose ending is one of `CONTAINERS`; see `recording`.

    `name` is what errors call it.
    """

    def __init__(self, path: Path, name: str, rate: float, threads: int) -> None:
        self.frames, self._name = 0, name
        self._size = 0, 0
        self._rate = Fraction(rate).limit_denominator(max(1, min(1001, int(_MOST_TICKS / rate))))
        kind = CONTAINERS[path.suffix]
        if kind.codec not in av.codecs_available:
            raise VideoError(f"{name}: this PyAV was built without {kind.codec}; the one that pip installs has it")
        with self._explained():
            self._container = av.open(f"file:{path}", "w", format=kind.format)
            stream = self._container.add_stream(kind.codec, rate=self._rate, options=_OPTIONS[kind.codec])
        self._stream = cast(av.VideoStream, stream)
        self._stream.codec_context.thread_count = threads

    @contextmanager
    def frame(self, picture: YuvPicture) -> Iterator[tuple[YuvPicture, YuvPicture]]:
        """Append a frame: the picture, which is given, and the copy of it that is appended, to be drawn on.

        The first one decides how large frames are.
        """
        picture = picture.limited()
        if not self.frames:
            self._begin(picture)
        if picture.shape != self._size:
            height, width = picture.shape
            raise VideoError(f"a frame of {width} x {height} pixels in a video of {self._size[1]} x {self._size[0]}")
        frame = av.VideoFrame(self._stream.width, self._stream.height, "yuv420p")
        y, u, v = (view_of(plane) for plane in frame.planes)
        height, width = picture.shape
        canvas = YuvPicture(y[:height, :width], u, v, picture.colours)
        for target, plane in zip(canvas.planes, picture.planes, strict=True):
            np.copyto(target, plane)
        yield picture, canvas
        _repeat_edges(y, height, width)
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        with self._explained():
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def _begin(self, picture: YuvPicture) -> None:
        self._size = height, width = picture.shape
        # Colour is there for every second pixel only, so codecs want even sizes.
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.colorspace = picture.colours.matrix

    def finish(self) -> None:
        """Write what is still to be written, and close the file."""
        with self._explained():
            if self.frames:
                self._container.mux(self._stream.encode())
            self._container.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the system as SaveError, FFmpeg's own as VideoError."""
        try:
            with explained(self._name):
                yield
        except av.FFmpegError as error:
            raise VideoError(f"{self._name} cannot be written: {error.strerror or error}") from error

    def abandon(self) -> None:
        """Close the file as it is, to be deleted."""
        with suppress(av.FFmpegError):
            self._container.close()


@contextmanager
def recording(path: str | os.PathLike[str], rate: float, threads: int = 1) -> Iterator[Recording]:
    """A video to write frames to, `rate` a second; the file appears after the block, unless that raises.

    Raises VideoError for an ending that is not one of `CONTAINERS` and for what cannot be encoded, SaveError for a file
    that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise VideoError(f"{os.fspath(path)}: a drawn video must end in one of {', '.join(CONTAINERS)}")
    with replacing(path, suffix) as temporary:
        video = Recording(temporary, os.fspath(path), rate, threads)
        try:
            yield video
            video.finish()
        finally:
            video.abandon()
        _check_written(temporary, path, video.frames)


def _repeat_edges(plane: Plane, height: int, width: int) -> None:
    """Fill what `plane` has beyond `height` and `width`."""
    plane[height:, :width] = plane[height - 1, :width]
    plane[:, width:] = plane[:, width - 1 : width]


def _check_written(temporary: Path, path: str | os.PathLike[str], count: int) -> None:
    """A full disk may show when a file is closed only, of which nothing is said: what is there is counted."""
    file = FileSource(os.fspath(temporary))
    file.close()
    if file.frames != count:
        raise VideoError(f"{os.fspath(path)}: only {file.frames} of {count} frames could be written; is the disk full?")
