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

MEMORY = 2**22
Array = npt.NDArray[Any]


class Program:
    """The latest golden file of a name, to be changed."""

    def __init__(self, name: str) -> None:
        data = sorted((Path(__file__).parents[1] / "golden").rglob(f"{name}.kvant"))[-1].read_bytes()
        self.header: dict[str, Any] = json.loads(layout.open_container(memoryview(data)).header)
        self.contents = from_bytes(data)
        self.tensors = tensors_of(self.contents.graph, self.contents.golden, {})
        self.constants = [entry["name"] for entry in self.header["constants"]]
        self.names = ["image", *[node["output"] for node in self.header["nodes"]], *self.constants]

    def sealed(self, header: dict[str, Any]) -> bytes:
        return b"".join(layout.seal(msgspec.json.encode(header).decode(), self.tensors))


OPERATORS, PLACES = Program("operators"), Program("places")
PROGRAMS = [OPERATORS, PLACES]
NODES = [(program, index) for program in PROGRAMS for index in range(len(program.header["nodes"]))]


def available() -> list[str]:
    try:
        kvant.QuantizedModel(OPERATORS.contents.graph, backend="native")
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


def check(program: Program, header: dict[str, Any]) -> None:
    try:
        contents = from_bytes(program.sealed(header))
    except kvant.FormatError:
        return
    expected, *others = [outputs(contents, backend) for backend in BACKENDS]
    for found in others:
        if isinstance(expected, str) or isinstance(found, str):
            assert expected == found
            continue
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_unchanged_graph_runs(program: Program) -> None:
    check(program, program.header)
    assert not isinstance(outputs(program.contents, "reference"), str)


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


def want_too_many(header: dict[str, Any]) -> None:
    node_of(header, "topk")["op"]["count"] = 2**31 - 1


def want_as_many_as_an_unknown_size(header: dict[str, Any]) -> None:
    node_of(header, "topk")["op"]["count"] = ["depth"]


def take_indices_of_one_byte(header: dict[str, Any]) -> None:
    node_of(header, "gatherelements")["inputs"][1] = "rows"


def count_in_16_bits(header: dict[str, Any]) -> None:
    node_of(header, "cumsum", axis=2)["type"] = {"dtype": "int16", "scale": 0.5}


def calculate_with_bytes(header: dict[str, Any]) -> None:
    node_of(header, "intbinary")["inputs"][0] = "rows"


def widen_the_grid(header: dict[str, Any]) -> None:
    node_of(header, "gridsample")["inputs"][1] = "flow"


def sample_in_another_way(header: dict[str, Any]) -> None:
    node_of(header, "gridsample")["op"]["mode"] = "area"


def need_nothing(header: dict[str, Any]) -> None:
    """A reader that does not know these operators must be told."""
    del header["features"]
    header["version"] = {"major": 1, "minor": 0}


@pytest.mark.parametrize(
    ("program", "change"),
    [
        *[(OPERATORS, change) for change in (retype_nearest, repeat_axes, swap_axes, shift_int16)],
        *[(PLACES, change) for change in (
            want_too_many, want_as_many_as_an_unknown_size, take_indices_of_one_byte, count_in_16_bits,
            calculate_with_bytes, widen_the_grid, sample_in_another_way, need_nothing,
        )],
    ],
)  # fmt: skip
def test_what_would_mislead_a_kernel_is_refused_when_read(
    program: Program, change: Callable[[dict[str, Any]], None]
) -> None:
    header = copy.deepcopy(program.header)
    change(header)
    with pytest.raises(kvant.FormatError):
        from_bytes(program.sealed(header))


@pytest.mark.parametrize(("program", "index"), NODES)
def test_every_input_of_every_node_may_be_any_other_tensor(program: Program, index: int) -> None:
    """Inputs swapped for tensors of other types and shapes, the way a hostile file would mislead a kernel."""
    nodes = program.header["nodes"]
    names = ["image", *[node["output"] for node in nodes[:index]], *program.constants]
    for place in range(len(nodes[index]["inputs"])):
        for name in names:
            header = copy.deepcopy(program.header)
            header["nodes"][index]["inputs"][place] = name
            check(program, header)


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 100, 2**15, 2**31 - 1])
SCALES = st.sampled_from([2.0**-149, 2.0**-126, 2.0**-20, 0.5, 1.0, 2.0**20, 2.0**127])
QUANTIZED = st.builds(
    lambda dtype, scale, zero: {"dtype": dtype, "scale": scale, **({"zero_point": zero} if zero else {})},
    st.sampled_from(["uint8", "int16", "int8", "int32"]),
    SCALES,
    st.sampled_from([0, 1, 128, 255]),
)
TYPES = QUANTIZED | st.sampled_from([{}, {"dtype": "int64"}, {"dtype": "uint8"}, {"dtype": "int16"}])


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
def mutated(draw: st.DrawFn) -> tuple[Program, dict[str, Any]]:
    program = draw(st.sampled_from(PROGRAMS))
    header = copy.deepcopy(program.header)
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(header["nodes"]))
        attributes = [name for name in node["op"] if name != "op"]
        what = draw(st.sampled_from(["attribute", "attribute", "type", "input"]))
        if what == "attribute" and attributes:
            name = draw(st.sampled_from(attributes))
            node["op"][name] = mutate(node["op"][name], draw)
        elif what == "input":
            place = draw(st.integers(0, len(node["inputs"]) - 1))
            node["inputs"][place] = draw(st.sampled_from(program.names))
        else:
            node["type"] = draw(TYPES)
    return program, header


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_attributes_and_types_of_any_value(changed: tuple[Program, dict[str, Any]]) -> None:
    check(*changed)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_attributes_and_types_of_any_value_at_length(changed: tuple[Program, dict[str, Any]]) -> None:
    check(*changed)
