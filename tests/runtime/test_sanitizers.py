"""The kernel tests once more with AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .builds import build, python, run_kernel_tests
from .conftest import OWN_BUFFERS

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
    # Lines are enough to find an error; to follow variables takes the compiler minutes.
    flags = [
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1 -DNDEBUG",
        f"-DCMAKE_CXX_FLAGS={SANITIZERS}",
    ]  # fmt: skip
    library = build(tmp_path_factory.mktemp("sanitizers"), COMPILER, *flags)
    return {
        **os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "KVANT_LIBRARY": library, OWN_BUFFERS: "1",
    }  # fmt: skip


def test_an_element_behind_a_buffer_is_seen(sanitized):
    """The setup itself: the library reads one element more than there are."""
    code = (
        "import numpy as np\n"
        "from ctypes import byref, c_float, c_int32, c_int64, c_void_p\n"
        "from kvant.runtime.native import library\n"
        "x, y, target = np.zeros({}, np.float32), np.zeros(10**5, np.uint8), library.Target(0, 0, 0, 255)\n"
        "pointers = [c_void_p(a.ctypes.data) for a in (x, y)]\n"
        "call = library.load_library().kvant_quantize\n"
        "sizes = c_int64(1), c_int64(1), c_int64(10**5)\n"
        "assert call(*sizes, pointers[0], c_float(1), c_int32(0), byref(target), pointers[1]) == 0\n"
    )
    exact = python(code.format(10**5), sanitized)
    assert exact.returncode == 0, exact.stderr
    short = python(code.format(10**5 - 1), sanitized)
    assert short.returncode != 0
    assert "heap-buffer-overflow" in short.stderr


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512vnni"])
def test_kernels(isa, sanitized):
    run_kernel_tests(isa, sanitized)
