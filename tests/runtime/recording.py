"""Runs of the native back end as bytes that replay.cpp repeats on another machine.

What the library's calls refer to is copied as it lies in memory; addresses in it become offsets.
"""

from __future__ import annotations

import ctypes
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_void_p
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from kvant.runtime import steps
from kvant.runtime.native import NativeBackend, calls, library, packed

_ALIGNMENT = 64
_SLOTS = 1 + library.MOST_ARGUMENTS
Work = Sequence[tuple[steps.Work, Sequence[np.ndarray], np.ndarray]]


class Recorder(NativeBackend):
    """The native back end; every run becomes a case: its memory before the run, and all outputs after it."""

    def __init__(self) -> None:
        super().__init__()
        self.cases: list[bytes] = []

    def bind(self, work: Work, given: Sequence[np.ndarray] = ()) -> Callable[..., None]:
        run = super().bind(work, given)
        bound = [self._call(*piece) for piece in work]

        def call(*values: np.ndarray) -> None:
            for place, value in zip(given, values, strict=True):
                np.copyto(place, value)
            memory = _Memory(work, bound)
            before = memory.image()
            run(*given)
            self.cases.append(memory.case(before))

        return call


class _Memory:
    """All memory that calls refer to, and where it holds addresses."""

    def __init__(self, work: Work, bound: Sequence[calls.Call]) -> None:
        self._outputs = [output for _, _, output in work]
        self._slots = calls.encode(bound)
        self._first, count = self._slots.buffer_info()
        self._ranges = [(self._first, count * self._slots.itemsize)]
        self._addresses: list[int] = []  # where there is one
        self._layers: list[tuple[int, int, int]] = []  # a slot for packed weights, what to pack, how
        self._alive: list[object] = []
        slot = self._first
        for (step, inputs, output), (_, arguments) in zip(work, bound, strict=True):
            for array in (*_arrays(step), *inputs, output):
                self._add_array(array)
            layers = iter(steps.convolutions(step))
            for position, argument in enumerate(arguments, 1):
                self._add_argument(slot + 8 * position, argument, layers)
            slot += 8 * _SLOTS
        self._pieces = _laid_out(self._ranges)

    def _add_array(self, array: np.ndarray) -> None:
        self._ranges.append((array.ctypes.data, _extent(array)))

    def _add_argument(self, slot: int, argument: calls.Argument, layers: Iterator[steps.Conv]) -> None:
        if isinstance(argument, int | float):
            return
        if isinstance(argument, packed.Packed):
            layer, arrays = packed._layer(next(layers))
            self._alive.append(arrays)
            for array in arrays:  # type: ignore[attr-defined]
                self._add_array(array)
            self._layers.append((slot, self._add_structure(layer), packed._NUMBERS.get(argument.algorithm, 0)))
            return
        self._addresses.append(slot)
        if isinstance(argument, np.ndarray):
            self._add_array(argument)
        else:
            self._add_structure(argument)

    def _add_structure(self, value: Any) -> int:
        self._alive.append(value)
        address, size = ctypes.addressof(value), ctypes.sizeof(value)
        self._ranges.append((address, size))
        if isinstance(value, ctypes.Structure):
            offsets = [getattr(type(value), name).offset for name, kind, *_ in value._fields_ if kind is c_void_p]
        else:
            offsets = list(range(0, size, 8)) if getattr(value, "_type_", None) is c_void_p else []
        self._addresses += [address + offset for offset in offsets if any(ctypes.string_at(address + offset, 8))]
        return address

    def _offset(self, address: int) -> int:
        start, size, offset = self._pieces[bisect_right(self._pieces, [address, 2**64]) - 1]
        assert start <= address <= start + size
        return offset + address - start

    def image(self) -> bytes:
        """The memory now, with offsets for addresses."""
        _, size, offset = self._pieces[-1]
        image = bytearray(offset + size)
        for address, size, offset in self._pieces:
            image[offset : offset + size] = ctypes.string_at(address, size)
        for address in self._addresses:
            (target,) = struct.unpack_from("<Q", image, self._offset(address))
            struct.pack_into("<Q", image, self._offset(address), self._offset(target))
        return bytes(image)

    def case(self, image: bytes) -> bytes:
        """What replay.cpp reads, with the outputs as they are now."""
        numbers = [
            len(image), self._offset(self._first), len(self._outputs), len(self._addresses), len(self._layers),
            *map(self._offset, self._addresses),
        ]  # fmt: skip
        for slot, layer, method in self._layers:
            numbers += [self._offset(slot), self._offset(layer), method]
        for output in self._outputs:
            numbers += [self._offset(output.ctypes.data), _extent(output)]
        outputs = b"".join(ctypes.string_at(output.ctypes.data, _extent(output)) for output in self._outputs)
        return struct.pack(f"<{len(numbers)}Q", *numbers) + image + outputs


def _extent(array: np.ndarray) -> int:
    """Bytes from an array's first element to the end of its last one, gaps between pixels included."""
    last = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    return last + array.itemsize if array.size else 0


def _arrays(value: object) -> Iterator[np.ndarray]:
    """The arrays of a step, but not those of a layer: they are packed from copies."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _arrays(entry)
    elif is_dataclass(value) and not isinstance(value, steps.Weights):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))


def _laid_out(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Address, size and offset of pieces that cover the ranges without overlap and keep their alignment."""
    pieces: list[list[int]] = []
    for address, size in sorted(ranges):
        if pieces and address <= pieces[-1][0] + pieces[-1][1]:
            pieces[-1][1] = max(pieces[-1][1], address + size - pieces[-1][0])
        else:
            pieces.append([address, size, 0])
    end = 0
    for piece in pieces:
        piece[2] = end + (piece[0] - end) % _ALIGNMENT
        end = piece[2] + piece[1]
    return pieces
