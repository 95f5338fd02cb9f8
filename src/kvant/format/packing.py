"""Weights of few bits, and tables of functions: as small in the file as they need be, widened when the file is read.

Packing changes no integer. It is chosen from the values alone: codes of 1 to 8 bits, and a small table that says which
integer each code stands for. docs/file-format.md describes the four tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kvant.errors import FormatError

Array = npt.NDArray[np.integer]
Codes = npt.NDArray[np.uint8]
# Codes that are packed or unpacked together: a multiple of 8, so that every part starts at a whole byte.
_PART = 1 << 20
# A table and two more entries in the header must be worth it.
_WORTH_BYTES = 256
_WIDTHS = (1, 2, 3, 4, 8)
MAX_BITS = 8


class Packing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a constant is packed.

    Attributes:
        by: what the table holds. "level": the integer of each code. "row": the smallest integer of each row of axis 0,
            codes count from there. "factor": what the centred codes of each run are multiplied by. "step": the first
            integer and the smallest step; codes are what each step from one integer to the next is above that.
        bits: of a code.
        shape: of the constant.
    """

    by: Literal["level", "row", "factor", "step"]
    bits: int
    shape: tuple[int, ...]


class Packed(msgspec.Struct, frozen=True):
    """A packed constant: how, the codes' bytes (uint8, rank 1), and the table."""

    packing: Packing
    codes: Codes
    table: Array


def pack(values: Array, group: int | None = None) -> Packed | None:
    """Pack a constant in the smallest of the ways that hold it, or None if it is not worth it.

    Args:
        values: int8 or int16, rank 2 or more.
        group: elements of the runs that may have a common factor.
    """
    if values.dtype not in (np.int8, np.int16) or values.ndim < 2:
        return None
    ways: list[Callable[[], Packed | None]] = [lambda: _by_level(values), lambda: _by_row(values)]
    if group is not None:
        ways.append(lambda: _by_factor(values, group))
    packed = [found for way in ways if (found := way()) is not None]
    best = min(packed, key=lambda found: found.codes.nbytes + found.table.nbytes, default=None)
    return best if best is not None and _is_worth(best, values) else None


def pack_table(values: Array) -> Packed | None:
    """Pack the table of a function, whose neighbours differ by little, or None if it is not worth it.

    Args:
        values: uint8 or int16, rank 1.
    """
    if values.dtype not in (np.uint8, np.int16) or values.ndim != 1:
        return None
    steps = np.diff(values.astype(np.int32), prepend=values[:1].astype(np.int32))  # the first one is 0
    least = int(steps.min())
    bits = _narrowest(int(steps.max()) - least + 1, values.itemsize)
    if bits is None:
        return None
    codes = to_bits((steps - least).astype(np.uint8), bits)
    packed = Packed(Packing("step", bits, values.shape), codes, np.array([values[0], least], np.int16))
    return packed if _is_worth(packed, values) else None


def _is_worth(packed: Packed, values: Array) -> bool:
    return packed.codes.nbytes + packed.table.nbytes + _WORTH_BYTES <= values.nbytes


def _narrowest(count: int, itemsize: int) -> int | None:
    """The smallest width, less than that of the values, whose codes tell ``count`` things apart."""
    return next((bits for bits in _WIDTHS if count <= 2**bits and bits < 8 * itemsize), None)


def _by_level(values: Array) -> Packed | None:
    levels = np.empty(0, values.dtype)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _PART):
        levels = np.union1d(levels, np.unique(flat[start : start + _PART]))
        if len(levels) > 16:
            return None
    bits = _narrowest(len(levels), 1)
    if bits is None:
        return None
    codes = np.searchsorted(levels, flat).astype(np.uint8)
    return Packed(Packing("level", bits, values.shape), to_bits(codes, bits), levels.astype(values.dtype))


def _by_row(values: Array) -> Packed | None:
    rows = values.reshape(values.shape[0], -1)
    if _narrowest(int(np.ptp(rows[0].astype(np.int32))) + 1, values.itemsize) is None:
        return None
    lowest = rows.min(axis=1, keepdims=True)
    span = int((rows.max(axis=1, keepdims=True).astype(np.int32) - lowest).max())
    bits = _narrowest(span + 1, values.itemsize)
    if bits is None:
        return None
    codes = (rows.astype(np.int32) - lowest).astype(np.uint8).reshape(-1)
    return Packed(Packing("row", bits, values.shape), to_bits(codes, bits), lowest.reshape(-1))


def _by_factor(values: Array, group: int) -> Packed | None:
    rows = values.reshape(values.shape[0], -1).astype(np.int32)
    starts = np.arange(0, rows.shape[1], group)
    factors = np.maximum(np.gcd.reduceat(rows, starts, axis=1), 1)
    quotients = rows // _spread(factors, group, rows.shape[1])
    largest = int(np.abs(quotients).max())
    width = next((bits for bits in _WIDTHS if largest <= _centre(bits)), None)
    bits = 1 if largest == 1 and np.abs(quotients).min() == 1 else width if width != 1 else 2
    if bits is None or bits >= 8 * values.itemsize or factors.max() > 255:
        return None
    codes = (quotients > 0 if bits == 1 else quotients + _centre(bits)).astype(np.uint8).reshape(-1)
    packing = Packing("factor", bits, values.shape)
    return Packed(packing, to_bits(codes, bits), factors.astype(np.uint8))


def _centre(bits: int) -> int:
    """The code that stands for 0; single bits stand for -1 and 1."""
    return (1 << (bits - 1)) - 1


def _spread(factors: Array, group: int, count: int) -> Array:
    return np.repeat(factors, group, axis=1)[:, :count]


def unpack(
    packing: Packing, codes: Codes, table: Array, dtype: np.dtype[np.integer], group: int | None = None
) -> Array:
    """The constant that was packed, of ``dtype``; ``group`` elements have a factor together.

    Raises:
        FormatError: sizes do not fit, bits behind the last code are set, or a code stands for nothing.
    """
    count = _count(packing, codes)
    wanted = _table_shape(packing, count, group)
    kind = {"factor": np.dtype(np.uint8), "step": np.dtype(np.int16)}.get(packing.by, dtype)
    if table.dtype != kind or (table.shape != wanted if packing.by != "level" else table.ndim != 1):
        raise FormatError(f"packed weights have a table of {table.dtype} {table.shape}, expected {kind} {wanted}")
    numbers = from_bits(codes, packing.bits, count)
    if packing.by == "level":
        return _levels(numbers, table).reshape(packing.shape)
    rows = numbers.reshape(packing.shape[0], -1).astype(np.int32)
    if packing.by == "row":
        values = rows + table.reshape(-1, 1)
    elif packing.by == "step":
        values = _curve(numbers, int(table[0]), int(table[1]))
    else:
        centred = 2 * rows - 1 if packing.bits == 1 else rows - _centre(packing.bits)
        values = centred * _spread(table.astype(np.int32), group or 1, rows.shape[1])
    info = np.iinfo(dtype)
    if values.min() < info.min or values.max() > info.max:
        raise FormatError(f"packed weights stand for {values.min()}..{values.max()}, beyond {dtype}")
    return values.astype(dtype).reshape(packing.shape)


def _curve(numbers: Codes, first: int, least: int) -> npt.NDArray[np.int64]:
    steps = numbers.astype(np.int64) + least
    if steps[0] != 0:
        raise FormatError("a packed table does not begin with its first entry")
    return first + np.cumsum(steps)


def _levels(numbers: Codes, table: Array) -> Array:
    if len(table) < 1 or (np.diff(table.astype(np.int32)) <= 0).any():
        raise FormatError("the levels of packed weights do not ascend")
    if numbers.max() >= len(table):
        raise FormatError(f"packed weights name level {numbers.max()} of {len(table)}")
    return np.asarray(table[numbers])


def _count(packing: Packing, codes: Codes) -> int:
    """How many codes there are, once every number of ``packing`` and the bytes are known to fit."""
    if packing.bits not in _WIDTHS:
        raise FormatError(f"weights are packed in {packing.bits} bits; there are 1, 2, 3, 4 and 8")
    if codes.dtype != np.uint8 or codes.ndim != 1:
        raise FormatError(f"packed weights are {codes.dtype} of rank {codes.ndim}, expected a vector of uint8")
    most = codes.size * 8
    fits = len(packing.shape) == 1 if packing.by == "step" else 2 <= len(packing.shape) <= 8
    if not fits or not all(1 <= size <= most for size in packing.shape):
        raise FormatError("packed weights have a shape that is empty, of another rank, or larger than their bytes")
    count = math.prod(packing.shape)
    if -(-count * packing.bits // 8) != codes.size:
        raise FormatError(f"{count} weights of {packing.bits} bits are packed in {codes.size} bytes")
    return count


def _table_shape(packing: Packing, count: int, group: int | None) -> tuple[int, ...]:
    rows = packing.shape[0]
    if packing.by == "factor":
        if group is None or group < 1:
            raise FormatError(f"weights are packed by factors of groups of {group}")
        return (rows, -(-(count // rows) // group))
    return {"row": (rows,), "step": (2,)}.get(packing.by, (2**packing.bits,))


def to_bits(codes: Codes, bits: int) -> Codes:
    """Codes one after the other, lowest bit first, in whole bytes.

    >>> to_bits(np.array([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    parts = []
    for start in range(0, codes.size, _PART):
        single = np.unpackbits(codes[start : start + _PART, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(single.reshape(-1), bitorder="little"))
    return np.concatenate(parts)


def from_bits(data: Codes, bits: int, count: int) -> Codes:
    """The ``count`` codes that ``to_bits`` made ``data`` of.

    Raises:
        FormatError: a bit behind the last code is set.
    """
    if data.size * 8 > count * bits and data[-1] >> (8 - (data.size * 8 - count * bits)):
        raise FormatError("a bit behind the last packed weight is set")
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _PART):
        part = codes[start : start + _PART]
        first = start * bits // 8
        single = np.unpackbits(data[first : first + _PART * bits // 8], count=part.size * bits, bitorder="little")
        part[:] = np.packbits(single.reshape(part.size, bits), axis=1, bitorder="little")[:, 0]
    return codes
