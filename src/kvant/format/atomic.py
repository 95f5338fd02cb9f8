"""Writing a file so that there is always the old one or the new one, never half of one; and what is no file."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvant.errors import KvantError, SaveError


def write_atomically(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Write ``pieces`` to ``path``, replacing a file that is there.

    A temporary file in the same folder is written, flushed to the disk and renamed. A symbolic link stays and its
    target is replaced; permissions are those of the old file, or those that the umask gives.

    Raises:
        SaveError: the folder does not exist or is not writable, the disk is full... The old file is untouched.
    """
    with replacing(path) as temporary, explained(path), temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = ".tmp") -> Iterator[Path]:
    """A new, empty file beside ``path``, for what writes by name; after the block it takes the place of ``path``.

    It is flushed to the disk before. If the block raises, it is deleted, and a file that was there before stays.

    Args:
        suffix: of the temporary file's name, for programs that go by it.

    Raises:
        SaveError: the folder does not exist or is not writable, the disk is full...
    """
    target = Path(os.path.realpath(path))
    with explained(path):
        temporary = _create_beside(target, suffix)
    try:
        yield temporary
        with explained(path):
            _flush(temporary)
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with explained(path, "The new file is in place, but its folder could not be flushed to the disk."):
        _sync_folder(target.parent)


@contextlib.contextmanager
def explained(
    path: str | os.PathLike[str], state: str = "A file that was there before is unchanged."
) -> Iterator[None]:
    """Errors of the system in the block as SaveError, which says what that means for the user's file at ``path``."""
    try:
        yield
    except OSError as error:
        failure = SaveError(f"could not save {os.fspath(path)!r}: {error.strerror or error}. {state}")
        failure.errno = error.errno
        raise failure from error


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Find out before long work that ``write_atomically`` could not write there; for a moment a file is beside it.

    Raises:
        SaveError: the folder does not exist or is not writable, the disk is full...
    """
    with explained(path):
        _create_beside(Path(os.path.realpath(path)), ".tmp").unlink()


def check_regular(path: str | os.PathLike[str], error: type[KvantError]) -> None:
    """Raise ``error`` for what could be waited for, or read, without an end; opening names what does not exist."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"{os.fspath(path)!r} is a device, a pipe or a socket, not a file")


def _create_beside(target: Path, suffix: str) -> Path:
    mode = _check_target(target)
    # A name of its own length: the target's name may already be as long as the file system allows.
    temporary = target.parent / f".kvant-{secrets.token_hex(8)}{suffix}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return temporary


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_target(target: Path) -> int | None:
    """Permissions of the file to replace, None if there is none."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the name of a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket; give the name of a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file that is there is write-protected")
    return stat.S_IMODE(status.st_mode)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where the file system can do that and the folder may be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
