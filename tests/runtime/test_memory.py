"""Memory of activations: aligned, private to the process, and given back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kvant.runtime import QuantizedModel
from kvant.runtime.memory import ALIGNMENT, block

from .networks import image, small_network


@pytest.mark.parametrize("size", [0, 1, 63, 4096, 4097, 5_000_000])
def test_blocks_are_aligned_and_of_their_size(size: int) -> None:
    memory = block(size)
    assert (memory.size, memory.dtype) == (size, np.uint8)
    assert memory.ctypes.data % ALIGNMENT == 0
    memory[:] = 7
    assert (memory == 7).all()


def test_a_view_keeps_its_block() -> None:
    view = block(2**20)[-3:]
    view[:] = 1, 2, 3
    assert view.tolist() == [1, 2, 3]


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_blocks_go_back_to_the_system_at_once() -> None:
    before, blocks, between = resident(), [], []
    for number in range(40):
        blocks.append(block(2**20 + 7919 * number))
        blocks[-1][:] = 1
        between.append(np.zeros(50, np.uint8))  # what would keep malloc from giving back what lies below it
    assert resident() - before > 40 * 2**20
    blocks.clear()
    assert resident() - before < 4 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_activations_of_its_own() -> None:
    memory = block(2**20)
    memory[:] = 1
    child = os.fork()
    if child == 0:
        memory[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (memory == 1).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_calls_of_ever_new_sizes_take_no_more_memory() -> None:
    model = QuantizedModel(small_network(), backend="native")
    random = np.random.default_rng(0)

    def run(count: int) -> int:
        for _ in range(count):
            model(image((1, 3, *(16 * random.integers(2, 40, 2)))))
        return resident()

    before = run(40)
    assert run(120) - before < 20 * 2**20
