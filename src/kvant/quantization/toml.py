"""Frozen dataclasses as TOML and back: fields that differ from their defaults, records as tables, None as "none"."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from kvant.errors import RecipeError

Record = TypeVar("Record")
_NONE = "none"


def write_toml(record: Any) -> str:
    """``record`` as TOML: plain fields first, then a table for each record and an array of tables for each tuple."""
    return "\n".join(_lines(record, "")).lstrip("\n") + "\n"


def _lines(record: Any, prefix: str) -> Iterator[str]:
    changed = {
        field.name: getattr(record, field.name)
        for field in fields(record)
        if getattr(record, field.name) != field.default
    }
    tables = {name: value for name, value in changed.items() if _is_table(value)}
    for name, value in changed.items():
        if name not in tables:
            yield f"{name} = {_value(value)}"
    for name, value in tables.items():
        for header, entry in [("[{}]", value)] if is_dataclass(value) else [("[[{}]]", entry) for entry in value]:
            yield ""
            yield header.format(prefix + name)
            yield from _lines(entry, f"{prefix}{name}.")


def _is_table(value: object) -> bool:
    return is_dataclass(value) or (isinstance(value, tuple) and bool(value) and all(map(is_dataclass, value)))


def _value(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # JSON's escapes are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(text: str, kind: type[Record], records: Mapping[str, type]) -> Record:
    """The record of class ``kind`` that ``text`` describes.

    Args:
        text: TOML.
        kind: a dataclass.
        records: the dataclasses of those fields, on any level, that are tables or arrays of tables.

    Raises:
        RecipeError: the text is no TOML, names an unknown field, or gives a value that the record refuses.
    """
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"this is no TOML: {error}") from error
    return _record(found, kind, records)


def _record(found: Mapping[str, Any], kind: type[Record], records: Mapping[str, type]) -> Record:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in found:
        if name not in known:
            raise RecipeError(f"{kind.__name__} has no field {name!r}; there are {', '.join(sorted(known))}")
    optional = {field.name for field in fields(kind) if "None" in str(field.type)}  # type: ignore[arg-type]
    return kind(
        **{
            name: None if value == _NONE and name in optional else _read(name, value, records)
            for name, value in found.items()
        }
    )


def _read(name: str, value: Any, records: Mapping[str, type]) -> Any:
    if name in records and isinstance(value, dict):
        return _record(value, records[name], records)
    if isinstance(value, list):
        return tuple(_read(name, entry, records) for entry in value)
    return value
