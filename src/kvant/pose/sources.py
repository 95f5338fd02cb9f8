"""Where frames of videos come from: files, read by FFmpeg through PyAV, and cameras, read by OpenCV."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, Protocol, cast

import av
import cv2
import numpy as np

from kvant.errors import VideoError
from kvant.pose.pictures import as_picture
from kvant.pose.yuv import Colours, Plane, YuvPicture

_DEFAULT_RATE = 25.0  # frames a second where a source does not know its own
# What a second thread for slices takes a tenth to a third more time to decode, which the network lacks. Frames that are
# larger may take one thread longer than the network takes all of them.
_SLOWED, _LARGE = ("vp9", "hevc", "libdav1d"), 1920 * 1088
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG


class Source(Protocol):
    """What a video reads: how many frames there are, if that is known, and how many a second."""

    frames: int | None
    rate: float

    def __iter__(self) -> Iterator[tuple[float, YuvPicture]]:
        """Yield the time of each frame, in seconds from the first, and its picture."""

    def close(self) -> None:
        """Give the file or camera back."""


class _DamagedError(Exception):
    """A frame cannot be decoded."""


class FileSource:
    """A video file, decoded by FFmpeg."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open()
        stream = self._stream
        self.rate = _rate(float(stream.average_rate or stream.guessed_rate or 0))
        self.frames = self._stream.frames or self._estimated_frames() or None

    def _open(self, careless: bool = False) -> None:
        """Open the file at its beginning; `careless` takes frames that are damaged in a place, and goes on after them.

        Two threads for the slices of a frame have that effect, and for H.264 they take no more time than one.
        """
        if not os.path.isfile(self._name):
            raise VideoError(f"{self._name} is not a file")
        try:
            # FFmpeg takes names for addresses, and some files name others: nothing but files may be opened.
            self._container = av.open(f"file:{self._name}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self._name} is not a video that FFmpeg can read: {error.strerror or error}") from error
        stream = self._container.streams.best("video")
        if stream is None:
            self._container.close()
            raise VideoError(f"{self._name} is not a video that FFmpeg can read: it has no pictures")
        self._stream = stream
        codec = cast(av.VideoStream, stream).codec_context
        self._is_strict = not careless and codec.codec.name in _SLOWED and codec.width * codec.height <= _LARGE
        codec.thread_count, codec.thread_type = 1 if self._is_strict else 2, "SLICE"

    def _estimated_frames(self) -> int:
        stream, length = self._stream, self._container.duration
        if stream.duration is not None and stream.time_base is not None:
            return round(float(stream.duration * stream.time_base) * self.rate)
        return round(length / av.time_base * self.rate) if length is not None else 0

    def __iter__(self) -> Iterator[tuple[float, YuvPicture]]:
        first: av.VideoFrame | None = None
        for number, frame in enumerate(self._decoded()):
            first = first or frame
            known = frame.time is not None and first.time is not None
            seconds = frame.time - first.time if known else number / self.rate
            yield seconds, _planar(frame, first.width, first.height)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame that can be decoded; of a damaged file there are fewer than it promises."""
        given = 0
        try:
            for frame in self._frames():
                yield frame
                given += 1
        except _DamagedError:
            self._container.close()
            self._open(careless=True)
            yield from islice(self._frames(), given, None)

    def _frames(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.InvalidDataError:
                return
            except av.FFmpegError as error:
                raise VideoError(f"{self._name} cannot be read any further: {error.strerror or error}") from error
            if packet is None:
                return
            yield from self._decode(packet)

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame]:
        """The frames of a packet; none if it is damaged."""
        try:
            return packet.decode()
        except av.FFmpegError as error:
            if self._is_strict:
                raise _DamagedError from error
            if isinstance(error, av.BlockingIOError):  # what an earlier one left behind is in the way
                self._stream.codec_context.flush_buffers()
            return []  # damaged: the decoder goes on with the next one

    def close(self) -> None:
        self._container.close()


class CameraSource:
    """A camera, by its number; its times are those of the clock."""

    frames: int | None = None

    def __init__(self, number: int) -> None:
        if number >= 2**31:
            raise VideoError(f"camera {number} cannot be opened: there are not so many")
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise VideoError(f"camera {number} cannot be opened")
        self.rate = _rate(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[tuple[float, YuvPicture]]:
        start = time.monotonic()
        for _ in count():
            there, picture = self._capture.read()
            if not there:
                return
            yield time.monotonic() - start, YuvPicture.from_bgr(as_picture(np.asarray(picture)))

    def close(self) -> None:
        self._capture.release()


def _rate(told: float) -> float:
    return told if math.isfinite(told) and 1 <= told <= 1000 else _DEFAULT_RATE


def _planar(frame: av.VideoFrame, width: int, height: int) -> YuvPicture:
    """The frame's own memory, where it is in 8 bits, 4:2:0 and of this size; turned as its file says."""
    turns = round(frame.rotation / 90)
    full_range = frame.format.name == "yuvj420p" or frame.color_range == _FULL_RANGE
    if frame.format.name not in ("yuv420p", "yuvj420p") or (frame.width, frame.height) != (width, height):
        frame, full_range = frame.reformat(width, height, "yuv420p", dst_color_range="MPEG"), False
    y, u, v = (view_of(plane) for plane in frame.planes)
    return YuvPicture(y, u, v, Colours(int(frame.colorspace), full_range)).turned(turns)


def view_of(plane: av.video.plane.VideoPlane) -> Plane:
    """The memory of a frame's plane, as large as the picture in it."""
    whole: Plane = np.frombuffer(cast(Any, plane), np.uint8)
    return whole.reshape(plane.height, plane.line_size)[:, : plane.width]
