"""Steps that become one give the bits of the separate steps, and of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops, validate
from kvant.runtime import QuantizedModel, fuse, native, steps
from kvant.runtime.native import methods
from kvant.runtime.plan import Planner

from .graphs import random_integers, typed

KINDS = ("uint8", "int16")


def graph_of(shape: tuple[int, ...], x: TensorType) -> Graph:
    """A graph whose tensor "x" lies with its channels last."""
    graph = Graph(structure=0)
    graph.add_input("image", shape, FLOAT32)
    graph.add_node(ops.Quantize(), ["image"], "x", x)
    return graph


def add_layer(
    graph: Graph, rng, source: str, name: str, outputs: int, kernel: int, target: TensorType, **options
) -> str:
    """A convolution that keeps height and width; `groups`, `weights` (dtype), `clamp`."""
    channels = graph.inputs[0].shape[1] if source == "x" else options["channels"]
    groups, dtype = options.get("groups", 1), options.get("weights", "int8")
    values = random_integers(rng, (outputs, channels // groups, kernel, kernel), dtype)
    values = np.maximum(values, -np.iinfo(dtype).max)
    scales = rng.uniform(0.5, 2.0, outputs) * 0.3 / np.sqrt(values[0].size) / np.iinfo(dtype).max
    quantization = Quantization(tuple(float(np.float32(s)) for s in scales), 0, 0)
    weight = graph.add_constant(f"{name}.weight", values, quantization)
    pads = (kernel // 2,) * 2
    op = ops.Conv((1, 1), pads, pads, (1, 1), groups, options.get("clamp"))
    return graph.add_node(op, [source, weight], name, target)


def reals(rng, graph: Graph) -> np.ndarray:
    """Inputs over the whole range of "x", and beyond it."""
    low, high = graph.types["x"].integer_range()
    scale, zero = graph.types["x"].quantization.scale[0], graph.types["x"].quantization.zero_point
    return ((rng.uniform(low, high, graph.inputs[0].shape) - zero) * scale * 1.1).astype(np.float32)


def same(graph: Graph, x: np.ndarray) -> list[steps.Step]:
    """Check one input; return the steps that ran."""
    fused, reference = (QuantizedModel(graph, backend=name, memory_budget="speed") for name in ("native", "reference"))
    expected = reference.run_all({"image": x})  # nothing is fused
    for threads in (1, 3):
        native.set_num_threads(threads)
        found = fused(x)
        np.testing.assert_array_equal(found, expected[graph.outputs[0]], strict=True)
    native.set_num_threads(0)
    np.testing.assert_array_equal(reference(x), expected[graph.outputs[0]], strict=True)
    return list(Planner(graph).plan({"image": x.shape}).steps)


@pytest.mark.parametrize("method", [methods.DIRECT, *methods.LATE, *methods.LATE.values()])
def test_residuals(method: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        kind = data.draw(st.sampled_from(KINDS if method == methods.DIRECT else ["uint8"]))
        small = data.draw(st.sampled_from([1, 3]))
        kernel = {"direct": small, "winograd": 3, "transform": 5}[method.removesuffix("-late")]
        channels = data.draw(st.sampled_from([3, 8, 17, 33, 64, 70] if method == methods.DIRECT else [33, 64, 70]))
        weights = data.draw(st.sampled_from(["int8", "int16"] if method == methods.DIRECT else ["int8"]))
        zero = st.sampled_from([0, 1, 120, 255]) if kind == "uint8" else st.just(0)
        x_type, y_type, sum_type = (
            typed(kind, data.draw(st.sampled_from([0.02, 0.05])), data.draw(zero)) for _ in "xys"
        )
        shape = (data.draw(st.integers(1, 2)), channels, data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13)))
        graph = graph_of(shape, x_type)
        clamp = data.draw(st.sampled_from([None, (0.0, None), (-1.0, 1.0)]))
        add_layer(graph, rng, "x", "y", channels, kernel, y_type, weights=weights, clamp=clamp)
        order = data.draw(st.sampled_from([["x", "y"], ["y", "x"]]))
        graph.add_node(ops.Binary("add", data.draw(st.sampled_from([None, (0.0, None)]))), order, "sum", sum_type)
        graph.outputs = ("sum",)
        validate(graph)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(methods, "seconds", lambda work, name, size, speed: 0.0 if name == method else 1.0)
            ran = same(graph, reals(rng, graph))
        works = [step.work for step in ran]
        assert not any(isinstance(work, steps.Binary) for work in works)
        assert any(isinstance(work, steps.Conv) and work.added for work in works)

    check()


def test_pairs(monkeypatch) -> None:
    monkeypatch.setattr(fuse, "_LEAST_BYTES", 0)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        kinds = [data.draw(st.sampled_from(KINDS)) for _ in "abc"]
        channels, outputs = (
            data.draw(st.sampled_from([1, 3, 5, 31, 33, 64, 97])),
            data.draw(st.sampled_from([1, 19, 64, 70])),
        )
        kernel, weights = data.draw(st.sampled_from([1, 3, 3, 5])), data.draw(st.sampled_from(["int8", "int16"]))
        adds = kinds[0] == kinds[2] and channels > 1 and data.draw(st.booleans())
        outputs = channels if adds else outputs
        types = [typed(kind, data.draw(st.sampled_from([0.02, 0.05]))) for kind in kinds]
        shape = (data.draw(st.integers(1, 2)), channels, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 13)))
        graph = graph_of(shape, types[0])
        add_layer(graph, rng, "x", "between", channels, kernel, types[1], groups=channels, weights=weights)
        add_layer(graph, rng, "between", "y", outputs, 1, types[2], channels=channels, weights=weights)
        if adds:
            graph.add_node(ops.Binary("add"), ["y", "x"], "sum", types[2])
        graph.outputs = ("sum" if adds else "y",)
        validate(graph)
        ran = same(graph, reals(rng, graph))
        assert [type(step.work) for step in ran] == [steps.Quantize, steps.ConvPair]
        assert bool(ran[-1].work.pointwise.added) == adds

    check()


def test_what_others_read_is_written() -> None:
    """A result that is an output, or read twice, or added to itself, keeps its step."""
    rng = np.random.default_rng(0)
    for outputs, operands in ((("sum", "y"), ["y", "x"]), (("sum",), ["y", "y"])):
        graph = graph_of((1, 8, 6, 6), typed("uint8"))
        graph.structure = [0, 1][: len(outputs)]
        add_layer(graph, rng, "x", "y", 8, 3, typed("uint8"))
        graph.add_node(ops.Binary("add"), operands, "sum", typed("uint8", 0.1))
        graph.outputs = outputs
        validate(graph)
        kinds = [type(step.work) for step in Planner(graph).plan({"image": (1, 8, 6, 6)}).steps]
        assert steps.Binary in kinds
        x = reals(rng, graph)
        found, expected = (QuantizedModel(graph, backend=name)(x) for name in ("native", "reference"))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_small_pairs_stay_apart() -> None:
    """Rows of both layers are harder to share among threads than whole layers, and small ones stay in the cache."""
    rng = np.random.default_rng(0)
    graph = graph_of((1, 64, ("h",), 64), typed("uint8"))
    add_layer(graph, rng, "x", "between", 64, 3, typed("uint8"), groups=64)
    add_layer(graph, rng, "between", "y", 8, 1, typed("uint8"), channels=64)
    graph.outputs, graph.example = ("y",), {"h": 8}
    validate(graph)
    for height, wanted in ((8, steps.Conv), (64, steps.ConvPair)):
        assert isinstance(Planner(graph).plan({"image": (1, 64, height, 64)}).steps[-1].work, wanted)
