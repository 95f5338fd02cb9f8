"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kvant.quantization import memory
from kvant.quantization.memory import Spare, resident_bytes

PIECE, COUNT = 1 << 16, 2000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_what_is_freed_between_pieces_in_use_is_given_back() -> None:
    spare = Spare()
    if spare._trim is None:
        pytest.skip("the C library is not glibc")
    spare.give_back(0)
    pieces = [np.ones(PIECE, np.uint8) for _ in range(COUNT)]
    kept = pieces[::16]
    del pieces
    before = resident_bytes()
    spare.give_back(before)  # has not grown so much
    assert resident_bytes() > before - PIECE * COUNT // 4
    spare.give_back(PIECE * COUNT // 4)
    assert resident_bytes() < before - PIECE * COUNT // 2
    assert all(piece.sum() == PIECE for piece in kept)


def test_a_sandbox_that_shows_no_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATE", tmp_path / "statm")
    spare = Spare()
    spare.keep()
    spare.give_back(0)
