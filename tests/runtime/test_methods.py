"""Winograd and the number-theoretic transform: the reference's bits, also one step below their proven bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import InputError
from kvant.graph import ops
from kvant.runtime import QuantizedModel, model, native, steps
from kvant.runtime.native import calls, methods, trial
from kvant.runtime.native.packed import packed_bytes, packed_room

from .builds import ONLY_DIRECT
from .graphs import random_integers, typed, weighted_graph
from .networks import image, small_network

METHODS = {
    "winograd": (3,), "transform": (5, 7, 9, 11),
    "winograd-late": (3,), "transform-late": (5, 7, 9, 11),
}  # fmt: skip
needs_vectors = pytest.mark.skipif(ONLY_DIRECT, reason="this instruction set has direct kernels only")


def model_by(graph, method, monkeypatch) -> QuantizedModel:
    """The native model whose layers are all computed by one method, however slow."""
    monkeypatch.setattr(methods, "seconds", lambda work, algorithm, size, speed: 0.0 if algorithm == method else 1.0)
    return QuantizedModel(graph, backend="native", memory_budget="speed")


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    before = native.num_threads()
    native.set_num_threads(count)
    try:
        yield
    finally:
        native.set_num_threads(before)


def layer_of(graph) -> steps.Conv:
    """The one layer of a graph, at its example size."""
    plan = QuantizedModel(graph, backend="native", memory_budget=0)._example_steps()
    ((_, work),) = [layer for step in plan for layer in steps.layers_of(step)]
    return work


def conv_graph(rng, kernel, channels, outputs, size, pads, zero, target, values=None, bias=None, factor=1.0):
    values = random_integers(rng, (outputs, channels, kernel, kernel), "int8") if values is None else values
    op = ops.Conv((1, 1), (pads, pads), (pads, pads), (1, 1), 1, None)
    scale = factor * 0.05 / max(1.0, float(np.abs(values.astype(np.int64)).sum(axis=(1, 2, 3)).max()))
    return weighted_graph(op, (*size[:1], channels, *size[1:]), typed("uint8", 1.0, zero), values, bias, target, scale)


@needs_vectors
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_as_the_reference(method):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        kernel = data.draw(st.sampled_from(METHODS[method]))
        channels, outputs = data.draw(st.integers(32, 75)), data.draw(st.integers(1, 140))
        size = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24)))
        target = typed(data.draw(st.sampled_from(["uint8", "int16"])), 0.01)
        zero = data.draw(st.sampled_from([0, 1, 120, 255]))
        bias = rng.integers(-(2**16), 2**16, outputs)
        # Beyond about 1.2e8 / 255 a sum of magnitudes rules the transform out, so large kernels get small weights.
        largest = 127 if kernel <= 7 else 127 * 49 // kernel**2
        values = rng.integers(-largest, largest, (outputs, channels, kernel, kernel), endpoint=True).astype(np.int8)
        pads = kernel // 2
        factor = data.draw(st.sampled_from([20.0, 1e4, 1e8]))  # the last leaves int32 before results are clamped
        graph = conv_graph(rng, kernel, channels, outputs, size, pads, zero, target, values, bias, factor=factor)
        x = random_integers(rng, (size[0], channels, *size[1:]), "uint8", data.draw(st.booleans()))
        with pytest.MonkeyPatch.context() as patch:
            model = model_by(graph, method, patch)
        assert [entry.algorithm for entry in model.algorithms()] == [method]
        expected = QuantizedModel(graph, backend="reference")(x)
        np.testing.assert_array_equal(model(x), expected)

    check()


def one_signed(total: int, channels: int, kernel: int, sign: int) -> np.ndarray:
    """Weights of one output, all of one sign, whose magnitudes sum up to `total`."""
    count = channels * kernel * kernel
    values = np.full(count, total // count, np.int64)
    values[: total - values.sum()] += 1
    assert values.sum() == total and values.max() <= 127
    return (sign * values).astype(np.int8).reshape(1, channels, kernel, kernel)


@needs_vectors
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("output", [4, 6])  # 6: a whole tile of Winograd, short ones at two edges and in the corner
@pytest.mark.parametrize(
    ("method", "kernel", "channels", "bound"),
    [
        ("winograd", 3, 128, 2**25), ("transform", 7, 128, 10993 * 11057),
        ("winograd-late", 3, 128, 2**25), ("transform-late", 7, 128, 10993 * 11057),
    ],
)  # fmt: skip
def test_at_the_proven_bound(method, kernel, channels, bound, output, sign, monkeypatch):
    """One step below it inputs of 255 give the exact sum; at it, the direct kernel takes over."""
    rng = np.random.default_rng(0)
    most = (bound - 1) // 255
    size = (1, kernel - 1 + output, kernel - 1 + output)
    for total, wanted in ((most, method), (most + 1, "direct")):
        values = one_signed(total, channels, kernel, sign)
        bias = np.array([-sign * 255 * total])
        graph = conv_graph(rng, kernel, channels, 1, size, 0, 0, typed("int16", 0.05), values, bias, factor=1e4)
        model = model_by(graph, method, monkeypatch)
        for x in (
            np.full((1, channels, *size[1:]), 255, np.uint8),
            random_integers(rng, (1, channels, *size[1:]), "uint8"),
        ):
            np.testing.assert_array_equal(model(x), QuantizedModel(graph, backend="reference")(x))
        assert [entry.algorithm for entry in model.algorithms()] == [wanted]


@needs_vectors
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("channels", "outputs", "size"),
    [(320, 40, (1, 75, 43)), (32, 2048, (2, 23, 21))],
    ids=["more tiles than a core's cache holds", "more results than the shared one holds"],
)
@pytest.mark.parametrize("method", ["transform", "transform-late"])
def test_work_in_parts(method, channels, outputs, size, threads, monkeypatch):
    """Tiles are taken by chunks and rounds, the last ones shorter, whoever takes them."""
    rng = np.random.default_rng(0)
    values = rng.integers(-25, 25, (outputs, channels, 7, 7), endpoint=True).astype(np.int8)
    bias = rng.integers(-(2**16), 2**16, outputs)
    graph = conv_graph(rng, 7, channels, outputs, size, 3, 7, typed("uint8"), values, bias, factor=20.0)
    x = random_integers(rng, (size[0], channels, *size[1:]), "uint8")
    with threads_of(threads):
        model, direct = model_by(graph, method, monkeypatch), model_by(graph, "direct", monkeypatch)
        np.testing.assert_array_equal(model(x), direct(x))
    assert [entry.algorithm for entry in (*model.algorithms(), *direct.algorithms())] == [method, "direct"]


@needs_vectors
@pytest.mark.parametrize(("method", "kernel"), [("winograd", 3), ("transform", 7)])
def test_a_budget_is_kept(method, kernel, monkeypatch):
    """Late weights need their room, kept ones their size; with a byte less, what is smaller is taken."""
    monkeypatch.setattr(native, "pace", lambda isa: 1.0)
    rng = np.random.default_rng(0)
    graph = conv_graph(rng, kernel, 64, 64, (1, 40, 40), kernel // 2, 0, typed("uint8"))
    work = layer_of(graph)
    with threads_of(2):  # each has a room of its own
        direct, late, kept = (packed_bytes(work, name) for name in ("direct", f"{method}-late", method))
        room = packed_room(work, f"{method}-late")
        assert direct == late == work.weights.values.size
        assert room == kept if method == "winograd" else 0 < room < kept
        if method == "winograd":  # the room of one layer is what it would take to keep its weights
            wanted = {0: "direct", kept - 1: "direct", kept: method, "speed": method}
        else:
            late_one = late + room
            wanted = {
                late_one - 1: "direct",
                late_one: f"{method}-late",
                kept - 1: f"{method}-late",
                kept + room: method,
            }
        for budget, name in wanted.items():
            model = QuantizedModel(graph, backend="native", memory_budget=budget)
            assert [entry.algorithm for entry in model.algorithms()] == [name], budget
    assert model.algorithms()[0].macs == 40 * 40 * direct


def test_the_default_budget_leaves_room_for_late_weights():
    """Half more than the file, 32 MB more where that is more, but at most 2.5 times as much."""
    for size, expected in ((2**20, 2.5 * 2**20), (40 << 20, 72 << 20), (100 << 20, 150 << 20)):
        half = np.broadcast_to(np.int8(0), (size // 2,))
        graph = SimpleNamespace(constants={"a": half, "b": half})
        assert model._bytes(graph, None) == expected


@needs_vectors
def test_layers_share_the_room_of_late_weights():
    """A second layer needs no more of it."""
    rng = np.random.default_rng(0)
    work = layer_of(conv_graph(rng, 3, 64, 64, (1, 40, 40), 1, 0, typed("uint8")))
    other = replace(work, weights=replace(work.weights))
    costs = methods.Costs(packed_bytes, packed_room, lambda layer, name, size: 1.0 if name == "winograd-late" else 2.0)
    size, room = work.weights.values.size, packed_room(work, "winograd-late")
    for budget, wanted in ((2 * size + room, ["winograd-late"] * 2), (2 * size + room - 1, ["direct"] * 2)):
        chosen = methods.choose([("first", work), ("second", other)], budget, costs)
        assert [choice.algorithm for choice in chosen.values()] == wanted


@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_direct_weights_take_the_files_bytes(kind, monkeypatch):
    """Whatever an instruction set multiplies: 8-bit weights are kept in 8 bits, beside 12 bytes for each output."""
    rng = np.random.default_rng(0)
    op, values = ops.Conv((1, 1), (1, 1), (1, 1), (1, 1), 1, None), random_integers(rng, (64, 64, 3, 3), "int8")
    graph = weighted_graph(op, (1, 64, 9, 9), typed(kind, 1.0), values, rng.integers(-9, 9, 64), typed(kind, 9.0))
    model = model_by(graph, "direct", monkeypatch)
    x = random_integers(rng, (1, 64, 9, 9), kind)
    np.testing.assert_array_equal(model(x), QuantizedModel(graph, backend="reference")(x))
    assert [entry.algorithm for entry in model.algorithms()] == ["direct"]
    assert values.size <= model.algorithms()[0].bytes <= values.size + 12 * 64


@needs_vectors
def test_every_kind_of_short_tile():
    """All rests of rows and columns, in images of one and of several blocks of tiles."""
    rng = np.random.default_rng(0)
    for rows in (1, 2, 3, 4, 30, 31, 32, 33):
        for columns in (1, 2, 3, 4, 41, 42, 43, 44):
            values = random_integers(rng, (17, 33, 3, 3), "int8")
            graph = conv_graph(rng, 3, 33, 17, (2, rows, columns), 1, 7, typed("uint8", 0.01), values, factor=20.0)
            x = random_integers(rng, (2, 33, rows, columns), "uint8")
            with pytest.MonkeyPatch.context() as patch:
                model = model_by(graph, "winograd", patch)
            assert [entry.algorithm for entry in model.algorithms()] == ["winograd"]
            np.testing.assert_array_equal(model(x), QuantizedModel(graph, backend="reference")(x))


def test_the_cost_model_counts_short_tiles():
    """A rest of one or two rows takes 4 of 6 points."""
    assert [methods.winograd_points(size) for size in (1, 2, 3, 4, 5, 7, 14)] == [4, 4, 6, 6, 10, 12, 22]


@needs_vectors
def test_without_a_bound_large_batches_have_their_own_algorithm(monkeypatch):
    """Larger weights pay where more pixels share them; the bits are the reference's either way."""
    monkeypatch.setattr(
        methods, "seconds", lambda work, name, size, speed: float((name == "winograd") != (work.batch > 4))
    )
    rng = np.random.default_rng(0)
    graph = conv_graph(rng, 3, 64, 64, (("batch",), 7, 7), 1, 3, typed("uint8", 0.01), factor=20.0)
    bounded, free = (QuantizedModel(graph, backend="native", memory_budget=budget) for budget in (10**9, "speed"))
    reference = QuantizedModel(graph, backend="reference")
    assert [entry.algorithm for entry in (*bounded.algorithms(), *free.algorithms())] == ["direct", "direct"]
    assert free.algorithms()[0].bytes > 8 * bounded.algorithms()[0].bytes
    used = []
    call = calls.conv
    monkeypatch.setattr(
        calls, "conv", lambda work, x, y, packed: used.append(packed.algorithm) or call(work, x, y, packed)
    )
    for batch, expected in ((1, "direct"), (4, "direct"), (5, "winograd"), (8, "winograd")):
        x = random_integers(rng, (batch, 64, 7, 7), "uint8")
        np.testing.assert_array_equal(free(x), reference(x))
        assert used.pop() == expected
        assert not used


def test_memory_bounds_what_larger_weights_gain():
    """The faster the machine multiplies, the less larger weights pay."""
    work = layer_of(conv_graph(np.random.default_rng(0), 3, 512, 512, (1, 14, 14), 1, 0, typed("uint8")))
    size = 512 * 512 * 9
    for pace, faster in ((1.0, "winograd"), (4.0, "direct")):
        speed = replace(methods.SPEEDS["avx512vnni"], pace=pace)
        times = {
            name: methods.seconds(work, name, bytes, speed)
            for name, bytes in (("direct", size), ("winograd", 8 * size))
        }
        assert min(times, key=times.__getitem__) == faster


def test_the_pace_is_measured_once():
    trial.pace.cache_clear()
    found = trial.pace(native.isa())
    assert 0 < found < 1000
    assert trial.pace(native.isa()) == found


def test_an_example_beyond_the_memory_limit_leaves_smaller_inputs():
    graph = small_network()
    graph.example = {"batch": 1, "height": 512, "width": 512}
    small, needed = image((1, 3, 16, 24)), 2**16
    for backend in ("native", "reference"):
        model = QuantizedModel(graph, backend=backend, memory_limit=needed)
        assert model.algorithms() == []
        np.testing.assert_array_equal(model(small)["heat"], QuantizedModel(graph, backend=backend)(small)["heat"])
        with pytest.raises(InputError, match="limit"):
            model(image((1, 3, 512, 512)))
