"""Pictures as people have them: turned, grey, transparent, deep, huge or broken; in files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kvant.errors import ImageError
from kvant.pose.headers import TIFF, exif_orientation, has_other_samples, picture_size, transparent_grey

Picture = NDArray[np.uint8]
"""BGR, height x width x 3."""

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of files that a folder is searched for."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: decoded, this many pixels take 300 MB."""

MAX_BYTES = 1_000_000_000
"""Files that are larger, such as videos, are not read to their end: no picture of 100 million pixels takes more."""

_JPEG = b"\xff\xd8\xff"
_BLENDED = 2**18  # pixels that are blended with white at a time


def read_image(path: str | PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file: BGR, H x W x 3, uint8.

    JPEG, PNG, WebP, BMP, TIFF and GIF (the first picture of several). EXIF orientation is applied, grey becomes BGR,
    16 bits become 8, transparent parts are shown on white. Raises ImageError, which names the file, if it is missing,
    not a picture, incomplete, or has more than `max_pixels`.

    >>> read_image("photo.jpg").shape  # doctest: +SKIP
    (480, 640, 3)
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ImageError(f"{path} has more than {MAX_BYTES:,} bytes: it is no picture, or too large a one")
    return decode_image(content, str(path), max_pixels)


def decode_image(content: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of a picture file, as `read_image` does; `name` is what errors call it."""
    size = picture_size(content)
    if size is None:
        raise ImageError(f"{name} is not a complete JPEG, PNG, WebP, BMP, TIFF or GIF file ({len(content)} bytes)")
    if size[0] * size[1] > max_pixels:
        raise ImageError(
            f"{name} has {size[0]} x {size[1]} pixels, more than the {max_pixels:,} that are allowed; make it smaller"
        )
    picture = _decode(content, cv2.IMREAD_COLOR)
    if picture is None:
        deep = ", such as TIFF of 32 bits or floats" if content.startswith(TIFF) else ""
        raise ImageError(
            f"{name} is damaged, incomplete, or of a kind that OpenCV cannot read{deep} ({len(content)} bytes): save "
            "it anew, as PNG of 8 or 16 bits for example"
        )
    # JPEG has no transparency: only other formats are worth a second look.
    raw = None if content.startswith(_JPEG) else _decode(content, cv2.IMREAD_UNCHANGED)
    return picture if raw is None else _without_transparency(picture, raw, content)


def _decode(content: bytes, flags: int) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None


def _without_transparency(picture: Picture, raw: NDArray[Any], content: bytes) -> Picture:
    """The picture on white, `raw` being the pixels as the file has them."""
    if raw.ndim == 2 and (grey := transparent_grey(content)) is not None:
        picture[_turn(raw == grey, exif_orientation(content))] = 255
    if raw.ndim != 3 or raw.shape[2] != 4 or has_other_samples(content):
        return picture
    # Of 8 bits TIFF's reader gives colours that are multiplied already, of whatever the file has.
    is_multiplied = content.startswith(TIFF) and raw.dtype == np.uint8
    return _turn(_on_white(raw, is_multiplied), exif_orientation(content))


def _on_white(picture: NDArray[Any], is_multiplied: bool = False) -> Picture:
    """Blend BGRA of 8 or 16 bits over white; `is_multiplied` says that colours are multiplied by alpha already."""
    shown = np.empty((*picture.shape[:2], 3), np.uint8)
    rows = max(1, _BLENDED // picture.shape[1])
    for start in range(0, len(picture), rows):  # in float32 a whole large picture would take gigabytes
        unit = picture[start : start + rows].astype(np.float32) / np.iinfo(picture.dtype).max
        colour, alpha = unit[:, :, :3], unit[:, :, 3:]
        blended = (colour if is_multiplied else colour * alpha) + (1 - alpha)
        shown[start : start + rows] = np.rint(255 * np.minimum(blended, 1))
    return shown


def _turn(picture: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo how the camera was held; `orientation` is EXIF's."""
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(picture[::rows, ::columns])


def as_picture(image: NDArray[Any]) -> Picture:
    """Return an array as a BGR picture, H x W x 3, uint8, contiguous.

    Grey (H x W or H x W x 1) becomes BGR, BGRA is shown on white. Raises ImageError for any other shape, for another
    type than uint8, which leaves open what white is, for a picture without pixels, and for one whose pixels are masked.

    >>> as_picture(np.zeros((4, 6), np.uint8)).shape
    (4, 6, 3)
    """
    if np.ma.is_masked(image):
        raise ImageError("some of the picture's pixels are masked: fill them first, with picture.filled(255) for white")
    array = np.asarray(image)
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or array.dtype != np.uint8 or array.size == 0:
        raise ImageError(
            f"expected a picture, height x width x 3, BGR, uint8; got {array.dtype} of shape {array.shape}"
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array) if channels == 3 else _on_white(array)


def find_pictures(sources: Iterable[str | PathLike[str]]) -> list[Path]:
    """The picture files that `sources` name, in their order, none twice.

    A source is a file, taken whatever it is called; a folder, of which all picture files are taken, those in folders
    within it too, sorted by name; or a pattern such as "photos/**/img_*.jpg". Raises ImageError if a source does not
    exist, a folder cannot be read or holds no picture, or a pattern fits none.

    >>> find_pictures(["photos", "more/*.jpg"])  # doctest: +SKIP
    [PosixPath('photos/a.png'), PosixPath('more/b.jpg')]
    """
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _expand(os.fspath(source)):
            found.setdefault(path.absolute(), path)
    return list(found.values())


def _expand(source: str) -> Iterable[Path]:
    # A file may have any name, so names come before patterns.
    if os.path.isdir(source):
        paths = sorted(_walk(source))
        if not paths:
            raise ImageError(f"no pictures in {source!r} (looked for {', '.join(PICTURE_SUFFIXES)})")
        return paths
    if os.path.lexists(source) or not glob.has_magic(source):
        if not os.path.exists(source):
            raise ImageError(f"{source!r} does not exist")
        return [Path(source)]
    paths = sorted(Path(name) for name in glob.glob(source, recursive=True) if _is_picture(name))
    if not paths:
        raise ImageError(f"no picture fits the pattern {source!r}")
    return paths


def _walk(folder: str) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ImageError(f"the folder {str(error.filename)!r} cannot be read: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names if _is_picture(os.path.join(parent, name)))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and os.path.isfile(name)
