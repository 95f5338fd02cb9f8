"""Files that someone made to hurt: sound checksums, hostile contents. Each gives FormatError, quickly."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest

from kvant.format import from_bytes, to_bytes
from kvant.format.layout import DIGEST
from samples import build_small_graph

from .forged import HEADER, Json, changed, refuse, seal_header, seal_raw


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
@pytest.mark.timeout(60)
def test_expression_bombs(shape: tuple[object, ...]) -> None:
    refuse(reshape_to(*shape))


@pytest.mark.timeout(60)
def test_a_long_but_bounded_expression_comes_to_an_end() -> None:
    refuse(reshape_to(["height"] + ["height", "+"] * 200_000))


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
