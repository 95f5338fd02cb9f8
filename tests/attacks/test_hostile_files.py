"""Files that someone made to hurt: sound checksums, hostile contents. Each gives FormatError, quickly."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError
from kvant.format import from_bytes, layout, to_bytes
from kvant.format.contents import tensors_of
from kvant.format.layout import DIGEST, PREFIX, Stored
from kvant.graph import ops
from samples import build_small_graph

GRAPH = build_small_graph()
HEADER: dict[str, Any] = json.loads(layout.open_container(memoryview(to_bytes(GRAPH))).header)
TENSORS = tensors_of(GRAPH, (), {})
Json = dict[str, Any]


def seal_header(header: object, tensors: list[Stored] = TENSORS) -> bytes:
    """A file with any inner header over the small graph's tensors."""
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return b"".join(layout.seal(text, tensors))


def seal_raw(header: bytes, data: bytes = b"") -> bytes:
    """A file with any outer header, given from after the checksum on."""
    start = PREFIX + b"0" * 64 + header
    start += b" " * (-(8 + len(start)) % 64)
    whole = bytearray(len(start).to_bytes(8, "little") + start + data)
    whole[DIGEST] = sha256(whole).hexdigest().encode()
    return bytes(whole)


def refuse(data: bytes, match: str | None = None) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        from_bytes(data)
    assert len(str(caught.value)) < 1500


def changed(change: Callable[[Json], object]) -> bytes:
    header = copy.deepcopy(HEADER)
    change(header)
    return seal_header(header)


def test_the_unchanged_header_is_sound() -> None:
    from_bytes(seal_header(HEADER))


CONV = 1
CHANGES: dict[str, Callable[[Json], object]] = {
    "no inputs": lambda h: h.update(inputs=[]),
    "no outputs": lambda h: h.update(outputs=[]),
    "unknown field": lambda h: h.update(command="rm"),
    "unknown field of a node": lambda h: h["nodes"][0].update(code="import os"),
    "unknown field of an operator": lambda h: h["nodes"][CONV]["op"].update(library="evil.so"),
    "unknown operator": lambda h: h["nodes"][0]["op"].update(op="system"),
    "no operator": lambda h: h["nodes"][0].pop("op"),
    "wrong type": lambda h: h["nodes"][CONV]["op"].update(groups="1"),
    "boolean for a number": lambda h: h["nodes"][CONV]["op"].update(groups=True),
    "float for a number": lambda h: h["nodes"][CONV]["op"].update(groups=1.0),
    "zero groups": lambda h: h["nodes"][CONV]["op"].update(groups=0),
    "negative groups": lambda h: h["nodes"][CONV]["op"].update(groups=-1),
    "zero strides": lambda h: h["nodes"][CONV]["op"].update(strides=[0, 0]),
    "huge strides": lambda h: h["nodes"][CONV]["op"].update(strides=[2**63, 1]),
    "huge padding": lambda h: h["nodes"][CONV]["op"].update(pads_begin=[2**31 - 1, 2**31 - 1]),
    "astronomic padding": lambda h: h["nodes"][CONV]["op"].update(pads_begin=[10**4000, 1]),
    "negative padding": lambda h: h["nodes"][CONV]["op"].update(pads_begin=[-1, -1]),
    "huge dilation": lambda h: h["nodes"][CONV]["op"].update(dilations=[2**40, 1]),
    "strides of another rank": lambda h: h["nodes"][CONV]["op"].update(strides=[1]),
    "no strides": lambda h: h["nodes"][CONV]["op"].update(strides=[], pads_begin=[], pads_end=[], dilations=[]),
    "null": lambda h: h["nodes"][CONV]["op"].update(strides=None),
    "swapped clamp": lambda h: h["nodes"][CONV]["op"].update(clamp=[1.0, 0.0]),
    "cycle": lambda h: h["nodes"][0].update(inputs=["y"]),
    "self reference": lambda h: h["nodes"][CONV].update(inputs=["y_q", "conv.weight", "conv.bias"]),
    "undefined input": lambda h: h["nodes"][0].update(inputs=["nowhere"]),
    "defined twice": lambda h: h["nodes"][2].update(output="y_q"),
    "defined as a constant": lambda h: h["nodes"][2].update(output="conv.weight"),
    "undefined output": lambda h: h.update(outputs=["nowhere"]),
    "too few inputs": lambda h: h["nodes"][CONV].update(inputs=["x_q"]),
    "too many inputs": lambda h: h["nodes"][CONV].update(inputs=["x_q"] + ["conv.weight"] * 1000),
    "zero point out of range": lambda h: h["nodes"][0]["type"].update(zero_point=256),
    "negative zero point": lambda h: h["nodes"][0]["type"].update(zero_point=-1),
    "huge zero point": lambda h: h["nodes"][0]["type"].update(zero_point=2**64),
    "scale zero": lambda h: h["nodes"][0]["type"].update(scale=0.0),
    "negative scale": lambda h: h["nodes"][0]["type"].update(scale=-1.0),
    "scale beyond float32": lambda h: h["nodes"][0]["type"].update(scale=1e300),
    "scale that is no float32": lambda h: h["nodes"][0]["type"].update(scale=0.1),
    "scale of a float": lambda h: h["nodes"][2]["type"].update(scale=1.0),
    "unknown type": lambda h: h["nodes"][0]["type"].update(dtype="object"),
    "type of another constant": lambda h: h["constants"][0].update(dtype="uint8"),
    "axis out of range": lambda h: h["constants"][0].update(axis=4),
    "negative axis": lambda h: h["constants"][0].update(axis=-1),
    "huge axis": lambda h: h["constants"][0].update(axis=2**62),
    "axis and scale": lambda h: h["constants"][0].update(scale=1.0),
    "constant twice": lambda h: h["constants"].append(h["constants"][0]),
    "constant without a tensor": lambda h: h["constants"].append({"name": "ghost", "dtype": "int8"}),
    "tensor without a constant": lambda h: h["constants"].pop(),
    "input as wide as the universe": lambda h: h["inputs"][0].update(shape=[1, 2, 2**62, 2**62]),
    "example as wide as the universe": lambda h: h.update(example={"height": 2**31 - 1, "width": 2**31 - 1}),
    "negative input size": lambda h: h["inputs"][0].update(shape=[1, 2, -1, ["width"]]),
    "input of rank 1000": lambda h: h["inputs"][0].update(shape=[1] * 1000),
    "computed input size": lambda h: h["inputs"][0].update(shape=[1, 2, ["height", 2, "*"], ["width"]]),
    "operator as a symbol": lambda h: (h["inputs"][0].update(shape=[1, 2, ["+"], 5]), h["example"].update({"+": 1})),
    "no example": lambda h: h.update(example={}),
    "example of an unknown symbol": lambda h: h["example"].update(depth=1),
    "example zero": lambda h: h["example"].update(height=0),
    "name of 257 bytes": lambda h: (h["nodes"][2].update(output="y" * 257), h.update(outputs=["y" * 257])),
    "empty name": lambda h: (h["nodes"][2].update(output=""), h.update(outputs=[""])),
    "structure out of range": lambda h: h.update(structure=1),
    "negative structure": lambda h: h.update(structure=-1),
    "structure that is text": lambda h: h.update(structure="0"),
    "structure that is a float": lambda h: h.update(structure=0.0),
    "structure that is null": lambda h: h.update(structure=None),
    "deep structure": lambda h: h.update(structure=json.loads("[" * 500 + "0" + "]" * 500)),
    "golden without tensors": lambda h: h.update(golden=1),
    "negative golden": lambda h: h.update(golden=-1),
    "millions of golden vectors": lambda h: h.update(golden=10**9),
    "metadata that is no text": lambda h: h.update(metadata={"a": 1}),
    "default written out": lambda h: h.update(golden=0),
    "fields in another order": lambda h: h.update(producer=h.pop("producer")),
    "metadata out of order": lambda h: h.update(metadata={"b": "", "a": ""}),
    "a feature that nothing uses": lambda h: h.update(features=["packed"]),
    "packing without codes": lambda h: h["constants"][0].update(packing={"by": "level", "bits": 4, "shape": [4, 4]}),
    "bits of a float": lambda h: h["nodes"][2]["type"].update(bits=4),
    "more bits than uint8 has": lambda h: h["nodes"][0]["type"].update(bits=8),
    "fewer bits than the zero point": lambda h: h["nodes"][0]["type"].update(bits=1, zero_point=2),
    "groups of nothing": lambda h: h["constants"][0].update(group=0),
    "scales at run time of integers": lambda h: h["nodes"][CONV].update(op={"op": "linear", "dynamic": True}),
    "features that are no list": lambda h: h.update(features="x"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_fields(name: str) -> None:
    refuse(changed(CHANGES[name]))


def reshape_to(*shape: object) -> bytes:
    """The small graph with a reshape of its output at the end."""

    def change(header: Json) -> None:
        header["nodes"].append(
            {"op": {"op": "reshape", "shape": list(shape)}, "inputs": ["y"], "output": "z", "type": {}}
        )
        header["outputs"] = ["z"]

    return changed(change)


def test_an_honest_expression_is_read() -> None:
    from_bytes(reshape_to(4, ["height", "width", "*"]))


@pytest.mark.parametrize(
    "shape",
    [
        ([],),
        (["+"],),
        (["height", "+"],),
        (["height", 0, "//"],),
        (["height", 0, "%"],),
        (["height", "width"],),
        (["__import__('os')"],),
        (["height", "width", "**"],),
        ([2**40, 2**40, "*"],),
        ([3] + [3, "*"] * 100_000,),
        ([10**4000, 1, "*"],),
        ([1.5],),
        ([["height"]],),
        (-1, -1),
        (0, -1),
        (-2, 60),
        (2**63, 1),
        tuple([1] * 5000),
    ],
)
def test_expression_bombs(shape: tuple[object, ...]) -> None:
    started = time.perf_counter()
    refuse(reshape_to(*shape))
    assert time.perf_counter() - started < 5


def test_a_long_but_bounded_expression_is_quick() -> None:
    started = time.perf_counter()
    refuse(reshape_to(["height"] + ["height", "+"] * 200_000))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "0",
        "{",
        "{}",
        '{"version":{"major":1,"minor":0}}',
        "[" * 100_000,
        '{"version":' * 50_000,
        '{"version":{"major":NaN,"minor":0}}',
        '{"version":{"major":Infinity,"minor":0}}',
        '{"version":{"major":1e999,"minor":0}}',
        '{"version":{"major":1' + "0" * 10_000 + ',"minor":0}}',
    ],
)
def test_headers_that_are_no_header(text: str) -> None:
    refuse(seal_header(text))


def header_text() -> str:
    return json.dumps(HEADER, separators=(",", ":"), ensure_ascii=False)


def test_duplicate_keys_are_refused() -> None:
    text = header_text()
    refuse(seal_header(text.replace('"producer"', '"golden":0,"producer"', 1)))
    refuse(seal_header(text[:-1] + ',"structure":0}'), "canonical")
    refuse(seal_header(text.replace('"groups"', '"groups"', 1)[:-1] + ',"producer":"another"}'), "canonical")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999", "null", "1E-400"])
def test_numbers_that_are_not_finite(constant: str) -> None:
    scale = json.dumps(HEADER["nodes"][0]["type"]["scale"])
    assert scale in header_text()
    refuse(seal_header(header_text().replace(scale, constant, 1)))


def test_other_spellings_of_the_same_header() -> None:
    text = header_text()
    refuse(seal_header(text.replace(":", ": ", 1)), "canonical")
    refuse(seal_header(text + " "), "canonical")
    refuse(seal_header(text.replace('"conv.bias"', '"conv\\u002ebias"', 1)), "canonical")
    refuse(seal_header(text.replace('"height":6', '"height":6.0', 1)))


def test_unicode_tricks() -> None:
    text = header_text()
    for character in ("\\u0000", "\\u001b", "\\u009b", "\x7f"):
        refuse(seal_header(text.replace('"y_q"', f'"y_q{character}"')), "control characters")
    refuse(seal_header(text.replace('"x_q"', '"\\ud800"', 2)))
    # Full-width and combining look-alikes are other names, so what they should define is missing.
    refuse(seal_header(text.replace('"output":"y_q"', '"output":"ｙ_q"', 1)))
    refuse(seal_header(text.replace('"output":"y_q"', '"output":"y_q\u0301"', 1)))


def test_bytes_that_are_not_utf8() -> None:
    refuse(seal_raw(b'","kvant":"\xff\xfe"}}'))
    refuse(seal_raw(b'","kvant":"\xed\xa0\x80"}}'))


@pytest.mark.parametrize(
    "header",
    [
        b'","kvant":"{}"',
        b'","kvant":"{}"}',
        b'"}}',
        b'","kvant":1}}',
        b'","kvant":"{}","extra":"1"}}',
        b'","kvant":"{}"},"a":1}',
        b'","kvant":"{}"},"a":null}',
        b'","kvant":"{}"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'","kvant":"{}"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"url":"x"}}',
        b'","kvant":"{}"},"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[-1],"data_offsets":[0,-1]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[1' + b"0" * 4200 + b'],"data_offsets":[0,1]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[0,9223372036854775807],"data_offsets":[0,0]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[1],"data_offsets":[-8,-7]}}',
        b'","kvant":"{}"},"a":{"dtype":"I8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}',
        b'","kvant":"{}"},"__metadata__":{"sha256":"","kvant":"{}"}}',
        b'","kvant":"{}"},"a":' + b"[" * 100_000,
    ],
)
def test_hostile_outer_headers(header: bytes) -> None:
    refuse(seal_raw(header, b"\0" * 16))


@pytest.mark.parametrize("offsets", [(0, 4, 0, 4), (4, 8, 0, 4), (0, 4, 8, 12), (0, 4, 3, 7), (0, 8, 8, 4)])
def test_overlaps_holes_and_disorder(offsets: tuple[int, int, int, int]) -> None:
    entry = b'"%s":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    a, b = entry % (b"a", *offsets[:2]), entry % (b"b", *offsets[2:])
    refuse(seal_raw(b'","kvant":"{}"},' + a + b"," + b + b"}", b"\0" * 12), "does not lie|describes")


@pytest.mark.parametrize("length", [0, 1, 63, 2**23 + 1, 2**31, 2**32, 2**63, 2**64 - 1])
def test_lies_about_the_header_length(length: int, small_file: bytes) -> None:
    refuse(length.to_bytes(8, "little") + small_file[8:])


def test_hundreds_of_thousands_of_tensors_and_nodes() -> None:
    entries = b",".join(b'"%x":{}' % index for index in range(300_000))
    refuse(seal_raw(b'","kvant":"{}"},' + entries + b"}"), "at most 65536")

    def many(header: Json) -> None:
        header["nodes"] += [{"op": {"op": "table"}, "inputs": [], "output": f"n{i}", "type": {}} for i in range(65_600)]

    refuse(changed(many), "at most 65536")


def test_a_refused_size_is_not_allocated() -> None:
    data = changed(CHANGES["example as wide as the universe"])
    tracemalloc.start()
    try:
        refuse(data, "more than|bytes of activations")
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_activations_are_counted_while_they_live() -> None:
    """Many activations, each freed before the next: allowed, where all of them together would not be."""

    def chain(header: Json) -> None:
        header["example"] = {"height": 4096, "width": 4096}
        for index in range(300):
            before = f"r{index - 1}" if index else "y"
            reshape = {"op": "transpose", "permutation": [0, 1, 3, 2]}
            header["nodes"].append({"op": reshape, "inputs": [before], "output": f"r{index}", "type": {}})
        header["outputs"] = ["r299"]

    from_bytes(changed(chain))


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


def test_recursion_depth_is_left_alone() -> None:
    before = sys.getrecursionlimit()
    refuse(seal_header("[" * 10_000))
    assert sys.getrecursionlimit() == before


def test_constants_with_nan_are_refused() -> None:
    graph = build_small_graph()
    graph.add_constant("odd", np.ones(3, np.float32))
    data = bytearray(to_bytes(graph))
    where = data.rindex(np.ones(3, np.float32).tobytes())
    data[where : where + 4] = np.float32("nan").tobytes()
    data[DIGEST] = b"0" * 64
    data[DIGEST] = sha256(data).hexdigest().encode()
    refuse(bytes(data), "NaN")
