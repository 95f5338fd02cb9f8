"""The .kvant file: one graph, its constants, golden vectors and metadata, in a strict, checked, deterministic layout.

A .kvant file is a valid safetensors file. docs/file-format.md describes it.
"""

from kvant.format.atomic import check_regular, check_replaceable, explained, replacing, write_atomically
from kvant.format.contents import Contents, FileInfo, Golden, check_metadata
from kvant.format.file import FEATURES, VERSION, from_bytes, read_file, to_bytes, write_file
from kvant.format.limits import MAX_GOLDEN

__all__ = [
    "FEATURES",
    "MAX_GOLDEN",
    "VERSION",
    "Contents",
    "FileInfo",
    "Golden",
    "check_metadata",
    "check_regular",
    "check_replaceable",
    "explained",
    "from_bytes",
    "read_file",
    "replacing",
    "to_bytes",
    "write_atomically",
    "write_file",
]
