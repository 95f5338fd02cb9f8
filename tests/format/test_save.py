"""Saving is all or nothing, whatever goes wrong, and leaves nothing behind."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import SaveError
from kvant.format import read_file, write_file
from kvant.format.atomic import write_atomically
from kvant.graph import Graph


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "model.kvant"
    path.write_bytes(b"the old file")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"the old file"
    assert os.listdir(path.parent) == [path.name]


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond ``limit`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_cannot_grow(small_graph: Graph, old: Path) -> None:
    small_graph.add_constant("big", np.zeros(200_000, np.int8))
    with largest_file(100_000), pytest.raises(SaveError, match=r"model\.kvant.*too large.*unchanged") as caught:
        write_file(old, small_graph)
    assert caught.value.errno == errno.EFBIG
    assert_untouched(old)


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_full_disk(function: str, small_graph: Graph, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if function == "write":

        def open_full(path: Path, mode: str) -> _FullDisk:
            return _FullDisk(path, mode)

        monkeypatch.setattr(Path, "open", open_full)
    else:
        monkeypatch.setattr(os, function, fail)
    with pytest.raises(SaveError, match="No space left on device") as caught:
        write_file(old, small_graph)
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(old)


class _FullDisk(io.FileIO):
    def write(self, piece: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_ctrl_c_passes_and_leaves_nothing_behind(old: Path) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"half of it"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(old, interrupted())
    assert_untouched(old)


def test_a_killed_process_leaves_the_old_file(old: Path) -> None:
    script = (
        "import os, sys\nfrom kvant.format.atomic import write_atomically\n"
        "def pieces():\n    yield b'x' * 100000\n    os.kill(os.getpid(), 9)\n"
        "write_atomically(sys.argv[1], pieces())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, os.fspath(old)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"the old file"


def test_folders_that_do_not_work(small_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="No such file or directory"):
        write_file(tmp_path / "missing" / "model.kvant", small_graph)
    with pytest.raises(SaveError, match="it is a folder"):
        write_file(tmp_path, small_graph)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SaveError, match="Not a directory"):
        write_file(tmp_path / "file" / "model.kvant", small_graph)
    with pytest.raises(SaveError, match="device"):
        write_file("/dev/null", small_graph)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(small_graph: Graph, old: Path) -> None:
    old.parent.chmod(0o555)
    try:
        with pytest.raises(SaveError, match="Permission denied"):
            write_file(old, small_graph)
    finally:
        old.parent.chmod(0o755)
    assert_untouched(old)


def test_an_unwritable_folder_for_any_user(small_graph: Graph, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(SaveError, match="Permission denied"):
        write_file(old, small_graph)
    monkeypatch.undo()
    assert_untouched(old)


def test_a_write_protected_file_stays(small_graph: Graph, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SaveError, match="write-protected"):
        write_file(old, small_graph)
    assert_untouched(old)


def test_a_new_file_has_the_permissions_of_the_umask(small_graph: Graph, tmp_path: Path) -> None:
    for umask, wanted in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            path = tmp_path / f"{umask}.kvant"
            write_file(path, small_graph)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == wanted


def test_a_replaced_file_keeps_its_permissions(small_graph: Graph, old: Path) -> None:
    old.chmod(0o640)
    write_file(old, small_graph)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    read_file(old)


def test_a_symbolic_link_stays_one(small_graph: Graph, old: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    link = folder / "latest.kvant"
    link.symlink_to(Path("..") / old.name)
    write_file(link, small_graph)
    assert link.is_symlink()
    read_file(old)
    assert os.listdir(folder) == [link.name]


def test_names_as_long_as_the_file_system_allows(small_graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 249 + ".kvant")
    write_file(path, small_graph)
    read_file(path)
