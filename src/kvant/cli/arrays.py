"""NumPy files that commands read and write."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant import InputError
from kvant.format import check_regular, write_atomically

_MEMORY = Path("/proc/meminfo")


def read_inputs(path: Path, names: list[str]) -> list[np.ndarray[Any, Any]]:
    """The arrays of an .npz or .npy file in the order of the inputs ``names``.

    They are found by name, or in the order of the file if it has no names. Nothing is unpacked before it is known that
    the names fit, and the memory suffices: a file of a megabyte may unpack to a gigabyte.

    Raises:
        InputError: it is no such file, holds Python objects, which are never read, or its names are not those wanted.
        MemoryError: it holds more than there is memory for.
    """
    check_regular(path, InputError)
    with path.open("rb") as file:
        try:
            _check_room(os.fstat(file.fileno()).st_size)
            content = np.load(file, allow_pickle=False)
            arrays: Mapping[str, np.ndarray[Any, Any]] = content
            if isinstance(content, np.ndarray):
                arrays = {"arr_0": content}
            else:
                # No more is unpacked than the archive says.
                _check_room(sum(entry.file_size for entry in content.zip.infolist()))
            return [arrays[name] for name in _in_order(list(arrays), names, path)]
        except MemoryError as error:
            raise MemoryError(f"{path} cannot be read: {error}") from error
        except InputError:
            raise
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} cannot be read as an .npz or .npy file of plain arrays: {error}") from error


def _check_room(needed: int) -> None:
    """Refuse what would fill the memory."""
    free = _free_memory()
    if free is not None and needed > free:
        raise MemoryError(f"it holds {needed:,} bytes, and {free:,} are free")


def _free_memory() -> int | None:
    """Bytes that the system could give; None where it does not say."""
    try:
        lines = dict(line.partition(":")[::2] for line in _MEMORY.read_text().splitlines())
    except OSError:
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def _in_order(found: Collection[str], names: list[str], path: Path) -> list[str]:
    """The names in the file of the inputs ``names``."""
    unnamed = [f"arr_{index}" for index in range(len(found))]
    if sorted(found) == sorted(unnamed) and len(found) == len(names) and set(found) != set(names):
        return unnamed
    if set(found) != set(names):
        raise InputError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}; the model takes {', '.join(names)}")
    return names


def write_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write an .npz file, completely or not at all.

    Raises:
        SaveError: it could not be written.
    """
    buffer = io.BytesIO()
    # Not numpy.savez, of which some names are parameters.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
    write_atomically(path, [buffer.getbuffer()])
