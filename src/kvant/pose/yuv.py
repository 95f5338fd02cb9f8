"""Pictures as videos hold them: the brightness of every pixel, the colour of every second one.

A frame that stays so is half as many bytes as in BGR, and need not be converted twice: the network wants a small
picture, and of what is drawn little is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kvant.pose.layout import Float32Array
from kvant.pose.pictures import Picture, as_picture

Plane = NDArray[np.uint8]
"""One value a pixel: height x width, uint8; rows may have a gap between them."""

# Shares of red and blue in brightness, by the numbers of ITU-T H.273, 8.3; what is not here counts as BT.601.
_BT601 = 0.299, 0.114
_SHARES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


class Colours(NamedTuple):
    """What the values of a `YuvPicture` mean.

    `matrix` is the number that ITU-T H.273 gives to the relation with red, green and blue: 1 BT.709, 6 BT.601, 9
    BT.2020. Black to white is 16 to 235, or 0 to 255 if `full_range`.
    """

    matrix: int = 6
    full_range: bool = False


_COMMON = Colours()


@dataclass(frozen=True, eq=False)
class YuvPicture:
    """A picture in Y'CbCr, 4:2:0: `y` is H x W, `u` and `v` are half as high and wide, rounded up; all uint8."""

    y: Plane
    u: Plane
    v: Plane
    colours: Colours = _COMMON

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y.shape[0], self.y.shape[1]

    @property
    def planes(self) -> tuple[Plane, Plane, Plane]:
        """Brightness and the two of colour."""
        return self.y, self.u, self.v

    def to_bgr(self) -> Picture:
        """Return the picture in BGR, H x W x 3, uint8; colours are repeated, not interpolated.

        >>> YuvPicture.from_bgr(np.full((3, 5, 3), 200, np.uint8)).to_bgr()[2, 4].tolist()
        [200, 200, 200]
        """
        height, width = self.shape
        u, v = (np.repeat(np.repeat(plane, 2, axis=0), 2, axis=1)[:height, :width] for plane in (self.u, self.v))
        return to_bgr(self.y, u, v, self.colours)

    @classmethod
    def from_bgr(cls, picture: Picture, colours: Colours = _COMMON) -> YuvPicture:
        """Return a picture, H x W x 3, uint8, in Y'CbCr; colours are averages of 2 x 2 pixels."""
        y, u, v = cv2.split(cv2.transform(picture, _from_bgr(colours)))
        return cls(_plane(y), _halved(u), _halved(v), colours)

    def copy(self) -> YuvPicture:
        """Return a copy that shares no memory with this one."""
        return YuvPicture(self.y.copy(), self.u.copy(), self.v.copy(), self.colours)

    def limited(self) -> YuvPicture:
        """Return the picture with black at 16 and white at 235, as most players of videos expect."""
        if not self.colours.full_range:
            return self
        brightness, colour = (_scaled(extent, centre) for extent, centre in ((219, 16), (224, 128)))
        y, u, v = (
            _plane(cv2.LUT(plane, table))
            for plane, table in zip(self.planes, (brightness, colour, colour), strict=True)
        )
        return YuvPicture(y, u, v, self.colours._replace(full_range=False))

    def turned(self, quarters: int) -> YuvPicture:
        """Return the picture turned so many times by 90 degrees, counter-clockwise."""
        if quarters % 4 == 0:
            return self
        y, u, v = (_plane(np.rot90(plane, quarters)) for plane in self.planes)
        return YuvPicture(y, u, v, self.colours)


AnyPicture = Picture | YuvPicture


def known_picture(image: AnyPicture | NDArray[Any]) -> AnyPicture:
    """Return a picture as this package computes with it: as `as_picture` does, but a `YuvPicture` as it is."""
    return image if isinstance(image, YuvPicture) else as_picture(image)


def to_bgr(y: Plane, u: Plane, v: Plane, colours: Colours) -> Picture:
    """Return planes of one size in BGR, H x W x 3, uint8."""
    return cv2.transform(cv2.merge([y, u, v]), _to_bgr(colours)).astype(np.uint8, copy=False)


@lru_cache(maxsize=256)
def colour_of(bgr: tuple[int, int, int], colours: Colours) -> tuple[int, int, int]:
    """Return the values in `y`, `u` and `v` of one colour.

    >>> colour_of((255, 255, 255), Colours())
    (235, 128, 128)
    """
    y, u, v = (_from_bgr(colours) @ np.array((*bgr, 1), np.float32)).round().astype(int).tolist()
    return y, u, v


def _plane(array: NDArray[Any]) -> Plane:
    return np.ascontiguousarray(array, dtype=np.uint8)


def _halved(plane: NDArray[Any]) -> Plane:
    """Averages of 2 x 2; the last row and column of an odd one count twice."""
    height, width = plane.shape
    even = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return _plane(cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA))


def _scaled(extent: int, centre: int) -> Plane:
    """A table from the full range to one of `extent`, for brightness (`centre` 16, black) or colour (128, grey)."""
    values = np.arange(256) if centre == 16 else np.arange(256) - 128
    table: Plane = np.rint(values * (extent / 255) + centre).astype(np.uint8)
    return table


@lru_cache(maxsize=16)
def _from_bgr(colours: Colours) -> Float32Array:
    """(B, G, R, 1) -> (y, u, v), 3 x 4."""
    red, blue = _SHARES.get(colours.matrix, _BT601)
    brightness = np.array([blue, 1 - red - blue, red])
    of_blue = (np.array([1, 0, 0]) - brightness) / (2 * (1 - blue))
    of_red = (np.array([0, 0, 1]) - brightness) / (2 * (1 - red))
    extents = np.array([255, 255, 255] if colours.full_range else [219, 224, 224]) / 255
    centres = np.array([0 if colours.full_range else 16, 128, 128])
    matrix = np.stack([brightness, of_blue, of_red]) * extents[:, np.newaxis]
    return np.column_stack([matrix, centres]).astype(np.float32)


@lru_cache(maxsize=16)
def _to_bgr(colours: Colours) -> Float32Array:
    """(y, u, v, 1) -> (B, G, R), 3 x 4."""
    forward = _from_bgr(colours).astype(np.float64)
    matrix = np.linalg.inv(forward[:, :3])
    return np.column_stack([matrix, -matrix @ forward[:, 3]]).astype(np.float32)
