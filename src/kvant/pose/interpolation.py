"""How maps are enlarged and smoothed along an axis."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_NO_WEIGHT = 1e-8


def interpolation(size: int, covered: float, count: int, sigma: float) -> NDArray[np.float64]:
    """What interpolates cubically, then smooths by a Gaussian of `sigma` of its results: results x cells, mostly 0.

    Of the `size` cells, the first `covered` show the picture; the results divide it into `count` equal parts.
    """
    position = (np.arange(count) + 0.5) * (covered / count) - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((count, size))
    for cell in (first, first + 1, first + 2, first + 3):
        weight = _cubic(np.abs(position - cell))
        np.add.at(matrix, (np.arange(count), np.clip(cell, 0, size - 1)), weight)
    result = smoothed(matrix, sigma) if sigma > 0 else matrix
    return np.where(np.abs(result) < _NO_WEIGHT, 0, result)


def smoothed(matrix: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Rows averaged with their neighbours by a Gaussian; what is left out is far below the precision of float32."""
    count = len(matrix)
    reach = min(count - 1, math.ceil(6.5 * sigma))
    total, weights = np.zeros_like(matrix), np.zeros((count, 1))
    for offset in range(-reach, reach + 1):
        weight = math.exp(-0.5 * (offset / sigma) ** 2)
        rows = slice(max(0, -offset), count - max(0, offset))
        total[rows] += weight * matrix[max(0, offset) : count - max(0, -offset)]
        weights[rows] += weight
    return total / weights


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.75."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
