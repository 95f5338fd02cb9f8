"""From a picture to a network's input, and the way back from its maps to the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from kvant.errors import InputError
from kvant.pose.layout import Float32Array
from kvant.pose.pictures import Picture
from kvant.pose.spec import NetworkSpec, PerChannel
from kvant.pose.yuv import AnyPicture, Plane, YuvPicture, known_picture, to_bgr
from kvant.runtime import native
from kvant.runtime.native import Filter, resample

MAX_ASPECT = 8
"""Pictures wider than this many heights are scaled to this many times the wanted height instead: memory is finite."""

MAX_INPUT_PIXELS = 50_000_000
"""Larger inputs of a network are refused before they are made: 200 times the usual size, 600 MB in float32."""


@dataclass(frozen=True)
class Geometry:
    """How a picture lies in a network's input; sizes are (height, width) in pixels.

    The picture is scaled from `picture` to `resized` and padded on the right and below to `padded`; a cell of the
    network's maps covers `stride` x `stride` of those pixels. Coordinates count from the centre of the first pixel, or
    cell.
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]
    stride: int

    @property
    def cells_per_pixel(self) -> tuple[float, float]:
        """Cells a pixel of the picture: (x, y)."""
        height, width = (resized / picture for resized, picture in zip(self.resized, self.picture, strict=True))
        return width / self.stride, height / self.stride

    def to_picture(self, points: Float32Array) -> Float32Array:
        """Map (..., 2) x, y in cells to x, y in pixels of the picture.

        >>> Geometry((100, 200), (50, 100), (56, 104), 8).to_picture(np.zeros((1, 2), np.float32))
        array([[7.5, 7.5]], dtype=float32)
        """
        scale = np.array(self.cells_per_pixel, dtype=np.float32)
        return ((points + np.float32(0.5)) / scale - np.float32(0.5)).astype(np.float32)

    def to_cells(self, points: Float32Array) -> Float32Array:
        """Map (..., 2) x, y in pixels of the picture to x, y in cells: the inverse of `to_picture`."""
        scale = np.array(self.cells_per_pixel, dtype=np.float32)
        return ((points + np.float32(0.5)) * scale - np.float32(0.5)).astype(np.float32)


def prepare(image: AnyPicture, spec: NetworkSpec, height: int = 368) -> tuple[Float32Array, Geometry]:
    """Scale a picture to `height`, pad it to multiples of the stride, and lay it out as the network wants it.

    `image` is what `as_picture` takes, or a `YuvPicture`. Returns the input, 1 x 3 x height' x width' float32, and the
    geometry that maps results back. The aspect ratio is kept, but a picture wider than 8 heights gets a smaller
    height'. Raises ImageError for an array that is no picture, ValueError for a height below the stride, InputError for
    one that makes an input of more than `MAX_INPUT_PIXELS`.

    >>> from kvant.pose.spec import network_spec
    >>> array, geometry = prepare(np.zeros((480, 640, 3), np.uint8), network_spec("openpose-mobilenet-thin"))
    >>> array.shape, geometry.resized
    ((1, 3, 368, 496), (368, 491))
    """
    pixels, geometry = prepare_pixels(image, spec, height)
    values = np.empty(pixels.shape, np.float32)
    for target, plane in zip(values[0], cv2.split(pixels[0].transpose(1, 2, 0)), strict=True):
        target[:] = plane
    if spec.input.scale != 1:
        values *= _per_channel(spec.input.scale)
    if spec.input.offset != 0:
        values += _per_channel(spec.input.offset)
    return values, geometry


def prepare_pixels(image: AnyPicture, spec: NetworkSpec, height: int = 368) -> tuple[Picture, Geometry]:
    """What `prepare` does before it scales values: 1 x 3 x height' x width' uint8, channels last in memory."""
    if height < spec.input.stride:
        raise ValueError(f"height must be at least {spec.input.stride}, got {height}")
    picture = known_picture(image)
    geometry = _fit(picture.shape[0], picture.shape[1], height, spec.input.stride)
    if math.prod(geometry.padded) > MAX_INPUT_PIXELS:
        raise InputError(
            f"scaled to height {height}, this picture of {picture.shape[1]} x {picture.shape[0]} pixels has "
            f"{geometry.padded[1]} x {geometry.padded[0]}, more than the {MAX_INPUT_PIXELS:,} that are allowed: "
            "choose a smaller height or smaller scales"
        )
    return _padded(_resize(picture, geometry.resized), geometry, spec), geometry


def _fit(rows: int, columns: int, height: int, stride: int) -> Geometry:
    scale = min(height / rows, MAX_ASPECT * height / columns)
    resized = max(1, round(rows * scale)), max(1, round(columns * scale))
    padded = -(-resized[0] // stride) * stride, -(-resized[1] // stride) * stride
    return Geometry((rows, columns), resized, padded, stride)


def _resize(image: AnyPicture, size: tuple[int, int]) -> Picture:
    if not isinstance(image, YuvPicture):
        return _scale(image, size)
    y = _scale(image.y, size)
    # Colours are half as large as the picture already.
    u, v = (_scale(plane, size, is_smooth=True) for plane in (image.u, image.v))
    return to_bgr(y, u, v, image.colours)


def _scale(image: Picture | Plane, size: tuple[int, int], is_smooth: bool = False) -> Picture | Plane:
    """`is_smooth` says that the image was halved before."""
    halved = _halved(image, size)
    interpolation = _interpolation(halved, size, is_smooth or halved is not image)
    if interpolation == cv2.INTER_AREA and _shrinks_unevenly(halved, size) and native.is_built():
        return resample(halved, *(_areas(halved.shape[axis], size[axis]) for axis in (0, 1)))
    return cv2.resize(halved, size[::-1], interpolation=interpolation).astype(np.uint8, copy=False)


def _shrinks_unevenly(image: Picture | Plane, size: tuple[int, int]) -> bool:
    """Whether results are averages of parts of pixels: OpenCV computes the same ones in two to three times the time."""
    before = image.shape[:2]
    is_even = before[0] % size[0] == before[1] % size[1] == 0
    return size[0] <= before[0] and size[1] <= before[1] and not is_even


@lru_cache(maxsize=64)
def _areas(size: int, count: int) -> Filter:
    """What makes `count` averages of equal parts of `size` pixels. A thousandth of a pixel does not count."""
    step = 1 / (count / size)
    begin = np.arange(count) * step
    end = begin + step
    width = np.minimum(step, size - begin)
    last = np.minimum(np.floor(end), size - 1)
    whole = np.minimum(np.ceil(begin), last)  # the first pixel that belongs to the part as a whole
    before, after = whole - begin > 1e-3, end - last > 1e-3
    lengths = last + after - whole + before
    terms = int(lengths.max())
    first = np.minimum(whole - before, size - terms)
    cells = first[:, np.newaxis] + np.arange(terms)
    whole, last, before, after, begin, end, width = (
        values[:, np.newaxis] for values in (whole, last, before, after, begin, end, width)
    )
    weights = np.where((cells >= whole) & (cells < last), 1 / width, 0)
    weights = np.where((cells == whole - 1) & before, (whole - begin) / width, weights)
    weights = np.where((cells == last) & after, np.minimum(np.minimum(end - last, 1), width) / width, weights)
    return Filter(first, weights)


def _halved(image: Picture | Plane, size: tuple[int, int]) -> Picture | Plane:
    """The image at half its size, as often as it is even and stays large enough: averages of 2 x 2 are cheap."""
    while image.shape[0] >= 2 * size[0] and image.shape[0] % 2 == image.shape[1] % 2 == 0:
        half = image.shape[1] // 2, image.shape[0] // 2
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return image


def _interpolation(image: Picture | Plane, size: tuple[int, int], is_smooth: bool) -> int:
    # Averaging over areas keeps fine patterns from aliasing when a picture shrinks; it is no good for enlarging. Below
    # a factor of two what was halved has no such patterns any more, and interpolating is ten times as fast.
    if size[0] >= image.shape[0]:
        return cv2.INTER_CUBIC
    return cv2.INTER_LINEAR if is_smooth and image.shape[0] < 2 * size[0] else cv2.INTER_AREA


def _padded(resized: Picture, geometry: Geometry, spec: NetworkSpec) -> Picture:
    rows, columns = geometry.resized
    pixels = np.empty((1, *geometry.padded, 3), np.uint8)
    pixels[:, rows:] = pixels[:, :rows, columns:] = spec.input.padding
    pixels[0, :rows, :columns] = resized[..., ::-1] if spec.input.channel_order == "RGB" else resized
    return pixels.transpose(0, 3, 1, 2)


def _per_channel(value: PerChannel) -> Float32Array:
    return np.array(value, np.float32).reshape(-1, 1, 1)
