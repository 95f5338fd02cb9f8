"""From a picture to a network's input, and the way back from its maps to the picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from kvant.pose.layout import Float32Array
from kvant.pose.pictures import Picture, as_picture
from kvant.pose.spec import NetworkSpec, PerChannel

MAX_ASPECT = 8
"""Pictures wider than this many heights are scaled to this many times the wanted height instead: memory is finite."""


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


def prepare(image: Picture, spec: NetworkSpec, height: int = 368) -> tuple[Float32Array, Geometry]:
    """Scale a picture to `height`, pad it to multiples of the stride, and lay it out as the network wants it.

    `image` is what `as_picture` takes. Returns the input, 1 x 3 x height' x width' float32, and the geometry that maps
    results back. The aspect ratio is kept, but a picture wider than 8 heights gets a smaller height'. Raises ImageError
    for an array that is no picture, ValueError for a height below the stride.

    >>> from kvant.pose.spec import network_spec
    >>> array, geometry = prepare(np.zeros((480, 640, 3), np.uint8), network_spec("openpose-mobilenet-thin"))
    >>> array.shape, geometry.resized
    ((1, 3, 368, 496), (368, 491))
    """
    if height < spec.input.stride:
        raise ValueError(f"height must be at least {spec.input.stride}, got {height}")
    picture = as_picture(image)
    geometry = _fit(picture.shape[0], picture.shape[1], height, spec.input.stride)
    return _to_input(_resize(picture, geometry.resized), geometry, spec), geometry


def _fit(rows: int, columns: int, height: int, stride: int) -> Geometry:
    scale = min(height / rows, MAX_ASPECT * height / columns)
    resized = max(1, round(rows * scale)), max(1, round(columns * scale))
    padded = -(-resized[0] // stride) * stride, -(-resized[1] // stride) * stride
    return Geometry((rows, columns), resized, padded, stride)


def _resize(image: Picture, size: tuple[int, int]) -> Picture:
    halved = _halved(image, size)
    resized = cv2.resize(halved, size[::-1], interpolation=_interpolation(image, halved, size))
    return resized.astype(np.uint8, copy=False)


def _halved(image: Picture, size: tuple[int, int]) -> Picture:
    """The picture at half its size, as often as it is even and stays large enough: averages of 2 x 2 are cheap."""
    while image.shape[0] >= 2 * size[0] and image.shape[0] % 2 == image.shape[1] % 2 == 0:
        half = image.shape[1] // 2, image.shape[0] // 2
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return image


def _interpolation(image: Picture, halved: Picture, size: tuple[int, int]) -> int:
    # Averaging over areas keeps fine patterns from aliasing when a picture shrinks; it is no good for enlarging. Below
    # a factor of two what was halved has no such patterns any more, and interpolating is ten times as fast.
    if size[0] >= halved.shape[0]:
        return cv2.INTER_CUBIC
    return cv2.INTER_LINEAR if halved is not image and halved.shape[0] < 2 * size[0] else cv2.INTER_AREA


def _to_input(resized: Picture, geometry: Geometry, spec: NetworkSpec) -> Float32Array:
    rows, columns = geometry.resized
    values = np.full((1, 3, *geometry.padded), spec.input.padding, np.float32)
    planes = cv2.split(resized)
    for target, plane in zip(values[0], planes[::-1] if spec.input.channel_order == "RGB" else planes, strict=True):
        target[:rows, :columns] = plane
    if spec.input.scale != 1:
        values *= _per_channel(spec.input.scale)
    if spec.input.offset != 0:
        values += _per_channel(spec.input.offset)
    return values


def _per_channel(value: PerChannel) -> Float32Array:
    return np.array(value, np.float32).reshape(-1, 1, 1)
