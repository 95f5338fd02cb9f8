"""Planning: memory is shared where lives do not overlap, plans are kept, and too large an input is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import InputError
from kvant.graph import Graph, ops
from kvant.runtime import QuantizedModel
from kvant.runtime.memory import Arena, aligned
from kvant.runtime.plan import CACHED_PLANS, Planner

from .graphs import typed
from .networks import add_conv, image, small_network


def chain(length: int) -> Graph:
    graph = Graph()
    graph.add_input("x", (("n",), 8, ("h",), ("w",)), typed("uint8", 0.05, 0))
    name = "x"
    for index in range(length):
        name = add_conv(graph, name, f"c{index}", 8, channels=8, seed=index)
    graph.outputs, graph.example = (name,), {"n": 1, "h": 16, "w": 16}
    return graph


def test_a_chain_needs_memory_for_three_tensors_only():
    plan = Planner(chain(50)).plan({"x": (1, 8, 32, 32)})
    assert plan.arena_bytes <= 3 * 8 * 32 * 32


def test_tensors_that_live_at_the_same_time_do_not_overlap():
    planner = Planner(small_network())
    for shape in [(1, 3, 16, 24), (2, 3, 31, 47)]:
        plan = planner.plan({"image": shape})
        placements = plan.placements
        written = {step.output: index for index, step in enumerate(plan.steps)}
        for step_index, step in enumerate(plan.steps):
            for name in step.inputs:
                if placements[name].constant is None:
                    assert not _overlap(placements[name], placements[step.output]), (name, step.output)
                    assert written.get(name, -1) < step_index


def _overlap(a, b) -> bool:
    ends = [p.offset + int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize for p in (a, b)]
    return a.offset < ends[1] and b.offset < ends[0]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 1000)), max_size=60))
def test_arena_never_hands_out_the_same_bytes_twice(script):
    arena = Arena()
    held: list[tuple[int, int]] = []
    for give_back, size in script:
        if give_back and held:
            arena.free(*held.pop(size % len(held)))
            continue
        offset = arena.allocate(size)
        for other, length in held:
            assert offset + aligned(size) <= other or other + aligned(length) <= offset
        assert offset % 64 == 0 and offset + size <= arena.size
        held.append((offset, size))


def test_plans_are_kept_for_the_sizes_used_last():
    planner = Planner(chain(1))
    first = planner.plan({"x": (1, 8, 8, 8)})
    assert planner.plan({"x": (1, 8, 8, 8)}) is first
    for size in range(CACHED_PLANS):
        planner.plan({"x": (1, 8, 9 + size, 8)})
    assert planner.plan({"x": (1, 8, 8, 8)}) is not first


def calls_to_plan_a_new_size(length: int) -> int:
    """How many functions are called: the same number on every machine."""
    planner, calls = Planner(chain(length)), 0
    planner.plan({"x": (1, 8, 20, 20)})

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        planner.plan({"x": (1, 8, 21, 21)})
    finally:
        sys.setprofile(before)
    return calls


def test_a_new_size_is_planned_in_proportion_to_the_nodes():
    """A hundred calls take some ten microseconds: a network of a hundred nodes is planned in milliseconds."""
    calls = calls_to_plan_a_new_size(100)
    assert calls < 100 * 150
    assert calls_to_plan_a_new_size(200) < 2.2 * calls


def test_memory_beyond_the_limit_is_refused():
    model = QuantizedModel(small_network(), backend="reference", memory_limit=100_000)
    model(image())
    with pytest.raises(InputError, match="the limit is 100,000 bytes"):
        model(image((1, 3, 400, 400)))
    huge = QuantizedModel(chain(1), backend="reference")
    with pytest.raises(InputError, match=r"smaller batch or image, or a larger memory_limit"):
        huge._planner.plan({"x": (1, 8, 2**20, 2**20)})


def test_an_output_and_an_input_may_be_the_same_tensor():
    graph = chain(1)
    graph.add_node(ops.Reshape((-1,)), ["x"], "flat", typed("uint8", 0.05, 0))
    graph.outputs, graph.structure = ("x", "flat", "x"), [0, 1, 2]
    x = np.arange(8 * 4, dtype=np.uint8).reshape(1, 8, 2, 2)
    a, b, c = QuantizedModel(graph, backend="native")(x)
    np.testing.assert_array_equal(a, x)
    np.testing.assert_array_equal(b, x.reshape(-1))
    np.testing.assert_array_equal(c, x)
