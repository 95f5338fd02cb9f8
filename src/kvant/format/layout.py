"""The bytes of a .kvant file. This module alone knows where things are; docs/file-format.md describes it.

    8 bytes     length of the header, little endian
    header      JSON, padded with spaces so that the data starts at a multiple of 64
    data        the tensors, without holes, wide elements first, so that every tensor is aligned to its element size

The file is a valid safetensors file. The header begins with ``{"__metadata__":{"sha256":"``, so the checksum is always
at the same place: it covers the whole file, with its own 64 characters taken as zeros.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from kvant.errors import ChecksumError, FormatError
from kvant.format import foreign
from kvant.format.limits import MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS

LENGTH_BYTES = 8
ALIGNMENT = 64
PREFIX = b'{"__metadata__":{"sha256":"'
DIGEST = slice(LENGTH_BYTES + len(PREFIX), LENGTH_BYTES + len(PREFIX) + 64)
_ZEROS = b"0" * 64

StoredType = Literal["F16", "F32", "U8", "I8", "I16", "I32", "I64"]
_STORED: dict[str, StoredType] = {
    "float16": "F16", "float32": "F32", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
}  # fmt: skip
_NUMPY = {stored: np.dtype(name).newbyteorder("<") for name, stored in _STORED.items()}


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    kvant: str


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: StoredType
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """One tensor of the file: the name it is listed under, and its values."""

    name: str
    value: np.ndarray


@dataclass(frozen=True)
class Parts:
    """What the container holds: the inner header's JSON text, the tensors by name, the checksum in hex."""

    header: str
    tensors: dict[str, np.ndarray]
    sha256: str
    header_bytes: int


def arrange(tensors: Sequence[Stored]) -> list[Stored]:
    """The order of the tensors in the file: wide elements first, otherwise as given."""
    return sorted(tensors, key=lambda entry: -entry.value.dtype.itemsize)


def encode(header: str, tensors: Sequence[Stored], sha256: str = _ZEROS.decode()) -> bytes:
    """The length and the header of a file; the bytes of ``tensors`` follow it, in the order of ``arrange``."""
    entries: dict[str, object] = {"__metadata__": _Metadata(sha256, header)}
    offset = 0
    for entry in arrange(tensors):
        end = offset + entry.value.nbytes
        entries[entry.name] = _Entry(_STORED[entry.value.dtype.name], entry.value.shape, (offset, end))
        offset = end
    encoded = msgspec.json.encode(entries)
    padding = -(LENGTH_BYTES + len(encoded)) % ALIGNMENT
    length = len(encoded) + padding
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"the header would take {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return length.to_bytes(LENGTH_BYTES, "little") + encoded + b" " * padding


def seal(header: str, tensors: Sequence[Stored]) -> list[bytes | memoryview]:
    """The whole file, checksum included, as pieces to be written one after the other."""
    start = encode(header, tensors)
    data = [_bytes_of(entry.value) for entry in arrange(tensors)]
    digest = hashlib.sha256(start)
    for piece in data:
        digest.update(piece)
    return [start[: DIGEST.start] + digest.hexdigest().encode() + start[DIGEST.stop :], *data]


def _bytes_of(value: np.ndarray) -> memoryview:
    little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def open_container(buffer: memoryview) -> Parts:
    """Check the container and its checksum, and give views of the tensors; nothing is copied.

    Raises:
        FormatError: what the buffer holds is not such a container.
        ChecksumError: it was one, but was changed, cut short or damaged since.
    """
    length = _header_length(buffer)
    start = LENGTH_BYTES + length
    sha256 = _check_digest(buffer)
    metadata, entries = _decode(bytes(buffer[LENGTH_BYTES:start]))
    data = buffer[start:]
    _check_offsets(entries, len(data))
    tensors = {name: _view(name, entry, data) for name, entry in entries.items()}
    return Parts(metadata.kvant, tensors, sha256, length)


def _header_length(buffer: memoryview) -> int:
    if len(buffer) == 0:
        raise FormatError("the file is empty")
    if bytes(buffer[LENGTH_BYTES : DIGEST.start]) != PREFIX:
        raise FormatError(f"this is not a .kvant file: {foreign.describe(bytes(buffer[:64]))}")
    length = int.from_bytes(buffer[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"the header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if LENGTH_BYTES + length > len(buffer) or DIGEST.stop > LENGTH_BYTES + length:
        raise FormatError(f"the header claims {length} bytes, but the file has {len(buffer)}: it was cut short")
    if (LENGTH_BYTES + length) % ALIGNMENT:
        raise FormatError(f"the data does not start at a multiple of {ALIGNMENT} bytes")
    return length


def _check_digest(buffer: memoryview) -> str:
    stored = bytes(buffer[DIGEST])
    digest = hashlib.sha256(buffer[: DIGEST.start])
    digest.update(_ZEROS)
    digest.update(buffer[DIGEST.stop :])
    if stored != digest.hexdigest().encode():
        raise ChecksumError(
            "the SHA-256 in the file does not match its contents: the file was changed, cut short or damaged. "
            "Copy or download it again, or quantize the model again."
        )
    return stored.decode()


def _decode(header: bytes) -> tuple[_Metadata, dict[str, _Entry]]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop("__metadata__"), type=_Metadata)
        if len(raw) > MAX_TENSORS:
            raise FormatError(f"the file lists {len(raw)} tensors, at most {MAX_TENSORS} are allowed")
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"the header is malformed: {error}") from error
    return metadata, entries


def _check_offsets(entries: dict[str, _Entry], available: int) -> None:
    """Tensors follow one another without holes, fill the data exactly, and have the size of their shape."""
    position = 0
    for name, entry in entries.items():
        label = f"tensor {name[:MAX_NAME_BYTES]!r}"
        begin, end = entry.data_offsets
        # Sizes are compared before they are multiplied or printed: they may have thousands of digits.
        if len(entry.shape) > MAX_RANK or not all(1 <= size <= available for size in entry.shape):
            raise FormatError(
                f"{label} has a shape that is empty, negative, larger than the file, or of rank > {MAX_RANK}"
            )
        nbytes = math.prod(entry.shape) * _NUMPY[entry.dtype].itemsize
        if begin != position or end != position + nbytes or end > available:
            raise FormatError(f"{label} of {nbytes} bytes does not lie at {position}, right after the one before it")
        position = end
    if position != available:
        raise FormatError(f"the header describes {position} bytes of data, the file holds {available}")


def _view(name: str, entry: _Entry, data: memoryview) -> np.ndarray:
    dtype = _NUMPY[entry.dtype]
    flat = np.frombuffer(data, dtype, math.prod(entry.shape), entry.data_offsets[0])
    array = flat.reshape(entry.shape).astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array
