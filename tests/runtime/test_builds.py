"""The kernel tests with other builds: by Clang, and AVX-VNNI's kernels by the same instruction of AVX-512 VNNI."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .builds import build, run_kernel_tests

pytestmark = pytest.mark.slow


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.fixture(scope="module")
def by_clang(tmp_path_factory: pytest.TempPathFactory) -> str:
    needs("cmake", "clang++")
    return build(tmp_path_factory.mktemp("clang"), "clang++", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Werror")


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512vnni"])
def test_clang(isa: str, by_clang: str) -> None:
    run_kernel_tests(isa, {"KVANT_LIBRARY": by_clang})


def test_avxvnni(tmp_path: Path) -> None:
    """Processors with AVX-512 VNNI have its instruction too, in another encoding."""
    needs("cmake", "g++")
    library = build(tmp_path, "g++", "-DCMAKE_BUILD_TYPE=Release", "-DKVANT_AVXVNNI_AS_AVX512=ON")
    run_kernel_tests("avxvnni", {"KVANT_LIBRARY": library})
