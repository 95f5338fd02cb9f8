"""Concatenations in place: what lies where, and the same bits as with copies."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.graph import Graph, ops, validate
from kvant.runtime import QuantizedModel
from kvant.runtime.plan import Planner

from .graphs import typed
from .networks import add_conv, image
from .test_fuse import graph_of

SHAPE = (2, 4, 9, 11)
TYPE = typed("uint8", 0.05, 0)


def stages(count: int) -> Graph:
    """What refines maps stage by stage does: each stage reads the features and the maps of the former one."""
    graph = graph_of(SHAPE, typed("uint8", 0.02, 128))
    parts = [add_conv(graph, "x", f"part{i}", 20, channels=4, seed=i) for i in range(2)]
    features = graph.add_node(ops.Concat(1), parts, "features", TYPE)
    maps = [add_conv(graph, features, f"maps0.{i}", 3 + i, kernel=1, channels=40, seed=i) for i in range(2)]
    for stage in range(1, count):
        both = graph.add_node(ops.Concat(1), [*maps, features], f"all{stage}", TYPE)
        maps = [add_conv(graph, both, f"maps{stage}.{i}", 3 + i, channels=47, seed=stage + i) for i in range(2)]
    graph.outputs = tuple(maps)
    graph.structure = [0, 1]
    validate(graph)
    return graph


def check(graph: Graph) -> None:
    x = image(SHAPE)
    native, reference = (QuantizedModel(graph, backend=name) for name in ("native", "reference"))
    expected = reference.run_all({"image": x})  # every tensor in memory of its own
    for model in (native, reference):
        found = model(x)
        for name, array in zip(graph.outputs, found if len(graph.outputs) > 1 else [found], strict=True):
            np.testing.assert_array_equal(array, expected[name], strict=True)


def test_all_stages_share_one_memory() -> None:
    graph = stages(4)
    check(graph)
    placed = Planner(graph).plan({"image": SHAPE}).placements
    inside = ["features", "part0", "part1", *(f"all{stage}" for stage in range(1, 4))]
    assert len({placed[name].offset for name in inside}) == 1
    assert {placed[name].pitch for name in inside} == {64}  # 47 channels, whole cache lines
    assert [placed[name].column for name in inside] == [7, 7, 27, 0, 0, 0]
    # The first stage's maps are written where they belong; later ones while the former are still read.
    assert placed["maps0.1"].column == 3 and placed["maps1.0"].pitch is None


def test_outputs_and_other_readers_keep_memory_of_their_own() -> None:
    graph = graph_of(SHAPE, typed("uint8", 0.02, 128))
    a, b, c = (add_conv(graph, "x", name, 4, channels=4, seed=i) for i, name in enumerate("abc"))
    pooled = graph.add_node(ops.MaxPool((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), [b], "pooled", TYPE)
    both = graph.add_node(ops.Concat(1), [a, b, c, c, pooled], "both", TYPE)
    add_conv(graph, both, "y", 4, channels=20)
    graph.outputs = ("y", a)
    graph.structure = [0, 1]
    validate(graph)
    check(graph)
    placed = Planner(graph).plan({"image": SHAPE}).placements
    assert all(placed[name].pitch is None for name in (a, b, c, pooled))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_other_axes_are_copied(axis: int) -> None:
    graph = graph_of(SHAPE, typed("uint8", 0.02, 128))
    parts = [add_conv(graph, "x", name, 4, channels=4, seed=i) for i, name in enumerate("ab")]
    graph.add_node(ops.Concat(axis), parts, "both", TYPE)
    graph.outputs, graph.structure = ("both",), 0
    validate(graph)
    check(graph)
    placed = Planner(graph).plan({"image": SHAPE}).placements
    # An output is dense: its parts lie in it without a gap at the end of pixels.
    assert placed["a"].pitch == (8 if axis == 1 else None)


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_single_pixels_joined_along_other_axes_are_copied(axis: int) -> None:
    """Their runs are as long as those of channels are (a recurrent layer's states, one sample at a time)."""
    shape = (1, 4, 1, 1)
    graph = graph_of(shape, typed("uint8", 0.02, 128))
    parts = [add_conv(graph, "x", name, 4, channels=4, seed=i) for i, name in enumerate("abcd")]
    halves = [graph.add_node(ops.Concat(axis), parts[at : at + 2], f"half{at}", TYPE) for at in (0, 2)]
    graph.add_node(ops.Concat(1), halves, "both", TYPE)
    graph.outputs, graph.structure = ("both",), 0
    validate(graph)
    native, reference = (QuantizedModel(graph, backend=name)(image(shape)) for name in ("native", "reference"))
    np.testing.assert_array_equal(native, reference, strict=True)
    assert native.shape == tuple(2 if at == axis else size for at, size in enumerate((1, 8, 1, 1)))
