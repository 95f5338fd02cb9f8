"""Where tests find the pictures, annotations and weights that are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder: $KVANT_SHARED/data, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("KVANT_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set KVANT_SHARED)")
    return folder
