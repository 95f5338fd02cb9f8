"""What a file holds, as Python objects, and the rules that it must keep beyond those of the container."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from kvant.errors import FormatError
from kvant.format.layout import Parts, Stored
from kvant.format.limits import MAX_GOLDEN, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS, check_planned_memory
from kvant.format.names import Names, storage_names
from kvant.format.packing import Packed, pack, pack_table, unpack
from kvant.format.records import ConstantRecord, Header, constant_order, to_graph
from kvant.graph import DTYPES, Graph, example_shapes, infer_shapes, ops, validate

# Two bytes saved for each, and an entry in the header.
_LEAST_HALVES = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Golden:
    """Inputs and the exact outputs that they must give on every machine.

    Attributes:
        inputs: one array for every graph input, by name.
        outputs: one array for every graph output, in the graph's order.
    """

    inputs: dict[str, np.ndarray]
    outputs: list[np.ndarray]


@dataclass(frozen=True)
class FileInfo:
    """Facts about a file that are not part of the graph: version, required features, who wrote it, sizes, SHA-256."""

    version: tuple[int, int]
    features: tuple[str, ...]
    producer: str
    sha256: str
    file_bytes: int
    header_bytes: int


@dataclass(frozen=True)
class Contents:
    """What a file holds. The arrays are read-only views of the file."""

    graph: Graph
    golden: tuple[Golden, ...]
    metadata: dict[str, str]
    info: FileInfo


def check(graph: Graph, golden: tuple[Golden, ...], metadata: dict[str, str]) -> None:
    """Check what a file is to hold, or was read to hold.

    Raises:
        GraphError: the graph breaks its own rules, or a golden vector's shapes do not fit it.
        FormatError: a limit is passed.
    """
    for name in graph.types:
        if _CONTROL.search(name):
            raise FormatError(f"tensor name {name[:MAX_NAME_BYTES]!r} holds control characters")
    validate(graph)
    check_planned_memory(graph, infer_shapes(graph, example_shapes(graph)))
    for name, value in graph.constants.items():
        _check_array(f"constant {name!r}", value)
    if len(golden) > MAX_GOLDEN:
        raise FormatError(f"{len(golden)} golden vectors, at most {MAX_GOLDEN} are allowed")
    for index, entry in enumerate(golden):
        _check_golden(graph, index, entry)
    check_metadata(metadata)


def check_metadata(metadata: dict[str, str]) -> None:
    """Raise FormatError if a file could not hold these strings."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise FormatError(f"metadata {key!r}: {_cut(value)} must be strings, both of them")
        if not _is_unicode(key) or not _is_unicode(value):
            raise FormatError(f"metadata {key[:40]!r}: {_cut(value)} hold half a character (a surrogate)")
        if not key or len(key.encode()) > MAX_NAME_BYTES:
            raise FormatError(f"metadata key {key[:40]!r} must have 1 to {MAX_NAME_BYTES} bytes")


def _cut(value: object) -> str:
    return repr(value)[:80]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_golden(graph: Graph, index: int, golden: Golden) -> None:
    wanted = [entry.name for entry in graph.inputs]
    if sorted(golden.inputs) != sorted(wanted) or len(golden.outputs) != len(graph.outputs):
        raise FormatError(
            f"golden vector {index} has inputs {sorted(golden.inputs)} and {len(golden.outputs)} outputs, "
            f"the graph has inputs {sorted(wanted)} and {len(graph.outputs)} outputs"
        )
    for value in (*golden.inputs.values(), *golden.outputs):
        _check_array(f"an array of golden vector {index}", value)
    shapes = infer_shapes(graph, {name: value.shape for name, value in golden.inputs.items()})
    for name, value in zip(graph.outputs, golden.outputs, strict=True):
        if value.shape != shapes[name]:
            raise FormatError(
                f"golden vector {index}: output {name!r} has shape {value.shape}, expected {shapes[name]}"
            )


def _check_array(label: str, value: np.ndarray) -> None:
    if value.dtype.name not in DTYPES:
        raise FormatError(f"{label} has dtype {value.dtype}, expected one of {', '.join(DTYPES)}")
    if value.ndim > MAX_RANK or value.size == 0:
        raise FormatError(f"{label} has shape {value.shape}; it must not be empty or of rank > {MAX_RANK}")


def packed_constants(graph: Graph) -> dict[str, Packed]:
    """The constants that take less room packed, by name."""
    found = {}
    for name, value in graph.constants.items():
        quantization = graph.types[name].quantization
        packed = pack_table(value) if quantization is None else pack(value, quantization.group)
        if packed is not None:
            found[name] = packed
    return found


def half_constants(graph: Graph) -> set[str]:
    """The float32 weights whose values are all float16, by name: worth it where they are many."""
    weights = {node.inputs[1] for node in graph.nodes if isinstance(node.op, ops.WEIGHTED)}
    return {name for name in weights if name in graph.constants and _is_half(graph.constants[name])}


def _is_half(value: np.ndarray) -> bool:
    if value.dtype != np.float32 or value.size < _LEAST_HALVES:
        return False
    with np.errstate(over="ignore"):
        # The first few tell of almost all weights that they are not.
        return all(bool((part.astype(np.float16) == part).all()) for part in (value.reshape(-1)[:64], value))


def tensors_of(
    graph: Graph, golden: tuple[Golden, ...], packed: Mapping[str, Packed], halves: Collection[str] = ()
) -> list[Stored]:
    """All tensors of a file, under the names they are listed with."""
    scales = {
        name: type.quantization.scales()
        for name in constant_order(graph)
        if (type := graph.types[name]).quantization is not None and type.quantization.axis is not None
    }
    inputs = [entry.name for entry in graph.inputs]
    order = constant_order(graph)
    tables = [name for name in order if name in packed]
    names = storage_names(order, list(scales), tables, inputs, len(graph.outputs), len(golden))
    stored = [
        Stored(listed, _stored(graph.constants[name], packed.get(name), name in halves))
        for name, listed in names.constants.items()
    ]
    stored += [Stored(listed, scales[name]) for name, listed in names.scales.items()]
    stored += [Stored(listed, packed[name].table) for name, listed in names.tables.items()]
    for (given, wanted), entry in zip(names.golden, golden, strict=True):
        stored += [Stored(listed, entry.inputs[name]) for name, listed in given.items()]
        stored += [Stored(listed, value) for listed, value in zip(wanted, entry.outputs, strict=True)]
    if len(stored) > MAX_TENSORS:
        raise FormatError(f"{len(stored)} tensors, at most {MAX_TENSORS} are allowed")
    return stored


def _stored(value: np.ndarray, packed: Packed | None, half: bool) -> np.ndarray:
    """A constant as the file holds it."""
    if packed is not None:
        return packed.codes
    return value.astype(np.float16) if half else value


def assemble(header: Header, parts: Parts, file_bytes: int) -> tuple[Contents, dict[str, Packed]]:
    """Put header and tensors together, and widen what is packed; ``check`` is still to be called.

    Raises:
        FormatError: a tensor that the header speaks of is missing, surplus or of another type.
    """
    names = _expected_names(header, len(parts.tensors))
    for listed in names:
        if listed not in parts.tensors:
            raise FormatError(f"the file has no tensor {listed[:MAX_NAME_BYTES]!r}")
    constants = {name: parts.tensors[listed] for name, listed in names.constants.items()}
    packed = {}
    for record in header.constants:
        if record.packing is not None:
            codes, table = constants[record.name], parts.tensors[names.tables[record.name]]
            packed[record.name] = Packed(record.packing, codes, table)
            constants[record.name] = _unpack(record, packed[record.name])
        elif record.half:
            constants[record.name] = _widened(record, constants[record.name])
        elif constants[record.name].dtype.name != record.dtype:
            raise FormatError(
                f"tensor {record.name!r} is {constants[record.name].dtype}, the header says {record.dtype}"
            )
    golden = tuple(
        Golden(
            {name: parts.tensors[listed] for name, listed in given.items()}, [parts.tensors[name] for name in wanted]
        )
        for given, wanted in names.golden
    )
    graph = to_graph(header, constants, _scales(names, parts))
    version = (header.version.major, header.version.minor)
    info = FileInfo(version, header.features, header.producer, parts.sha256, file_bytes, parts.header_bytes)
    return Contents(graph, golden, dict(header.metadata), info), packed


def _widened(record: ConstantRecord, value: np.ndarray) -> np.ndarray:
    if record.dtype != "float32" or value.dtype != np.float16:
        raise FormatError(f"constant {record.name!r} is said to be float32 kept as float16, but is {value.dtype}")
    wide = value.astype(np.float32)
    wide.flags.writeable = False
    return wide


def _unpack(record: ConstantRecord, packed: Packed) -> np.ndarray:
    if record.dtype not in (("uint8", "int16") if packed.packing.by == "step" else ("int8", "int16")):
        raise FormatError(f"constant {record.name!r} is packed, but {record.dtype}")
    try:
        values = unpack(packed.packing, packed.codes, packed.table, np.dtype(record.dtype), record.group)
    except FormatError as error:
        raise FormatError(f"constant {record.name!r}: {error}") from error
    values.flags.writeable = False
    return values


def _expected_names(header: Header, available: int) -> Names:
    constants = [record.name for record in header.constants]
    scaled = [record.name for record in header.constants if record.axis is not None]
    packed = [record.name for record in header.constants if record.packing is not None]
    inputs = [entry.name for entry in header.inputs]
    if not 0 <= header.golden <= MAX_GOLDEN:
        raise FormatError(f"the file claims {header.golden} golden vectors, at most {MAX_GOLDEN} are allowed")
    # Before any name is made: a few bytes of header must not ask for millions of them.
    expected = len(constants) + len(scaled) + len(packed) + header.golden * (len(inputs) + len(header.outputs))
    if expected != available:
        raise FormatError(f"the header speaks of {expected} tensors, the file lists {available}")
    if len(set(constants)) != len(constants) or len(set(inputs)) != len(inputs):
        raise FormatError("a constant or an input is listed twice")
    return storage_names(constants, scaled, packed, inputs, len(header.outputs), header.golden)


def _scales(names: Names, parts: Parts) -> dict[str, np.ndarray]:
    scales = {name: parts.tensors[listed] for name, listed in names.scales.items()}
    for name, value in scales.items():
        if value.dtype != np.float32 or value.ndim != 1:
            raise FormatError(
                f"the scales of {name!r} are not a float32 vector, but {value.dtype} of rank {value.ndim}"
            )
    return scales
