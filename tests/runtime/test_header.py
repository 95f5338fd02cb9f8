"""The Python side says once more what kernels/include/kvant.h and the dispatcher say: both must mean the same."""

from __future__ import annotations

import ctypes
import re

import pytest

from kvant.runtime.native import calls, filters, library, maps, methods, packed

from .builds import ROOT

HEADER = re.sub(r"/\*.*?\*/", "", (ROOT / "kernels/include/kvant.h").read_text(), flags=re.DOTALL)
TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


def records() -> dict[str, type[ctypes.Structure]]:
    """The structures of the binding, by the header's names, with which their docstrings begin."""
    found = [entry for module in (library, filters, maps) for entry in vars(module).values() if isinstance(entry, type)]
    structures = [entry for entry in found if issubclass(entry, ctypes.Structure) and entry is not ctypes.Structure]
    return {re.split(r"[.:]", str(entry.__doc__))[0]: entry for entry in structures}


RECORDS = records()


def type_of(words: str, count: str) -> object:
    """What the binding calls a field's type."""
    name = words.removeprefix("const ").strip()
    if name.endswith("*"):
        return ctypes.c_void_p
    plain = RECORDS[name] if name in RECORDS else TYPES[name]
    return plain * int(count) if count else plain


def enumeration(name: str) -> dict[str, int]:
    """The members of an enumeration in lower case, without the prefix."""
    body = re.search(rf"typedef enum kvant_{name} {{(.*?)}}", HEADER, re.DOTALL)
    assert body is not None
    members: dict[str, int] = {}
    for member in body[1].split(","):
        word, _, number = (part.strip() for part in member.partition("="))
        members[word.removeprefix("KVANT_").lower()] = int(number) if number else len(members)
    return members


@pytest.mark.parametrize("name", RECORDS)
def test_structures(name: str) -> None:
    body = re.search(rf"typedef struct {name} {{(.*?)}}", HEADER, re.DOTALL)
    assert body is not None
    fields = re.findall(r"((?:const )?\w+ \*?)(\w+)(?:\[(\d)\])?;", body[1])
    wanted = [(field, type_of(words, count)) for words, field, count in fields]
    assert [tuple(field) for field in RECORDS[name]._fields_] == wanted


def test_numbers() -> None:
    prefixed = {f"step_{name}": number for name, number in library.NUMBER.items()}
    assert enumeration("step") == prefixed
    assert enumeration("dtype") == library.DTYPES
    assert enumeration("function") == calls._FUNCTIONS
    assert enumeration("method") == {name.replace("-", "_"): number for name, number in packed._NUMBERS.items()}
    defined = dict(re.findall(r"#define KVANT_(\w+) (\d+)", HEADER))
    assert int(defined["ABI_VERSION"]) == library.ABI_VERSION
    assert int(defined["MOST_ARGUMENTS"]) == library.MOST_ARGUMENTS


def test_functions() -> None:
    declared = set(re.findall(r"KVANT_API [^;(]*?kvant_(\w+)\(", HEADER))
    of_other_types = {"isa", "algorithm", "weights_bytes", "free_weights"}
    assert set(library._FUNCTIONS) | of_other_types == declared


def test_instruction_sets() -> None:
    dispatch = (ROOT / "kernels/src/dispatch.cpp").read_text()
    names = re.search(r"kNames\[\] = {(.*?)}", dispatch)
    assert names is not None
    assert re.findall(r'"(\w+)"', names[1]) == list(methods.SPEEDS)
