"""Says what a file that is not a .kvant file looks like, so that the message can name it."""

from __future__ import annotations

# First bytes, where they start, what they mean.
_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"PK\x03\x04", 0, "a zip archive, such as a PyTorch checkpoint; quantize the model it belongs to first"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"GGUF", 0, "a GGUF model"),
    (b"\x89HDF", 0, "an HDF5 file, such as a Keras model"),
    (b"\x1f\x8b", 0, "gzip-compressed data; unpack it first"),
    (b"(\xb5/\xfd", 0, "zstandard-compressed data; unpack it first"),
    (b"<?xml", 0, "XML, such as an OpenVINO model"),
    (b"<!DOCTYPE", 0, "a web page; the download may have failed"),
    (b"<html", 0, "a web page; the download may have failed"),
    (b"\xff\xd8\xff", 0, "a JPEG picture"),
    (b"\x89PNG", 0, "a PNG picture"),
    (b'{"', 8, "a safetensors file that kvant did not write; load it as weights of a model and quantize that"),
)


def describe(start: bytes) -> str:
    """What the first bytes of a file look like, for a message.

    >>> describe(b"GGUF....")
    'it looks like a GGUF model'
    """
    for signature, position, meaning in _SIGNATURES:
        if start[position : position + len(signature)] == signature:
            return f"it looks like {meaning}"
    if len(start) > 1 and start[0] == 0x80 and start[1] in (2, 3, 4, 5):
        return "it looks like a Python pickle, which kvant never reads"
    # A protocol-buffer message whose field 1 is a small number (ONNX: ir_version), then a string or another number.
    if len(start) > 2 and start[0] == 0x08 and start[1] < 0x20 and start[2] in (0x12, 0x10, 0x1A, 0x3A, 0x42):
        return "it looks like an ONNX model; kvant quantizes the PyTorch model instead"
    return "it is of an unknown kind"
