"""Files with sound checksums and any contents, made of the small graph's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from kvant.errors import FormatError
from kvant.format import from_bytes, layout, to_bytes
from kvant.format.contents import tensors_of
from kvant.format.layout import DIGEST, PREFIX, Stored
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
