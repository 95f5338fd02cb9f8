"""Tensors in buffers of their own, which the tests under AddressSanitizer ask for (test_sanitizers.py)."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pytest

from kvant.runtime import execute

OWN_BUFFERS = "KVANT_TEST_OWN_BUFFERS"


@pytest.fixture(autouse=True)
def own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every tensor memory that ends with its last element instead of a part of the arena.

    A sanitizer sees the bounds of allocations only, not those of tensors within one.
    """
    if OWN_BUFFERS not in os.environ:
        return
    in_arena = execute._view
    buffers: dict[tuple[int, int, int], weakref.ref[np.ndarray]] = {}

    def view(placement: execute.Placement, arena: np.ndarray, graph: object) -> np.ndarray:
        if placement.constant is not None:
            return in_arena(placement, arena, graph)  # type: ignore[arg-type]
        # A tensor that shows another one in a new shape lies in the same bytes; so may one that comes later.
        key = (id(arena), placement.offset, placement.storage_bytes)
        buffer = buffers[key]() if key in buffers else None
        if buffer is None:
            buffer = np.empty(placement.storage_bytes, np.uint8)
            buffers[key] = weakref.ref(buffer)
            weakref.finalize(buffer, id, arena)  # the arena lives as long, so that its identity stays its own
        return execute.view_of(placement, buffer)

    monkeypatch.setattr(execute, "_view", view)
