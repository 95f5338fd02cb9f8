"""Reading and writing .kvant files: the container, the header's records and the graph's own rules put together."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from kvant import __version__
from kvant.errors import FormatError, GraphError, KvantError, UnsupportedVersionError
from kvant.format import layout
from kvant.format.atomic import check_regular, write_atomically
from kvant.format.contents import Contents, Golden, assemble, check, half_constants, packed_constants, tensors_of
from kvant.format.packing import Packed
from kvant.format.records import Gate, Header, NodeRecord, Version, to_header
from kvant.graph import Graph, ops

VERSION = Version(1, 1)
# What files without features say: they say nothing that 1.0 did not know.
_PLAIN_VERSION = Version(1, 0)
# Features that a file may require of its reader: weights of few bits are packed; activations have fewer than 8 bits;
# weights have a factor for each group of input channels; tables of functions are packed by their steps.
# Some weighted layers take and give float32, and some of those keep their weights as float16. Elements are chosen by
# computed places, or counted.
FEATURES = frozenset({"packed", "narrow", "groups", "reals", "halves", "steps", "places"})

_UPGRADE = "Install a newer kvant: pip install --upgrade kvant"
_ODD_VALUES = (KvantError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, msgspec.MsgspecError)


def write_file(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    golden: Sequence[Golden] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``graph`` to ``path``: completely, or not at all. The same arguments give the same bytes.

    Args:
        path: the file to write or replace, by convention ending in ``.kvant``.
        graph: a valid graph, float or quantized.
        golden: inputs and outputs that ``kvant verify`` replays.
        metadata: strings of your own, such as how to prepare an input.

    Raises:
        GraphError: the graph, a golden vector or the metadata cannot be stored.
        SaveError: the file could not be written; one that was there before is unchanged.
    """
    write_atomically(path, _pieces(graph, tuple(golden), dict(metadata or {})))


def to_bytes(graph: Graph, *, golden: Sequence[Golden] = (), metadata: Mapping[str, str] | None = None) -> bytes:
    """What ``write_file`` writes, as bytes."""
    return b"".join(_pieces(graph, tuple(golden), dict(metadata or {})))


def _pieces(graph: Graph, golden: tuple[Golden, ...], metadata: dict[str, str]) -> list[bytes | memoryview]:
    try:
        packed = packed_constants(graph)
        halves = half_constants(graph)
        features = _features(graph, packed, halves)
        version = VERSION if features else _PLAIN_VERSION
        packings = {name: entry.packing for name, entry in packed.items()}
        header = to_header(graph, version, features, f"kvant {__version__}", len(golden), metadata, packings, halves)
        for node in header.nodes:
            _check_node(node)
        check(graph, golden, metadata)
        return layout.seal(_canonical(header), tensors_of(graph, golden, packed, halves))
    except GraphError:
        raise
    except _ODD_VALUES as error:
        raise GraphError(f"this graph cannot be stored in a file: {error}") from error


def _features(graph: Graph, packed: Mapping[str, Packed], halves: Collection[str]) -> tuple[str, ...]:
    """What a reader must know to read the file."""
    quantizations = [type.quantization for type in graph.types.values() if type.quantization is not None]
    present = {
        "groups": any(entry.group is not None for entry in quantizations),
        "halves": bool(halves),
        "narrow": any(entry.bits is not None for entry in quantizations),
        "packed": any(entry.packing.by != "step" for entry in packed.values()),
        "places": any(
            isinstance(node.op, ops.PLACES)
            or (isinstance(node.op, ops.ArgMax) and graph.types[node.inputs[0]].dtype == "int64")
            for node in graph.nodes
        ),
        "reals": bool(quantizations)
        and any(
            isinstance(node.op, ops.WEIGHTED) and graph.types[node.inputs[0]].dtype == "float32" for node in graph.nodes
        ),
        "steps": any(entry.packing.by == "step" for entry in packed.values()),
    }
    return tuple(name for name, used in present.items() if used)


def _check_node(node: NodeRecord) -> None:
    """Make sure that the node's attributes come back as they are; the records' types are not checked before that."""
    try:
        same = msgspec.json.decode(msgspec.json.encode(node), type=NodeRecord) == node
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise GraphError(f"the node {node.output!r} cannot be stored in a file: {error} ({node.op})") from error
    if not same:
        raise GraphError(
            f"the node {node.output!r} would change in a file; NaN, infinity or a list where a tuple belongs: {node.op}"
        )


def _canonical(header: Header) -> str:
    """The header's text as a reader spells it: 1.0 where someone gave 1."""
    again = msgspec.json.decode(msgspec.json.encode(header), type=Header)
    if again != header:
        raise GraphError("this graph cannot be stored in a file: a name, a scale or its structure would change")
    return msgspec.json.encode(again).decode()


def read_file(path: str | os.PathLike[str]) -> Contents:
    """Read and check the file at ``path``. The tensors stay in the file and are mapped into memory.

    Do not overwrite a file in place while it is in use; ``write_file`` does not, it puts a new file in its place.

    Raises:
        FormatError: it is no sound .kvant file (ChecksumError, UnsupportedVersionError: see kvant.errors).
        OSError: it does not exist or may not be read.
    """
    check_regular(path, FormatError)
    with Path(path).open("rb") as file:
        # An empty file cannot be mapped.
        empty = os.fstat(file.fileno()).st_size == 0
        mapped = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return from_bytes(mapped)
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)!r}: {error}") from error


def from_bytes(buffer: bytes | bytearray | memoryview | mmap.mmap) -> Contents:
    """Check the bytes of a file and give what they hold; arrays are read-only views of ``buffer``.

    Raises:
        FormatError: the bytes are no sound .kvant file (ChecksumError, UnsupportedVersionError: see kvant.errors).
    """
    view = memoryview(buffer).toreadonly().cast("B")
    parts = layout.open_container(view)
    header = _decode_header(parts.header)
    try:
        contents, packed = assemble(header, parts, len(view))
        check(contents.graph, contents.golden, contents.metadata)
        halves = {record.name for record in header.constants if record.half}
        if header.features != _features(contents.graph, packed, halves):
            raise FormatError(f"the file's features {header.features} are not those of what it holds")
        canonical = _start_of(contents, header, packed, halves)
    except FormatError:
        raise
    except _ODD_VALUES as error:
        raise FormatError(f"the file describes a graph that breaks the rules: {_brief(error)}") from error
    if canonical != view[: len(canonical)] or len(canonical) != layout.LENGTH_BYTES + parts.header_bytes:
        raise FormatError(
            "the header is not in its one canonical spelling: something is doubled, superfluous or out of order"
        )
    return contents


def _brief(error: Exception) -> str:
    """The message of ``error``, cut where a hostile file made it long."""
    text = str(error)
    return text if len(text) <= 500 else f"{text[:500]}..."


def _start_of(contents: Contents, header: Header, packed: Mapping[str, Packed], halves: set[str]) -> bytes:
    """Length and header that a writer of the same version would give ``contents``."""
    again = to_header(
        contents.graph, header.version, header.features, header.producer, len(contents.golden), contents.metadata,
        {name: entry.packing for name, entry in packed.items()}, halves,
    )  # fmt: skip
    tensors = tensors_of(contents.graph, contents.golden, packed, halves)
    return layout.encode(msgspec.json.encode(again).decode(), tensors, contents.info.sha256)


def _decode_header(text: str) -> Header:
    newer = False
    try:
        gate = msgspec.json.decode(text, type=Gate)
        newer = _check_gate(gate)
        return msgspec.json.decode(text, type=Header)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        if newer:
            raise UnsupportedVersionError(
                f"the file was written for format {gate.version.major}.{gate.version.minor} and says something that is "
                f"unknown in {VERSION.major}.{VERSION.minor}: {_brief(error)}. {_UPGRADE}"
            ) from error
        raise FormatError(f"the header is malformed: {_brief(error)}") from error


def _check_gate(gate: Gate) -> bool:
    """Refuse what only another kvant can read; say whether the file has a newer minor version."""
    version, unknown = gate.version, sorted(set(gate.features) - FEATURES)
    if version.major < 1 or version.minor < 0:
        raise FormatError(f"the file claims format version {version.major}.{version.minor}, which never existed")
    if version.major > VERSION.major or unknown:
        why = f"needs the features {', '.join(unknown)[:200]}" if unknown else "has another structure"
        raise UnsupportedVersionError(
            f"the file was written for format {version.major}.{version.minor} and {why}; this is kvant {__version__}, "
            f"which reads format {VERSION.major}.{VERSION.minor}. {_UPGRADE}"
        )
    return version.minor > VERSION.minor
