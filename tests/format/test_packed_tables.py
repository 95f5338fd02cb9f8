"""Tables of functions: packed by their steps, without loss, and the reader takes nothing on trust."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError
from kvant.format import from_bytes, to_bytes
from kvant.format.layout import Stored, seal
from kvant.format.packing import Packing, pack_table, unpack
from kvant.format.records import Version, to_header
from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops

X = np.arange(-32768, 32768) / 4096


def table(values: np.ndarray, scale: float = 1 / 4096, dtype: Any = np.int16) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.clip(np.rint(values / scale), info.min, info.max).astype(dtype)


CURVES = {
    "relu": (table(np.maximum(X, 0)), 1),
    "falling": (table(-X / 3), 1),
    "hardswish": (table(X * np.clip(X + 3, 0, 6) / 6), 2),
    "tanh": (table(np.tanh(X), 1 / 32767), 4),
    "square": (table(X * X / 4), 3),
    "to bytes": (table(np.maximum(X, 0), 1 / 32, np.uint8), 1),
    "constant": (table(np.full_like(X, 3)), 1),
    "the whole range": (np.arange(-32768, 32768).astype(np.int16), 1),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_function_takes_the_bits_of_its_steps(name: str) -> None:
    values, bits = CURVES[name]
    packed = pack_table(values)
    assert packed is not None
    assert packed.packing == Packing("step", bits, (65536,))
    assert packed.codes.nbytes == 65536 * bits // 8
    again = unpack(packed.packing, packed.codes, packed.table, values.dtype)
    assert again.dtype == values.dtype
    np.testing.assert_array_equal(again, values)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_packed_comes_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["uint8", "int16"])))
    low = data.draw(st.integers(-140, 3))
    steps = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        low, low + data.draw(st.integers(1, 260)), data.draw(st.integers(1, 3000))
    )
    info = np.iinfo(dtype)
    values = np.clip(np.cumsum(steps) + data.draw(st.integers(-300, 300)), info.min, info.max).astype(dtype)
    packed = pack_table(values)
    if packed is not None:
        assert packed.codes.nbytes + packed.table.nbytes < values.nbytes
        np.testing.assert_array_equal(unpack(packed.packing, packed.codes, packed.table, values.dtype), values)


def test_what_gains_nothing_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    assert pack_table(rng.integers(-32768, 32768, 65536).astype(np.int16)) is None
    assert pack_table(rng.integers(0, 256, 65536).astype(np.uint8)) is None
    assert pack_table(np.arange(256, dtype=np.uint8)) is None  # too small
    assert pack_table(np.zeros((2, 65536), np.int16)) is None
    assert pack_table(np.zeros(65536, np.int32)) is None


def network(values: np.ndarray) -> Graph:
    graph = Graph()
    graph.add_input("x", (4,))
    graph.add_node(ops.Quantize(), ["x"], "q", TensorType("int16", Quantization((0.125,))))
    kind = TensorType(values.dtype.name, Quantization((0.125,)))  # type: ignore[arg-type]
    graph.add_node(ops.Table(), ["q", graph.add_constant("t", values)], "y", kind)
    graph.add_node(ops.Dequantize(), ["y"], "real", FLOAT32)
    graph.outputs = ("real",)
    return graph


@pytest.mark.parametrize("name", ["hardswish", "to bytes"])
def test_a_file_holds_the_steps_and_gives_the_table(name: str) -> None:
    values, bits = CURVES[name]
    data = to_bytes(network(values))
    contents = from_bytes(data)
    np.testing.assert_array_equal(contents.graph.constants["t"], values)
    assert contents.graph.types == network(values).types
    assert contents.info.features == ("steps",)
    assert len(data) - contents.info.header_bytes == 8 + 65536 * bits // 8 + 4
    assert to_bytes(contents.graph) == data


CODES, TABLE, FALLING = np.zeros(8, np.uint8), np.array([5, 0], np.int16), np.array([5, -9], np.int16)
HOSTILE: dict[str, tuple[Packing, np.ndarray, np.ndarray, str]] = {
    "another length": (Packing("step", 1, (50,)), CODES, TABLE, "50 weights"),
    "rank 2": (Packing("step", 1, (8, 8)), CODES, TABLE, "shape"),
    "empty": (Packing("step", 1, (0,)), CODES, TABLE, "shape"),
    "a table of another type": (Packing("step", 1, (64,)), CODES, TABLE.astype(np.uint8), "table"),
    "a table of three": (Packing("step", 1, (64,)), CODES, np.zeros(3, np.int16), "table"),
    "a first step": (Packing("step", 1, (64,)), CODES, np.array([5, -1], np.int16), "first entry"),
    "beyond the type": (Packing("step", 8, (8,)), np.array([0, *[255] * 7], np.uint8), TABLE, "beyond uint8"),
    "below the type": (
        Packing("step", 8, (8,)),
        np.array([9, *[0] * 7], np.uint8),
        np.array([5, -9], np.int16),
        "beyond uint8",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_steps_are_refused(name: str) -> None:
    packing, codes, steps, message = HOSTILE[name]
    with pytest.raises(FormatError, match=message):
        unpack(packing, codes, steps, np.dtype(np.uint8))


def test_the_hostile_cases_start_from_a_sound_one() -> None:
    assert unpack(Packing("step", 1, (64,)), CODES, TABLE, np.dtype(np.uint8)).tolist() == [5] * 64


@pytest.mark.parametrize(
    ("dtype", "packing"), [(np.int8, Packing("step", 1, (64,))), (np.uint8, Packing("level", 1, (8, 8)))]
)
def test_each_way_is_for_its_types(dtype: Any, packing: Packing) -> None:
    graph = network(np.zeros(packing.shape, dtype))
    header = to_header(graph, Version(1, 1), ("steps",), "test", 0, {}, {"t": packing}, set())
    stored = [Stored("t", CODES), Stored("t.packing", TABLE)]
    with pytest.raises(FormatError, match=f"packed, but {np.dtype(dtype)}"):
        from_bytes(b"".join(seal(msgspec.json.encode(header).decode(), stored)))
