"""Weights of few bits: packing is lossless, as small as the bits say, and the reader takes nothing on trust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError, GraphError
from kvant.format import from_bytes, to_bytes
from kvant.format.layout import Stored, seal
from kvant.format.packing import Packed, Packing, from_bits, pack, to_bits, unpack
from kvant.format.records import Version, to_header
from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops

rng = np.random.default_rng(0)


@given(st.sampled_from([1, 2, 3, 4, 8]), st.lists(st.integers(0, 255), min_size=1, max_size=70))
def test_bits_follow_one_another_lowest_first(bits: int, numbers: list[int]) -> None:
    codes = np.array([number % 2**bits for number in numbers], np.uint8)
    data = to_bits(codes, bits)
    whole = sum(int(code) << (bits * at) for at, code in enumerate(codes))
    assert int.from_bytes(data.tobytes(), "little") == whole
    assert data.size == -(-codes.size * bits // 8)
    np.testing.assert_array_equal(from_bits(data, bits, codes.size), codes)


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_long_weights_are_packed_in_parts(bits: int) -> None:
    codes = rng.integers(0, 2**bits, (1 << 20) * 2 + 5).astype(np.uint8)
    np.testing.assert_array_equal(from_bits(to_bits(codes, bits), bits, codes.size), codes)


def weights(kind: str) -> tuple[np.ndarray, int | None, str, int]:
    """Weights, the length of their runs, and how they should be packed."""
    shape = (16, 24, 3, 3)
    if kind == "binary":
        return np.where(rng.random(shape) < 0.5, -1, 1).astype(np.int8), None, "level", 1
    if kind == "ternary":
        return rng.integers(-1, 2, shape).astype(np.int8), None, "level", 2
    if kind == "three bits":
        return rng.integers(-3, 4, shape).astype(np.int8), None, "level", 3
    if kind == "codebook":
        return rng.choice(rng.permutation(np.arange(-127, 128))[:16], shape).astype(np.int8), None, "level", 4
    if kind == "asymmetric":
        values = rng.integers(0, 16, shape) - rng.integers(0, 16, (16, 1, 1, 1))
        return values.astype(np.int8), None, "row", 4
    if kind == "asymmetric, 8 bits":
        values = rng.integers(0, 256, shape) - rng.integers(0, 256, (16, 1, 1, 1))
        return values.astype(np.int16), None, "row", 8
    factors = np.repeat(rng.integers(1, 19, (16, 3)), 72, axis=1).reshape(shape)
    if kind == "groups":
        return (rng.integers(-7, 8, shape) * factors).astype(np.int8), 72, "factor", 4
    if kind == "groups of bits":
        return (np.where(rng.random(shape) < 0.5, -1, 1) * factors).astype(np.int8), 72, "factor", 1
    raise AssertionError(kind)


KINDS = ["binary", "ternary", "three bits", "codebook", "asymmetric", "asymmetric, 8 bits", "groups", "groups of bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_packed_by_its_bits_and_comes_back(kind: str) -> None:
    values, group, by, bits = weights(kind)
    packed = pack(values, group)
    assert packed is not None and (packed.packing.by, packed.packing.bits) == (by, bits)
    assert packed.codes.size == values.size * bits // 8
    again = unpack(packed.packing, packed.codes, packed.table, values.dtype, group)
    assert again.dtype == values.dtype
    np.testing.assert_array_equal(again, values)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_packed_comes_back(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1, 700), (7, 100), (300, 3), (40, 5, 3), (9, 1, 8, 11)]))
    dtype = data.draw(st.sampled_from([np.int8, np.int16]))
    low = data.draw(st.integers(-100, 90))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        low, low + data.draw(st.integers(1, 20)), shape
    )
    values = (values * data.draw(st.sampled_from([1, 1, 2]))).clip(-128, 127).astype(dtype)
    group = data.draw(st.sampled_from([None, 1, 3, 64, 10_000]))
    packed = pack(values, group)
    if packed is not None:
        assert packed.codes.nbytes + packed.table.nbytes < values.nbytes
        np.testing.assert_array_equal(unpack(packed.packing, packed.codes, packed.table, values.dtype, group), values)


def test_what_gains_nothing_is_left_alone() -> None:
    assert pack(rng.integers(-127, 128, (64, 64)).astype(np.int8)) is None
    assert pack(np.ones((4, 16), np.int8)) is None  # too small
    assert pack(np.ones(4096, np.int8)) is None  # no weight
    assert pack(np.ones((64, 64), np.int32)) is None
    assert pack(rng.integers(-8191, 8192, (64, 64)).astype(np.int16), 8) is None


def network(values: np.ndarray, group: int | None = None, **options: Any) -> Graph:
    """One layer with these weights."""
    graph = Graph()
    graph.add_input("x", (1, values.shape[1], 5, 5))
    kind = TensorType("uint8", Quantization((0.5,), 3, **options))
    graph.add_node(ops.Quantize(), ["x"], "q", kind)
    scales = Quantization(tuple([0.25] * len(values)), 0, 0, group=group)
    name = graph.add_constant("w", values, scales)
    graph.add_node(ops.Conv((1, 1), (1, 1), (1, 1), (1, 1)), ["q", name], "y", kind)
    graph.add_node(ops.Dequantize(), ["y"], "real", FLOAT32)
    graph.outputs = ("real",)
    return graph


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_bits_and_gives_the_integers(kind: str) -> None:
    values, group, _, bits = weights(kind)
    data = to_bytes(network(values, group))
    contents = from_bytes(data)
    np.testing.assert_array_equal(contents.graph.constants["w"], values)
    assert contents.graph.types == network(values, group).types
    assert contents.info.features == (("groups", "packed") if group else ("packed",))
    assert contents.info.version == (1, 1)
    assert len(data) - contents.info.header_bytes < values.size * bits / 8 + 300
    assert to_bytes(contents.graph) == data


def test_narrow_activations_need_a_reader_that_knows_them() -> None:
    graph = network(rng.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8), bits=4)
    contents = from_bytes(to_bytes(graph))
    assert contents.info.features == ("narrow",)
    assert contents.graph.types["y"].integer_range() == (0, 15)


def test_plain_files_are_still_written_for_the_first_readers() -> None:
    contents = from_bytes(to_bytes(network(rng.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8))))
    assert contents.info.version == (1, 0) and not contents.info.features


PACKING = Packing("level", 2, (4, 9))
CODES = np.zeros(9, np.uint8)
LEVELS = np.array([-1, 0, 1], np.int8)
HOSTILE: dict[str, tuple[Packing, np.ndarray, np.ndarray, int | None, str]] = {
    "unknown width": (Packing("level", 5, (4, 9)), CODES, LEVELS, None, "5 bits"),
    "negative width": (Packing("level", -1, (4, 9)), CODES, LEVELS, None, "-1 bits"),
    "more weights than bytes": (Packing("level", 2, (4, 10)), CODES, LEVELS, None, "40 weights"),
    "fewer weights than bytes": (Packing("level", 2, (4, 8)), CODES, LEVELS, None, "32 weights"),
    "a universe of weights": (Packing("level", 2, (2**62, 2**62)), CODES, LEVELS, None, "shape"),
    "an empty axis": (Packing("level", 2, (0, 9)), CODES, LEVELS, None, "shape"),
    "a negative axis": (Packing("level", 2, (-4, -9)), CODES, LEVELS, None, "shape"),
    "rank 1": (Packing("level", 2, (36,)), CODES, LEVELS, None, "shape"),
    "rank 9": (Packing("level", 2, (36, *[1] * 8)), CODES, LEVELS, None, "shape"),
    "codes of another type": (PACKING, CODES.view(np.int8), LEVELS, None, "int8 of rank 1"),
    "codes of rank 2": (PACKING, CODES.reshape(3, 3), LEVELS, None, "rank 2"),
    "a code without level": (PACKING, CODES + 255, LEVELS, None, "level 3 of 3"),
    "no levels": (PACKING, CODES, LEVELS[:0], None, "ascend"),
    "levels out of order": (PACKING, CODES, LEVELS[::-1], None, "ascend"),
    "the same level twice": (PACKING, CODES, np.array([0, 0], np.int8), None, "ascend"),
    "levels of another type": (PACKING, CODES, LEVELS.astype(np.int16), None, "table"),
    "levels of rank 2": (PACKING, CODES, LEVELS[None], None, "table"),
    "bits behind the last": (Packing("level", 2, (5, 7)), CODES + 255, LEVELS, None, "behind"),
    "rows missing": (Packing("row", 2, (4, 9)), CODES, LEVELS, None, "table"),
    "rows beyond the type": (Packing("row", 2, (4, 9)), CODES + 255, np.full(4, 127, np.int8), None, "beyond int8"),
    "factors without groups": (Packing("factor", 2, (4, 9)), CODES, np.ones((4, 3), np.uint8), None, "None"),
    "groups of nothing": (Packing("factor", 2, (4, 9)), CODES, np.ones((4, 3), np.uint8), 0, "0"),
    "factors of another shape": (Packing("factor", 2, (4, 9)), CODES, np.ones((4, 3), np.uint8), 5, "table"),
    "factors beyond the type": (Packing("factor", 2, (4, 9)), CODES + 255, np.full((4, 3), 255, np.uint8), 3, "beyond"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packing_is_refused(name: str) -> None:
    packing, codes, table, group, message = HOSTILE[name]
    with pytest.raises(FormatError, match=message):
        unpack(packing, codes, table, np.dtype(np.int8), group)


def test_the_hostile_cases_start_from_a_sound_one() -> None:
    assert unpack(PACKING, CODES, LEVELS, np.dtype(np.int8)).tolist() == [[-1] * 9] * 4


GRAPHS: dict[str, Callable[[Graph], object]] = {
    "bits of a float": lambda g: g.types.update(real=TensorType("float32", Quantization((1.0,), bits=4))),
    "bits of int16": lambda g: g.types.update(y=TensorType("int16", Quantization((1.0,), bits=4))),
    "no bits": lambda g: g.types.update(y=TensorType("uint8", Quantization((1.0,), bits=0))),
    "eight bits": lambda g: g.types.update(y=TensorType("uint8", Quantization((1.0,), bits=8))),
    "a zero point beyond the bits": lambda g: g.types.update(y=TensorType("uint8", Quantization((1.0,), 16, bits=4))),
    "groups of an activation": lambda g: g.types.update(y=TensorType("uint8", Quantization((1.0,), group=4))),
    "groups of nothing": lambda g: g.types.update(w=TensorType("int8", Quantization((0.25,) * 4, 0, 0, group=0))),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_types_that_make_no_sense_are_refused(name: str) -> None:
    graph = network(rng.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8))
    GRAPHS[name](graph)
    with pytest.raises(GraphError):
        to_bytes(graph)


def test_a_table_may_not_leave_the_bits_of_its_output() -> None:
    graph = Graph()
    graph.add_input("x", (4,))
    graph.add_node(ops.Quantize(), ["x"], "q", TensorType("uint8", Quantization((0.5,))))
    table = graph.add_constant("t", np.full(256, 16, np.uint8))
    graph.add_node(ops.Table(), ["q", table], "y", TensorType("uint8", Quantization((0.5,), bits=4)))
    graph.outputs = ("y",)
    with pytest.raises(GraphError, match=r"outside 0\.\.15"):
        to_bytes(graph)


def test_an_input_may_not_promise_fewer_bits() -> None:
    graph = Graph()
    kind = TensorType("uint8", Quantization((0.5,), bits=4))
    graph.add_input("x", (4,), kind)
    graph.add_node(ops.Reshape((2, 2)), ["x"], "y", kind)
    graph.outputs = ("y",)
    with pytest.raises(GraphError, match="input 'x'"):
        to_bytes(graph)


def test_packed_means_packed() -> None:
    assert isinstance(pack(np.ones((64, 64), np.int8)), Packed)


def real_network(weight: np.ndarray) -> Graph:
    """One linear layer of float32."""
    graph = Graph()
    graph.add_input("x", (1, weight.shape[1]))
    graph.add_node(ops.Linear(), ["x", graph.add_constant("w", weight)], "y")
    graph.outputs = ("y",)
    return graph


def test_weights_that_are_float16_take_half_the_room() -> None:
    weight = rng.normal(size=(40, 30)).astype(np.float16).astype(np.float32)
    data = to_bytes(real_network(weight))
    contents = from_bytes(data)
    assert contents.info.features == ("halves",)
    assert contents.graph.constants["w"].dtype == np.float32
    np.testing.assert_array_equal(contents.graph.constants["w"], weight)
    assert len(data) - contents.info.header_bytes == 8 + weight.size * 2
    assert to_bytes(contents.graph) == data


@pytest.mark.parametrize("change", [np.float32(1e-9), np.float32(7e4), np.float32(0.1)])
def test_one_weight_that_is_not_float16_keeps_all_in_float32(change: np.float32) -> None:
    weight = rng.normal(size=(40, 30)).astype(np.float16).astype(np.float32)
    weight[-1, -1] = change
    contents = from_bytes(to_bytes(real_network(weight)))
    assert contents.info.features == ()
    np.testing.assert_array_equal(contents.graph.constants["w"], weight)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_float16_that_is_not_finite_is_refused(value: float) -> None:
    weight = np.ones((40, 30), np.float16)
    graph = real_network(weight.astype(np.float32))
    header = to_header(graph, Version(1, 1), ("halves",), "test", 0, {}, {}, {"w"})
    weight[3, 3] = value
    with pytest.raises(FormatError, match="NaN or infinity"):
        from_bytes(b"".join(seal(msgspec.json.encode(header).decode(), [Stored("w", weight)])))


def test_what_is_said_to_be_float16_must_be() -> None:
    graph = real_network(np.ones((40, 30), np.float32))
    header = to_header(graph, Version(1, 1), ("halves",), "test", 0, {}, {}, {"w"})
    for wrong in (np.ones((40, 30), np.float32), np.ones((40, 30), np.int16)):
        with pytest.raises(FormatError, match="kept as float16"):
            from_bytes(b"".join(seal(msgspec.json.encode(header).decode(), [Stored("w", wrong)])))
