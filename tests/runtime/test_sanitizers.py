"""The kernel tests once more with AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import OWN_BUFFERS

ROOT = Path(__file__).parents[2]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
COMPILER = os.environ.get("CXX", "g++")

pytestmark = pytest.mark.slow


def preloaded() -> str:
    """What has to be loaded before Python: AddressSanitizer, and the library whose exceptions it watches."""
    for tool in ("cmake", COMPILER):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [COMPILER, f"-print-file-name={name}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        if not Path(paths[-1]).is_absolute():  # the bare name: there is none
            pytest.skip(f"{COMPILER} has no {name}")
    return " ".join(paths)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Python loads a library with sanitizers and tensors have buffers of their own."""
    preload = preloaded()
    folder = tmp_path_factory.mktemp("sanitizers")
    flags = [f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_CXX_FLAGS={SANITIZERS}"]
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, *flags], check=True)
    subprocess.run(["cmake", "--build", folder, "--parallel"], check=True)
    return {
        **os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "KVANT_LIBRARY": str(folder / "kernels" / "libkvant.so"), OWN_BUFFERS: "1",
    }  # fmt: skip


def python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_an_element_behind_a_buffer_is_seen(sanitized):
    """The setup itself: the library reads one element more than there are."""
    code = (
        "import numpy as np\n"
        "from ctypes import byref, c_float, c_int64, c_void_p\n"
        "from kvant.runtime.native import library\n"
        "x, y, target = np.zeros({}, np.float32), np.zeros(10**5, np.uint8), library.Target(0, 0, 0, 255)\n"
        "pointers = [c_void_p(a.ctypes.data) for a in (x, y)]\n"
        "call = library.load_library().kvant_quantize\n"
        "sizes = c_int64(1), c_int64(1), c_int64(10**5)\n"
        "assert call(*sizes, pointers[0], c_float(1), byref(target), pointers[1]) == 0\n"
    )
    exact = python(code.format(10**5), sanitized)
    assert exact.returncode == 0, exact.stderr
    short = python(code.format(10**5 - 1), sanitized)
    assert short.returncode != 0
    assert "heap-buffer-overflow" in short.stderr


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512vnni"])
def test_kernels(isa, sanitized):
    env = {**sanitized, "KVANT_ISA": isa}
    found = python("from kvant.runtime import native; print(native.isa())", env)
    assert found.returncode == 0, found.stderr
    if found.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    # Reports of the sanitizers go to the real standard error, which pytest would keep and lose.
    command = [sys.executable, "-m", "pytest", "-v", "--capture=sys", "-p", "no:cacheprovider", Path(__file__).parent]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20000:]
