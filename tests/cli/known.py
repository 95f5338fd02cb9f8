"""A pose network that sees a known person in every picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kvant.pose import PoseEstimator
from kvant.pose.layout import Float32Array

from ..pose.scenes import render, standing

HEIGHT, WIDTH = 96, 128
FRAMES = 10
KNOWN = standing(30, 4, 44, 88)
NETWORK = ("--network", "openpose-mobilenet-thin", "--height", HEIGHT)


def see(array: Float32Array, shift: float = 0.0) -> Float32Array:
    """The known person, in any picture; or, shifted by some pixels, what quantization might make of it."""
    moved = KNOWN + np.float32([shift, 0, 0])
    return np.concatenate(render([moved], *array.shape[2:]), axis=0)[np.newaxis]


class FloatNetwork(torch.nn.Module):
    """Sees the known person two pixels to the right."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(see(image.numpy(), shift=2.0))


ESTIMATOR = PoseEstimator(see, network="openpose-mobilenet-thin", height=HEIGHT)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path
