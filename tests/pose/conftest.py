"""Where tests find the pictures, annotations and weights that are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import kvant
from kvant.pose import prepare

from .user import UserFile, noise

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder: $KVANT_SHARED/data, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("KVANT_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set KVANT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`UserFile`, quantized."""
    path = tmp_path_factory.mktemp("user") / "user.kvant"
    images = [torch.from_numpy(prepare(noise(seed, 96, 128), UserFile.SPEC, 96)[0]) for seed in range(4)]
    net = UserFile().eval()
    kvant.quantize(net, images[0], calibration=images, metadata=UserFile.SPEC.metadata()).save(path)
    return path
