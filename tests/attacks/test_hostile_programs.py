"""Graphs that a file may hold but that nobody would quantize: they are refused when loaded or run, or they run.

Nothing crashes, and both back ends agree on every bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvant
from kvant.format import Contents, from_bytes, layout
from kvant.format.contents import tensors_of

FILE = sorted((Path(__file__).parents[1] / "golden").rglob("operators.kvant"))[-1]
DATA = FILE.read_bytes()
HEADER: dict[str, Any] = json.loads(layout.open_container(memoryview(DATA)).header)
CONTENTS = from_bytes(DATA)
TENSORS = tensors_of(CONTENTS.graph, CONTENTS.golden, {})
MEMORY = 2**22
Array = npt.NDArray[Any]


def available() -> list[str]:
    try:
        kvant.QuantizedModel(CONTENTS.graph, backend="native")
    except kvant.BackendError:
        return ["reference"]
    return ["reference", "native"]


BACKENDS = available()


def outputs(contents: Contents, backend: str) -> list[Array] | str:
    """What the graph gives for its first golden input, or the name of the error that it is refused with."""
    try:
        model = kvant.QuantizedModel(contents.graph, backend=backend, memory_limit=MEMORY)
        return list(model.run_all(contents.golden[0].inputs).values())
    except kvant.KvantError as error:
        return type(error).__name__


def check(header: dict[str, Any]) -> None:
    text = msgspec.json.encode(header).decode()
    try:
        contents = from_bytes(b"".join(layout.seal(text, TENSORS)))
    except kvant.FormatError:
        return
    expected, *others = [outputs(contents, backend) for backend in BACKENDS]
    for found in others:
        if isinstance(expected, str) or isinstance(found, str):
            assert expected == found
            continue
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_unchanged_graph_runs() -> None:
    check(HEADER)
    assert not isinstance(outputs(CONTENTS, "reference"), str)


def node_of(header: dict[str, Any], kind: str, **wanted: object) -> dict[str, Any]:
    """The first node of this operator with these attributes."""
    for node in header["nodes"]:
        if node["op"]["op"] == kind and all(node["op"].get(name) == value for name, value in wanted.items()):
            found: dict[str, Any] = node
            return found
    raise AssertionError(f"no {kind} with {wanted}")


def retype_nearest(header: dict[str, Any]) -> None:
    """A resize that only moves elements, from one byte each to two: its reads would leave the input."""
    node_of(header, "resize", mode="nearest")["type"] = {"dtype": "int16", "scale": 0.5}


def repeat_axes(header: dict[str, Any]) -> None:
    node_of(header, "reduce", fn="max")["op"]["axes"] = [2, 2]


def swap_axes(header: dict[str, Any]) -> None:
    node_of(header, "reduce", fn="max")["op"]["axes"] = [3, 2]


def shift_int16(header: dict[str, Any]) -> None:
    """16-bit activations have zero point 0; the native library relies on it."""
    node_of(header, "requantize")["type"]["zero_point"] = 1


@pytest.mark.parametrize("change", [retype_nearest, repeat_axes, swap_axes, shift_int16])
def test_what_would_mislead_a_kernel_is_refused_when_read(change: Callable[[dict[str, Any]], None]) -> None:
    header = copy.deepcopy(HEADER)
    change(header)
    with pytest.raises(kvant.FormatError):
        from_bytes(b"".join(layout.seal(msgspec.json.encode(header).decode(), TENSORS)))


@pytest.mark.parametrize("index", range(len(HEADER["nodes"])))
def test_every_input_of_every_node_may_be_any_other_tensor(index: int) -> None:
    """Inputs swapped for tensors of other types and shapes, the way a hostile file would mislead a kernel."""
    names = [
        "image",
        *[node["output"] for node in HEADER["nodes"][:index]],
        *[entry["name"] for entry in HEADER["constants"]],
    ]
    for place in range(len(HEADER["nodes"][index]["inputs"])):
        for name in names:
            header = copy.deepcopy(HEADER)
            header["nodes"][index]["inputs"][place] = name
            check(header)


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 100, 2**15, 2**31 - 1])
SCALES = st.sampled_from([2.0**-149, 2.0**-126, 2.0**-20, 0.5, 1.0, 2.0**20, 2.0**127])
QUANTIZED = st.builds(
    lambda dtype, scale, zero: {"dtype": dtype, "scale": scale, **({"zero_point": zero} if zero else {})},
    st.sampled_from(["uint8", "int16", "int8", "int32"]),
    SCALES,
    st.sampled_from([0, 1, 128, 255]),
)
TYPES = QUANTIZED | st.sampled_from([{}, {"dtype": "int64"}, {"dtype": "uint8"}, {"dtype": "int16"}])
NAMES = ["image", *[node["output"] for node in HEADER["nodes"]], *[entry["name"] for entry in HEADER["constants"]]]


def mutate(value: Any, draw: st.DrawFn) -> Any:
    """A value of the same kind, where that makes sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(NUMBERS)
    if isinstance(value, float):
        return draw(SCALES)
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutate(value[place], draw), *value[place + 1 :]]
    return value


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    header = copy.deepcopy(HEADER)
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(header["nodes"]))
        attributes = [name for name in node["op"] if name != "op"]
        what = draw(st.sampled_from(["attribute", "attribute", "type", "input"]))
        if what == "attribute" and attributes:
            name = draw(st.sampled_from(attributes))
            node["op"][name] = mutate(node["op"][name], draw)
        elif what == "input":
            place = draw(st.integers(0, len(node["inputs"]) - 1))
            node["inputs"][place] = draw(st.sampled_from(NAMES))
        else:
            node["type"] = draw(TYPES)
    return header


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_attributes_and_types_of_any_value(header: dict[str, Any]) -> None:
    check(header)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_attributes_and_types_of_any_value_at_length(header: dict[str, Any]) -> None:
    check(header)
