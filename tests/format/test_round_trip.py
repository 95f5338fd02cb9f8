"""What is written is what is read, the same arguments give the same bytes, and other tools can list the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import kvant
from kvant.errors import GraphError
from kvant.format import Golden, from_bytes, read_file, to_bytes, write_file
from kvant.graph import FLOAT32, Graph, Quantization, TensorType, ops


def assert_same_graph(a: Graph, b: Graph) -> None:
    assert (a.inputs, a.nodes, a.outputs, a.structure, a.types, a.example) == (
        (b.inputs, b.nodes, b.outputs, b.structure, b.types, b.example)
    )
    assert a.constants.keys() == b.constants.keys()
    for name, value in a.constants.items():
        assert value.dtype == b.constants[name].dtype
        np.testing.assert_array_equal(value, b.constants[name])


def test_everything_comes_back(small_graph: Graph, small_golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "a.kvant"
    write_file(path, small_graph, golden=[small_golden], metadata={"ß": "1", "a": "2"})
    contents = read_file(path)
    assert_same_graph(contents.graph, small_graph)
    assert contents.metadata == {"ß": "1", "a": "2"}
    np.testing.assert_array_equal(contents.golden[0].inputs["x"], small_golden.inputs["x"])
    np.testing.assert_array_equal(contents.golden[0].outputs[0], small_golden.outputs[0])
    assert contents.info.version == (1, 0)
    assert contents.info.file_bytes == path.stat().st_size
    assert contents.info.producer == f"kvant {kvant.__version__}"


def test_reading_and_writing_again_gives_the_same_bytes(small_file: bytes) -> None:
    contents = from_bytes(small_file)
    assert to_bytes(contents.graph, golden=contents.golden, metadata=contents.metadata) == small_file


def test_the_order_of_tables_does_not_change_the_bytes(small_graph: Graph) -> None:
    other = small_graph.copy()
    other.types = dict(reversed(small_graph.types.items()))
    other.constants = dict(reversed(small_graph.constants.items()))
    other.example = dict(reversed(small_graph.example.items()))
    assert to_bytes(other, metadata={"b": "", "a": ""}) == to_bytes(small_graph, metadata={"a": "", "b": ""})


def test_arrays_are_read_only_aligned_views(small_file: bytes) -> None:
    graph = from_bytes(bytearray(small_file)).graph
    for value in graph.constants.values():
        assert not value.flags.writeable
        assert not value.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        graph.constants["conv.bias"][0] = 1


def test_tensors_are_mapped_not_copied(small_graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "a.kvant"
    write_file(path, small_graph)
    graph = read_file(path).graph
    before = graph.constants["conv.weight"].copy()
    write_file(path, small_graph, metadata={"now": "another file"})
    np.testing.assert_array_equal(graph.constants["conv.weight"], before)


def test_other_tools_can_list_it(small_graph: Graph, small_file: bytes) -> None:
    tensors = safetensors.numpy.load(small_file)
    assert set(tensors) == {
        "conv.weight", "conv.bias", "conv.weight.scale", "golden.0.input.x", "golden.0.output.0",
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["conv.weight"], small_graph.constants["conv.weight"])


def test_data_starts_at_a_multiple_of_64_and_tensors_are_aligned(small_file: bytes) -> None:
    assert (8 + int.from_bytes(small_file[:8], "little")) % 64 == 0
    aligned = np.frombuffer(bytearray(len(small_file) + 64), np.uint8)
    start = -aligned.ctypes.data % 64
    view = aligned[start : start + len(small_file)]
    view[:] = np.frombuffer(small_file, np.uint8)
    for value in from_bytes(view.data).graph.constants.values():
        assert value.flags.aligned


def test_names_that_collide_are_kept_apart(small_graph: Graph) -> None:
    odd = {"conv.weight.scale": 1, "__metadata__": 2, "golden.0.input.x": 3}
    for name, value in odd.items():
        small_graph.add_constant(name, np.full(3, value, np.int32))
    contents = from_bytes(to_bytes(small_graph, golden=[Golden(
        {"x": np.zeros((1, 2, 1, 1), np.float32)}, [np.zeros((1, 4, 1, 1), np.float32)]
    )]))  # fmt: skip
    assert_same_graph(contents.graph, small_graph)
    assert contents.golden[0].inputs["x"].shape == (1, 2, 1, 1)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8", "int16", "int32", "int64"])
def test_every_type_of_constant(small_graph: Graph, dtype: str) -> None:
    value = np.arange(6).reshape(2, 3).astype(dtype)
    small_graph.add_constant("extra", value)
    small_graph.add_constant("scalar", value[1, 2])
    graph = from_bytes(to_bytes(small_graph)).graph
    np.testing.assert_array_equal(graph.constants["extra"], value)
    assert graph.constants["scalar"].shape == ()
    assert graph.constants["extra"].dtype == dtype


def test_strided_and_foreign_order_constants(small_graph: Graph) -> None:
    value = np.arange(24, dtype=np.int32).reshape(4, 6)
    small_graph.types["odd"] = TensorType("int32")
    small_graph.constants["odd"] = value[::2, ::-1]
    np.testing.assert_array_equal(from_bytes(to_bytes(small_graph)).graph.constants["odd"], value[::2, ::-1])


def test_outputs_of_any_structure_keep_their_order(small_graph: Graph) -> None:
    small_graph.structure = {"paf": 0, "heat": [0, {"deep": 0}]}
    graph = from_bytes(to_bytes(small_graph)).graph
    assert list(graph.structure) == ["paf", "heat"]  # type: ignore[arg-type]
    assert graph.structure == small_graph.structure


def test_scales_come_back_exactly(small_graph: Graph) -> None:
    for scale in (2.0**-149, float(np.finfo(np.float32).max), float(np.float32(1) / np.float32(3))):
        small_graph.types["y_q"] = TensorType("uint8", Quantization((scale,), 0))
        assert from_bytes(to_bytes(small_graph)).graph.types["y_q"].quantization.scale == (scale,)  # type: ignore[union-attr]


def test_a_float_graph_is_a_graph_too() -> None:
    graph = Graph()
    graph.add_input("x", (("batch",), 3))
    graph.example = {"batch": 1}
    program = (ops.Step("input"), ops.Step("leaky_relu", 1))
    graph.add_node(ops.Pointwise(program), ["x"], "y", FLOAT32)
    graph.add_node(ops.Reshape((("batch", 3, "*"),)), ["y"], "z")
    graph.outputs = ("z",)
    data = to_bytes(graph)
    contents = from_bytes(data)
    assert contents.graph.nodes == graph.nodes
    assert to_bytes(contents.graph) == data


def test_names_in_any_script(small_graph: Graph) -> None:
    small_graph.add_constant("вес/重み/🙂", np.ones(2, np.float32))
    assert "вес/重み/🙂" in from_bytes(to_bytes(small_graph)).graph.constants


class TestWhatCannotBeStored:
    def test_values_that_are_not_finite(self, small_graph: Graph) -> None:
        small_graph.add_node(
            ops.Pad((0, 0, 0, 0), (0, 0, 0, 1), value=float("-inf")), ["y"], "padded", FLOAT32
        )  # fmt: skip
        with pytest.raises(GraphError, match="node 'padded' cannot be stored"):
            to_bytes(small_graph)

    def test_attributes_of_another_type(self, small_graph: Graph) -> None:
        conv = ops.Conv([1, 1], (1, 1), (1, 1), (1, 1))  # type: ignore[arg-type]
        small_graph.nodes[1] = small_graph.nodes[1].__class__(conv, small_graph.nodes[1].inputs, "y_q")
        with pytest.raises(GraphError, match="y_q"):
            to_bytes(small_graph)
        conv = ops.Conv((np.int64(1), 1), (1, 1), (1, 1), (1, 1))  # type: ignore[arg-type]
        small_graph.nodes[1] = small_graph.nodes[1].__class__(conv, small_graph.nodes[1].inputs, "y_q")
        with pytest.raises(GraphError, match="int64"):
            to_bytes(small_graph)

    def test_empty_constants(self, small_graph: Graph) -> None:
        small_graph.add_constant("nothing", np.zeros((2, 0), np.float32))
        with pytest.raises(GraphError, match=r"\(2, 0\)"):
            to_bytes(small_graph)

    def test_golden_vectors_that_do_not_fit(self, small_graph: Graph, small_golden: Golden) -> None:
        with pytest.raises(GraphError, match="inputs"):
            to_bytes(small_graph, golden=[Golden({}, small_golden.outputs)])
        with pytest.raises(GraphError, match="outputs"):
            to_bytes(small_graph, golden=[Golden(small_golden.inputs, [])])
        with pytest.raises(GraphError, match=r"expected \(1, 4, 3, 2\)"):
            to_bytes(small_graph, golden=[Golden(small_golden.inputs, [np.zeros(3, np.float32)])])
        with pytest.raises(GraphError, match="float64"):
            to_bytes(small_graph, golden=[Golden(small_golden.inputs, [np.ones((1, 4, 3, 2))])])

    def test_metadata_that_is_not_text(self, small_graph: Graph) -> None:
        with pytest.raises(GraphError):
            to_bytes(small_graph, metadata={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(GraphError, match="metadata key"):
            to_bytes(small_graph, metadata={"k" * 257: ""})
        with pytest.raises(GraphError):
            to_bytes(small_graph, metadata={"a": "\ud800"})

    def test_a_header_beyond_the_limit(self, small_graph: Graph) -> None:
        with pytest.raises(GraphError, match="8388608"):
            to_bytes(small_graph, metadata={"a": "b" * 2**23})

    def test_a_graph_that_breaks_its_rules_leaves_no_file(self, small_graph: Graph, tmp_path: Path) -> None:
        small_graph.outputs = ("nowhere",)
        with pytest.raises(GraphError, match="nowhere"):
            write_file(tmp_path / "a.kvant", small_graph)
        assert os.listdir(tmp_path) == []
