"""Files that are not ours, files of other versions, and paths that are not files."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from kvant.errors import FormatError, UnsupportedVersionError
from kvant.format import from_bytes, layout, read_file, to_bytes
from kvant.format.contents import tensors_of
from samples import build_small_graph


def with_header(**changes: object) -> bytes:
    """The small graph's file with fields of its header replaced, sealed again."""
    graph = build_small_graph()
    header = msgspec.json.decode(layout.open_container(memoryview(to_bytes(graph))).header)
    header.update(changes)
    return b"".join(layout.seal(msgspec.json.encode(header).decode(), tensors_of(graph, (), {})))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


FOREIGN = {
    "zip archive": zipped(),
    "pickle": pickle.dumps({"a": 1}),
    "ONNX": b"\x08\x08\x12\x07pytorch\x1a\x052.0.0",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "NumPy": b"\x93NUMPY\x01\x00",
    "safetensors": safetensors.numpy.save({"a": np.zeros(3, np.float32)}),
    "web page": b"<!DOCTYPE html><html></html>",
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "empty": b"",
    "unknown kind": b"hello, world, this is a text file",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.kvant"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(FormatError, match=kind) as caught:
        read_file(path)
    assert "model.kvant" in str(caught.value)


def test_the_helper_makes_a_sound_file() -> None:
    from_bytes(with_header())


def test_a_newer_major_version_says_what_to_do() -> None:
    data = with_header(version={"major": 2, "minor": 0}, anything={"new": True})
    with pytest.raises(UnsupportedVersionError, match=r"format 2\.0 .*pip install --upgrade kvant"):
        from_bytes(data)


def test_an_unknown_required_feature_says_what_to_do() -> None:
    data = with_header(features=["packed-3-bit"], packing=3)
    with pytest.raises(UnsupportedVersionError, match=r"packed-3-bit.*pip install --upgrade kvant"):
        from_bytes(data)


def test_a_newer_minor_version_is_read_if_it_says_nothing_new() -> None:
    data = with_header(version={"major": 1, "minor": 9})
    assert from_bytes(data).info.version == (1, 9)
    with pytest.raises(UnsupportedVersionError, match="pip install --upgrade kvant"):
        from_bytes(with_header(version={"major": 1, "minor": 9}, hints={"a": 1}))


@pytest.mark.parametrize("version", [{"major": 0, "minor": 1}, {"major": 1, "minor": -1}, {"major": 1}, "1.0", None])
def test_versions_that_never_existed(version: object) -> None:
    with pytest.raises(FormatError) as caught:
        from_bytes(with_header(version=version))
    assert not isinstance(caught.value, UnsupportedVersionError)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing.kvant")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe"):
        read_file(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, small_file: bytes) -> None:
    path = tmp_path / "a.kvant"
    path.write_bytes(small_file)
    path.chmod(0)
    with pytest.raises(PermissionError):
        read_file(path)
