"""The same bits on another processor: the library built for aarch64 repeats recorded runs under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvant.graph import Graph
from kvant.runtime import QuantizedModel, model

from . import test_buffers
from .builds import ROOT, build
from .networks import image, small_network
from .recording import Recorder
from .test_identical import STRATEGIES
from .test_random_graphs import CHANNELS, graphs

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
TARGET = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
EXAMPLES = 50
OPERATORS = {**STRATEGIES, "depthwise": test_buffers.depthwise(), "square": test_buffers.square()}

pytestmark = [
    pytest.mark.slow,
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")
        for tool in ("cmake", COMPILER, EMULATOR)
    ),
]


@pytest.fixture(scope="module", params=[COMPILER, "clang++"])
def replay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that repeats recorded runs on aarch64, with the library built by a compiler."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp("aarch64")
    target = [] if request.param == COMPILER else ["-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu"]
    build(folder, request.param, "-DCMAKE_BUILD_TYPE=Release", *TARGET, *target)
    program, library = folder / "replay", folder / "kernels"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kernels' / 'include'}"]
    source = Path(__file__).with_name("replay.cpp")
    link = [f"-L{library}", "-lkvant", f"-Wl,-rpath,{library}", "-o", program]
    subprocess.run([COMPILER, *flags, source, *link], check=True)
    return [EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(program)]


def record(graph: Graph, inputs: dict[str, np.ndarray]) -> list[bytes]:
    """A run that computes every activation, whose bits are those of the reference, and one of fused steps."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "NativeBackend", lambda: recorder)
        native = QuantizedModel(graph, backend="native", memory_budget="speed")
    found = native.run_all(inputs)
    native(**inputs)
    for name, expected in QuantizedModel(graph, backend="reference").run_all(inputs).items():
        np.testing.assert_array_equal(found[name], expected, strict=True)
    return recorder.cases


def check(replay: list[str], path: Path, cases: list[bytes]) -> None:
    assert cases
    path.write_bytes(b"".join(cases))
    for isa in ("neondot", "portable"):
        env = {**os.environ, "KVANT_ISA": isa}
        done = subprocess.run([*replay, path], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(f"{isa}: {len(cases)} cases")


def drawn(strategy: st.SearchStrategy) -> list:  # type: ignore[type-arg]
    """Examples of a strategy, the same ones every time."""
    found: list[object] = []

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def keep(example: object) -> None:
        found.append(example)

    keep()
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, replay: list[str], tmp_path: Path) -> None:
    cases = []
    for graph, inputs in drawn(OPERATORS[name]):
        cases += record(graph, {entry.name: value for entry, value in zip(graph.inputs, inputs, strict=True)})
    check(replay, tmp_path / "cases", cases)


@pytest.mark.parametrize("output_type", ["uint8", "int16"])
def test_a_network(output_type: str, replay: list[str], tmp_path: Path) -> None:
    cases = []
    for shape in [(1, 3, 16, 24), (2, 3, 37, 53)]:
        cases += record(small_network(output_type), {"image": image(shape)})
    check(replay, tmp_path / "cases", cases)


def test_random_networks(replay: list[str], tmp_path: Path) -> None:
    cases = []
    for index, graph in enumerate(drawn(graphs())):
        cases += record(
            graph, {"image": image((1 + index % 2, CHANNELS, 14 + index % 20, 40 - index % 20), seed=index)}
        )
    check(replay, tmp_path / "cases", cases)
