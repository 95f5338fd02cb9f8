"""The library built in other ways, and the kernel tests run with such a build."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvant.runtime import native

ROOT = Path(__file__).parents[2]
# Instruction sets without Winograd and the number-theoretic transform.
ONLY_DIRECT = native.isa() in ("portable", "neondot")


def build(folder: Path, compiler: str, *flags: str) -> str:
    """Build the library in a folder; the path of it."""
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DCMAKE_CXX_COMPILER={compiler}", *flags]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", folder, "--parallel"], check=True)
    return str(folder / "kernels" / "libkvant.so")


def python(code: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def run_kernel_tests(isa: str, env: Mapping[str, str]) -> None:
    """All fast tests of the runtime, restricted to an instruction set; skips where the machine does not have it."""
    env = {**os.environ, **env, "KVANT_ISA": isa}
    found = python("from kvant.runtime import native; print(native.isa())", env)
    assert found.returncode == 0, found.stderr
    if found.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    # Reports of sanitizers go to the real standard error, which pytest would keep and lose.
    command = [sys.executable, "-m", "pytest", "-v", "--capture=sys", "-p", "no:cacheprovider", Path(__file__).parent]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20000:]
