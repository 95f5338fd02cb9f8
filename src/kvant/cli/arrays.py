"""NumPy files that commands read and write."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from kvant import InputError
from kvant.format import check_regular, write_atomically


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name, or the array of an .npy file under the name ``arr_0``.

    Raises:
        InputError: it is neither, or holds Python objects, which are never read.
        MemoryError: it says that it holds more than there is memory for.
    """
    check_regular(path, InputError)
    with path.open("rb") as file:
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"arr_0": content}
            return {name: content[name] for name in content.files}
        except MemoryError as error:
            raise MemoryError(f"{path} cannot be read: {error}") from error
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} cannot be read as an .npz or .npy file of plain arrays: {error}") from error


def by_input(arrays: dict[str, np.ndarray[Any, Any]], names: list[str], path: Path) -> list[np.ndarray[Any, Any]]:
    """The arrays in the order of the inputs ``names``: by name, or in the order of the file if it has no names.

    Raises:
        InputError: a name is missing or surplus, or the numbers differ.
    """
    unnamed = [f"arr_{index}" for index in range(len(arrays))]
    if sorted(arrays) == sorted(unnamed) and len(arrays) == len(names) and set(arrays) != set(names):
        return [arrays[name] for name in unnamed]
    if set(arrays) != set(names):
        raise InputError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; the model takes {', '.join(names)}")
    return [arrays[name] for name in names]


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
