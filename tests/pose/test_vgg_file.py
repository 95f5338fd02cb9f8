"""The large OpenPose network: from a checkpoint in the published layout to a file a quarter of its size, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kvant
from kvant.pose import OpenPoseVGG


@pytest.mark.slow
def test_checkpoint_to_file_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = OpenPoseVGG()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            torch.nn.init.normal_(module.bias, std=0.02)
    checkpoint = tmp_path / "coco_pose_iter_440000.pth.tar"
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    float_bytes = sum(value.numel() * 4 for value in network.state_dict().values())
    assert 209e6 < float_bytes < 210e6

    model = OpenPoseVGG.from_checkpoint(checkpoint).eval()
    data = [torch.rand(1, 3, 64, 80) - 0.5 for _ in range(3)]
    quantized = kvant.quantize(model, data[0], calibration=data)
    before = quantized(data[0].numpy())
    path = tmp_path / "openpose_vgg.kvant"
    quantized.save(path)
    assert path.stat().st_size <= 53.5e6

    after = kvant.load(path)(data[0].numpy())
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    with torch.no_grad():
        for wanted, got in zip(model(data[0]), after, strict=True):
            noise = np.square(wanted.numpy() - got).sum()
            assert 10 * np.log10(np.square(wanted.numpy()).sum() / noise) > 15
