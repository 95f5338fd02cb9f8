"""Calibration data of ``kvant quantize``: a folder of pictures, or arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant import CalibrationError
from kvant.cli.arrays import read_inputs
from kvant.cli.pictures import CalibrationPictures

Array = npt.NDArray[Any]
_MARGIN = 16  # pictures that are longer in one direction than so many times what is kept are cut before they are scaled


@dataclass(frozen=True)
class PictureSpec:
    """How a picture becomes an input: scaled to cover ``size``, the middle cut out, ``(pixel / 255 - mean) / std``."""

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    color: Literal["rgb", "bgr"] = "rgb"

    def to_dict(self) -> dict[str, Any]:
        """For the file's metadata."""
        return asdict(self)

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """A BGR picture (H x W x 3, uint8) as an input: 1 x 3 x height x width, float32."""
        import cv2

        height, width = self.size
        scale = max(height / picture.shape[0], width / picture.shape[1])
        # Whole, a picture of one row would be scaled to gigabytes, of which next to nothing is kept.
        picture = _middle(picture, *(_MARGIN * math.ceil(side / scale) for side in self.size))
        rows, columns = max(height, round(picture.shape[0] * scale)), max(width, round(picture.shape[1] * scale))
        resized = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        cut = _middle(resized, height, width)[:, :, :: 1 if self.color == "bgr" else -1]
        unit = cut.astype(np.float32) / np.float32(255)
        values = (unit - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis])


def _middle(picture: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Not more than so many rows and columns."""
    top, left = (max(0, size - wanted) // 2 for size, wanted in zip(picture.shape, (height, width), strict=False))
    return picture[top : top + height, left : left + width]


class Samples:
    """Samples along the first axis of arrays, one array for each input of the model."""

    def __init__(self, arrays: Sequence[Array], limit: int | None) -> None:
        self.arrays = arrays
        self.count = min(len(arrays[0]), limit or len(arrays[0]))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for index in range(self.count):
            yield tuple(array[index : index + 1] for array in self.arrays)


def open_calibration(
    source: Path, names: list[str], spec: PictureSpec, limit: int | None
) -> CalibrationPictures | Samples:
    """Calibration data of a folder of pictures, or of an .npz or .npy file whose first axis counts samples.

    Raises:
        CalibrationError: it is empty, or its arrays have different lengths.
        ImageError: the folder holds no pictures, or cannot be read.
        InputError: the file is unreadable, or names other inputs.
    """
    if source.is_dir():
        from kvant.pose import find_pictures

        return CalibrationPictures(find_pictures([source])[:limit], partial(map, spec.apply))
    arrays = read_inputs(source, names)
    lengths = sorted({len(array) if array.ndim else 0 for array in arrays})
    if len(lengths) != 1 or lengths[0] == 0:
        raise CalibrationError(
            f"{source}: the first axis counts samples; it must be the same, and not empty, for all inputs: {lengths}"
        )
    return Samples(arrays, limit)
