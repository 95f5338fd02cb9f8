"""Files by chance: headers of random bytes, mutated ones, any operator. Each is sound or gives FormatError."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError
from kvant.format import from_bytes, to_bytes
from kvant.graph import ops

from .forged import HEADER, Json, refuse, seal_header, seal_raw


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    refuse(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_outer_headers(data: bytes) -> None:
    refuse(seal_raw(data))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["x", "x_q", "y_q", "conv.weight", "int8", "uint8", "height", "conv", "gather"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every value in a JSON document."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


PLACES = places(HEADER)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES | st.just("<delete>")), min_size=1, max_size=3))
def test_mutated_headers(changes: list[tuple[tuple[Any, ...], object]]) -> None:
    """Any value of the header replaced by any other, or removed: refused with FormatError, or sound."""
    header: Any = copy.deepcopy(HEADER)
    for path, value in changes:
        try:
            owner = header
            for key in path[:-1]:
                owner = owner[key]
            if value == "<delete>":
                del owner[path[-1]]
            else:
                owner[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    try:
        text = msgspec.json.encode(header).decode()
    except (OverflowError, ValueError):
        return
    try:
        contents = from_bytes(seal_header(text))
    except FormatError:
        return
    assert to_bytes(contents.graph, metadata=contents.metadata)


FIELDS = {record.__name__.lower(): set(record.__struct_fields__) for record in ops.ARITY}
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 4, 8, 2**31, 2**62, 1.5])
DIMS = NUMBERS | st.sampled_from([["height"], ["height", 2, "//"], ["height", 0, "%"]])
ATTRIBUTES = st.fixed_dictionaries({}, optional={
    **{name: st.lists(NUMBERS, max_size=3) for name in (
        "strides", "pads_begin", "pads_end", "dilations", "kernel", "output_padding", "axes", "permutation")},
    **dict.fromkeys(("axis", "groups", "rank", "eps", "step", "divisor"), NUMBERS),
    **dict.fromkeys(("start", "stop"), DIMS),
    **{name: st.lists(DIMS, max_size=4) for name in ("shape", "size", "output_size", "begin", "end")},
    "scale": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    "mode": st.sampled_from(["constant", "reflect", "circular", "nearest", "linear"]),
    "fn": st.sampled_from(["mean", "max", "add", "div", "average"]),
    "keepdims": st.booleans(), "ceil_mode": st.booleans(),
})  # fmt: skip


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(FIELDS)),
    ATTRIBUTES,
    st.lists(st.sampled_from(["x", "x_q", "y_q", "y", "conv.weight", "conv.bias"]), max_size=4),
    st.sampled_from([{}, {"dtype": "uint8", "scale": 0.5}, {"dtype": "int16", "scale": 0.5}, {"dtype": "int64"}]),
)
def test_any_operator_with_any_attributes(op: str, attributes: Json, inputs: list[str], type: Json) -> None:
    """Only attributes that the operator has are kept, so that most of these reach shape inference."""
    fields = FIELDS[op]
    kept = {name: value for name, value in attributes.items() if name in fields}
    header = copy.deepcopy(HEADER)
    header["nodes"].append({"op": {"op": op, **kept}, "inputs": inputs, "output": "z", "type": type})
    header["outputs"] = ["z"]
    text = msgspec.json.encode(header).decode()
    with contextlib.suppress(FormatError):  # whether it is refused is not the question: nothing else may be raised
        from_bytes(seal_header(text))
