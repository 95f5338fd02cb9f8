"""How many threads there are by default: those that a container's share of the processors keeps busy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvant.runtime.native.processors import available_processors


@pytest.fixture(autouse=True)
def _many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def machine(root: Path, groups: str, **files: str) -> Path:
    """A tree as the system shows it: `groups` is what it says of the process, "__" in names is a slash."""
    texts = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [("max 100000", 16), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 16)],
)
def test_a_container_of_version_2(tmp_path: Path, limit: str, wanted: int) -> None:
    root = machine(tmp_path, "0::/", **{"cpu.max": limit})
    assert available_processors(root) == wanted


def test_the_smallest_share_of_groups_within_groups(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/kubepods/pod1/container",
        **{"kubepods__cpu.max": "1200000 100000", "kubepods__pod1__cpu.max": "300000 100000"},
        **{"kubepods__pod1__container__cpu.max": "max 100000", "other__cpu.max": "100000 100000"},
    )
    assert available_processors(root) == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "wanted"), [("-1", 16), ("150000", 3), ("10000", 1)])
def test_version_1(tmp_path: Path, mount: str, quota: str, wanted: int) -> None:
    group = f"{mount}__docker__cpu.cfs_"
    files = {f"{group}quota_us": quota, f"{group}period_us": "50000"}
    root = machine(tmp_path, "7:pids:/docker\n1:cpu,cpuacct:/docker\n0::/", **files)
    assert available_processors(root) == wanted


def test_a_container_that_is_told_its_path_outside(tmp_path: Path) -> None:
    files = {"cpu__cpu.cfs_quota_us": "400000", "cpu__cpu.cfs_period_us": "100000"}
    assert available_processors(machine(tmp_path, "1:cpu:/docker/0123", **files)) == 4


@pytest.mark.parametrize("text", ["", "max", "many 100000", "200000 0", "-5 100000", "1 2 3", "\x00"])
def test_what_says_nothing_limits_nothing(tmp_path: Path, text: str) -> None:
    assert available_processors(machine(tmp_path, "0::/\nnonsense\n::::", **{"cpu.max": text})) == 16


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert available_processors(tmp_path) == 16


def test_no_more_than_the_process_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert available_processors(machine(tmp_path, "0::/", **{"cpu.max": "800000 100000"})) == 1


@pytest.mark.parametrize(
    ("asked", "wanted"), [("3", "3 2 3"), ("", "1 2 1"), ("0", "1 2 1"), ("2000", "1 2 1"), (None, "1 2 1")]
)
def test_the_default_of_a_process(asked: str | None, wanted: str) -> None:
    """One that may run on a single processor; what the environment asks for counts more, what is set counts most."""
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import kvant; found = [kvant.num_threads()]\n"
        "for count in (2, 0): kvant.set_num_threads(count); found.append(kvant.num_threads())\n"
        "print(*found)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KVANT_NUM_THREADS"}
    if asked is not None:
        environment["KVANT_NUM_THREADS"] = asked
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == wanted.split()
