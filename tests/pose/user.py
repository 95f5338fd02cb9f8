"""A network of a user's own, as small as can be, which sees people in noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kvant.pose import PARTS, DecoderSettings, InputSpec, NetworkSpec, PoseOutput
from kvant.pose.preprocess import Picture
from kvant.pose.spec import FIELDS


class UserFile(nn.Module):
    """Fields first, every channel in another order than OpenPose's, RGB in."""

    SPEC = NetworkSpec(
        "user",
        InputSpec.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        PoseOutput(("paf", "heat"), heat_maps=("background", *PARTS[::-1]), fields=FIELDS[::-1]),
    )

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(3, 16, 8, stride=8)
        self.paf, self.heat = nn.Conv2d(16, 38, 3, padding=1), nn.Conv2d(16, 19, 3, padding=1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.features(image))
        return self.paf(features), self.heat(features)


def noise(seed: int, height: int, width: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# Untrained networks show noise: so that some of it counts as people, next to nothing is asked of them.
LENIENT = DecoderSettings(part_threshold=0.01, limb_threshold=-1.0, min_confidence=0.0, max_peaks=8)
