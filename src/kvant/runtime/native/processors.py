"""How many processors a process may use: those that it may run on, and the share of their time that its group has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
# Where the system shows groups of processes: version 2 alone, beside version 1, and version 1 in its two usual places.
_UNIFIED = "sys/fs/cgroup", "sys/fs/cgroup/unified"
_OF_PROCESSORS = "sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"


def available_processors(root: Path = _ROOT) -> int:
    """Return how many processors keep busy without the system stopping this process.

    In a container that may use the time of two processors, threads on all sixteen of the machine soon use up what
    is meant for a tenth of a second, and then all stand still. `root` is where the system's files lie.

    >>> available_processors() >= 1
    True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(share) for share in _shares(root))]))


def _shares(root: Path) -> Iterator[float]:
    """Processors whose time the process's groups may use, those that contain them included."""
    for folder in _folders(root):
        limit = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(limit) == 2 and all(word.isdigit() for word in limit) and int(limit[1]) > 0:  # else "max" or -1
            yield int(limit[0]) / int(limit[1])


def _folders(root: Path) -> Iterator[Path]:
    """Of each group, with those that contain it: a line of the list is number:controllers:path."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        mounts = _UNIFIED if not controllers else _OF_PROCESSORS if "cpu" in controllers.split(",") else ()
        for mount in mounts:
            group = PurePosixPath(path.lstrip("/"))
            # A container may see its own group as the root, and yet be told the path that it has outside.
            yield from (root / mount / parent for parent in (group, *group.parents))


def _words(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    """What the file holds; nothing where the system has no such file, or shows it to nobody."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
