"""QuantizedModel: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch

import kvant
from kvant.errors import BackendError, GraphError, InputError, SaveError, VerificationError
from kvant.format import Golden
from kvant.graph import Graph, TensorType, ops, validate
from kvant.runtime import QuantizedModel
from kvant.runtime.plan import CACHED_PLANS

from .graphs import one_op, typed
from .networks import image, small_network

BACKENDS = ["native", "reference"]


def leaves(outputs: dict) -> list[np.ndarray]:
    return [outputs["heat"], outputs["rest"][0], outputs["rest"][1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_have_the_models_structure(backend):
    outputs = QuantizedModel(small_network(), backend=backend)(image())
    assert list(outputs) == ["heat", "rest"] and isinstance(outputs["rest"], tuple)
    assert outputs["heat"].shape == (1, 5, 8, 12) and outputs["rest"][0].shape == (1, 32)
    assert outputs["heat"].dtype == np.float32
    assert len(np.unique(outputs["heat"])) > 20


@pytest.mark.parametrize("output_type", ["uint8", "int16"])
def test_both_back_ends_agree_on_every_size_and_tensor(output_type):
    graph = small_network(output_type)
    native, reference = (QuantizedModel(graph, backend=name) for name in BACKENDS)
    for shape in [(1, 3, 16, 24), (2, 3, 33, 17), (3, 3, 8, 9), (1, 3, 100, 40), (1, 3, 16, 24)]:
        x = image(shape, seed=sum(shape))
        for a, b in zip(leaves(native(x)), leaves(reference(x)), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    everything = [model.run_all({"image": x}) for model in (native, reference)]
    assert list(everything[0]) == list(graph.activations())
    for name in graph.activations():
        np.testing.assert_array_equal(everything[0][name], everything[1][name], strict=True)
    np.testing.assert_array_equal(everything[0]["heat"], native(x)["heat"])


def test_torch_in_gives_torch_out():
    model = QuantizedModel(small_network(), backend="reference")
    outputs = model(torch.from_numpy(image()))
    assert isinstance(outputs["heat"], torch.Tensor)
    np.testing.assert_array_equal(outputs["heat"].numpy(), model(image=image())["heat"])
    assert isinstance(model(image=torch.from_numpy(image()).requires_grad_())["heat"], torch.Tensor)


def test_results_are_not_overwritten_by_the_next_call():
    model = QuantizedModel(small_network(), backend="native")
    first = model(image())["heat"]
    before = first.copy()
    model(image(seed=1))
    np.testing.assert_array_equal(first, before)


def test_strided_and_big_endian_inputs():
    model = QuantizedModel(small_network(), backend="native")
    x = image((1, 16, 24, 3)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model(x)["heat"], model(np.ascontiguousarray(x))["heat"])
    np.testing.assert_array_equal(model(x.astype(">f4"))["heat"], model(x)["heat"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_are_read_where_they_are(backend):
    model = QuantizedModel(small_network(pixels=True), backend=backend)
    assert model.takes_pixels and not QuantizedModel(small_network(), backend=backend).takes_pixels
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    other = 255 - picture
    expected = [leaves(model(given.transpose(0, 3, 1, 2).astype(np.float32))) for given in (picture, other)]
    for _ in range(2):  # the first call may have to plan
        for given, wanted in zip((picture, other), expected, strict=True):
            last = given.transpose(0, 3, 1, 2)
            for pixels in (last, np.ascontiguousarray(last), torch.from_numpy(last)):
                for found, one in zip(leaves(model(pixels)), wanted, strict=True):
                    np.testing.assert_array_equal(np.asarray(found), one)
    wide = np.repeat(picture, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(model(wide.transpose(0, 3, 1, 2))["heat"], expected[0][0])
    with pytest.raises(InputError, match="dtype int8"):
        model(picture.view(np.int8).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_more_than_convolutions_see(backend):
    graph = small_network(pixels=True)
    graph.outputs, graph.structure = (*graph.outputs, "quantized"), [0, 1, 2]
    model = QuantizedModel(graph, backend=backend)
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    for _ in range(2):
        np.testing.assert_array_equal(model(picture)[2], picture)


BAD = [
    (lambda: (image()[0],), r"'image' has rank 3 \(shape 3 x 16 x 24\), expected rank 4: batch x 3 x height x width"),
    (lambda: (image((1, 4, 16, 24)),), r"'image' has shape 1 x 4 x 16 x 24, expected batch x 3 x height x width"),
    (lambda: (image().astype(np.float64),), r"dtype float64, expected float32; convert it with \.astype"),
    (lambda: (torch.from_numpy(image()).half(),), "dtype float16"),
    (lambda: (torch.from_numpy(image()).bfloat16(),), "cannot be read.*; give a dense tensor of torch.float32"),
    (lambda: (image().astype(np.uint8),), "dtype uint8"),
    (lambda: (np.zeros((0, 3, 16, 24), np.float32),), "is empty"),
    (lambda: (np.full((1, 3, 8, 8), np.nan, np.float32),), "NaN or infinity"),
    (lambda: (np.full((1, 3, 8, 8), -np.inf, np.float32),), "NaN or infinity"),
    (lambda: (np.full((1, 3, 1, 1), 1, np.float32),), "maxpool 'pooled'"),
    (lambda: ("a string",), "'image' is a str, expected an array of float32"),
    (lambda: (None,), "'image' is a NoneType, expected an array"),
    (lambda: ([[1], [2, 3]],), "cannot be read"),
    (lambda: (), "'image' is missing"),
    (lambda: (image(), image()), "2 inputs were given"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_refused_wherever_it_is(backend, value):
    model = QuantizedModel(small_network(), backend=backend)
    good = image((1, 3, 67, 131))
    before = model(good)["heat"]
    for index in (0, 5000, good.size // 2, good.size - 1):
        bad = good.copy()
        bad.reshape(-1)[index] = value
        for inputs in (bad, bad.transpose(0, 1, 3, 2)):
            with pytest.raises(InputError, match=r"'image' \(shape .*\) holds NaN or infinity"):
                model(inputs)
        with pytest.raises(InputError, match="NaN or infinity"):
            model.run_all({"image": bad})
    np.testing.assert_array_equal(model(good)["heat"], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_others_see_too(backend):
    """What is only quantized is read where the caller has it; this input is an output and quantized in two shapes."""
    graph = Graph()
    graph.add_input("x", (2, 6))
    graph.add_node(ops.Quantize(), ["x"], "plain", typed("uint8", 0.05, 100))
    graph.add_node(ops.Reshape((3, 4)), ["x"], "wide", TensorType("float32"))
    graph.add_node(ops.Quantize(), ["wide"], "other", typed("int16", 0.05, 0))
    graph.outputs = ("plain", "other", "wide")
    graph.structure = [0, 1, 2]
    validate(graph)
    model = QuantizedModel(graph, backend=backend)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(2, 6)).astype(np.float32)
        plain, other, wide = model(x.T.copy().T)
        rounded = np.rint(x / np.float32(0.05))
        np.testing.assert_array_equal(plain, rounded + 100)
        np.testing.assert_array_equal(other, rounded.reshape(3, 4))
        np.testing.assert_array_equal(wide, x.reshape(3, 4))


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_inputs_are_refused_by_name(make, message):
    model = QuantizedModel(small_network(), backend="reference")
    with pytest.raises(InputError, match=message):
        model(*make())


def test_masked_elements_are_not_read():
    """NumPy's masked arrays keep some number below the mask, and asarray gives it."""
    model = QuantizedModel(small_network(), backend="reference")
    x = np.ma.masked_greater(image(), 1e9)
    np.testing.assert_array_equal(model(x)["heat"], model(image())["heat"])
    x[0, 0, 0, 0] = np.ma.masked
    with pytest.raises(InputError, match=r"'image'.*masked; fill them first: x.filled\(0\)"):
        model(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_like_the_last_one_is_checked_as_the_first_was(backend):
    """Inputs like those of the last call take a shorter way, others must not."""
    model = QuantizedModel(small_network(), backend=backend)
    x = image()
    expected = model(x)["heat"]
    for make, message in BAD:
        np.testing.assert_array_equal(model(x)["heat"], expected)
        with pytest.raises(InputError, match=message):
            model(*make())
    same = [x[:, :, :, :], x.view(type("Own", (np.ndarray,), {})), x.astype(">f4"), x.transpose(3, 2, 1, 0).copy().T]
    for other in [*same, torch.from_numpy(x)]:
        np.testing.assert_array_equal(np.asarray(model(other)["heat"]), expected)
    every = model.run_all({"image": x})
    np.testing.assert_array_equal(model(x)["heat"], every["heat"])


def test_unknown_and_doubled_names_are_refused():
    model = QuantizedModel(small_network(), backend="reference")
    with pytest.raises(InputError, match="unknown input 'picture'"):
        model(picture=image())
    with pytest.raises(InputError, match="given twice"):
        model(image(), image=image())


def test_a_sum_beyond_float32_is_not_mistaken_for_infinity():
    outputs = QuantizedModel(small_network(), backend="native")(np.full((1, 3, 8, 8), 3e38, np.float32))
    assert np.isfinite(outputs["heat"]).all()


def two_inputs() -> Graph:
    graph = Graph()
    for name in ("a", "b"):
        graph.add_input(name, (("n",), 2), typed("uint8"))
    graph.add_input("index", (("k",),), TensorType("int64"))
    total = graph.add_node(ops.Binary("add"), ["a", "b"], "sum", typed("uint8"))
    graph.add_node(ops.Gather(0), [total, "index"], "y", typed("uint8"))
    graph.outputs, graph.example = ("y",), {"n": 3, "k": 1}
    return graph


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_symbol_has_one_size_and_indices_any_integer_type(backend):
    model = QuantizedModel(two_inputs(), backend=backend)
    ones = np.ones((3, 2), np.uint8)
    for dtype in (np.int8, np.uint16, np.int32, np.int64, np.uint64):
        assert model(ones, ones, index=np.array([0, 2], dtype)).shape == (2, 2)
    with pytest.raises(InputError, match="'b' has shape 4 x 2, but 'n' is 3"):
        model(ones, np.ones((4, 2), np.uint8), np.array([0]))
    with pytest.raises(InputError, match="dtype float64, expected int64"):
        model(ones, ones, np.array([0.0]))
    with pytest.raises(InputError, match="dtype bool"):
        model(ones, ones, np.array([True]))
    with pytest.raises(InputError, match="more than int64 holds"):
        model(ones, ones, np.array([2**63], np.uint64))
    with pytest.raises(InputError, match="index 3 is out of range"):
        model(ones, ones, np.array([0, 3]))


def test_back_ends_are_named():
    graph = small_network()
    assert QuantizedModel(graph, backend="native").backend == "native"
    with pytest.raises(BackendError, match="unknown back end 'cuda'"):
        QuantizedModel(graph, backend="cuda")


def test_float_graphs_are_refused_naming_the_node():
    graph = Graph()
    graph.add_input("x", (1, 2, 4, 4))
    weight = graph.add_constant("w", np.ones((2, 2, 1, 1), np.float32))
    op = ops.ConvTranspose((1, 1), (0, 0), (0, 0), (0, 0), (1, 1))
    graph.add_node(op, ["x", weight], "y")
    graph.outputs = ("y",)
    with pytest.raises(GraphError, match=r"convtranspose 'y'.*quantize the graph"):
        QuantizedModel(graph, backend="reference")
    pointwise = one_op(
        ops.Pointwise((ops.Step("x"), ops.Step("relu"))), {"x": ((4,), TensorType("float32"))}, TensorType("float32")
    )
    with pytest.raises(GraphError, match=r"pointwise 'y'.*float graphs"):
        QuantizedModel(pointwise, backend="reference")(np.zeros(4, np.float32))


def test_golden_vectors_travel_and_are_verified(tmp_path):
    model = QuantizedModel(small_network(), backend="native", metadata={"task": "test"})
    model.add_golden(image())
    model.add_golden(image((2, 3, 20, 9)))
    model.save(tmp_path / "m.kvant")
    loaded = kvant.load(tmp_path / "m.kvant", backend="reference")
    assert loaded.verify() == 2 and loaded.metadata == {"task": "test"}
    np.testing.assert_array_equal(loaded(image())["heat"], model(image())["heat"])
    changed = Golden(loaded.golden[0].inputs, [loaded.golden[0].outputs[0] + 1, loaded.golden[0].outputs[1]])
    loaded.golden = [changed]
    with pytest.raises(VerificationError, match=r"output 'heat' differs in 480 of 480 elements on the reference"):
        loaded.verify()


def test_saving_into_a_missing_folder_is_a_save_error(tmp_path):
    with pytest.raises(SaveError):
        QuantizedModel(small_network(), backend="reference").save(tmp_path / "no" / "m.kvant")


def test_several_python_threads_share_one_model():
    model = QuantizedModel(small_network(), backend="native")
    sizes = [(1, 3, 16 + 3 * i, 24 + i) for i in range(4)]
    expected = [model(image(size))["heat"] for size in sizes]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            if not np.array_equal(model(image(sizes[index]))["heat"], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_of_sizes_that_do_not_come_again_is_let_go():
    model, held = QuantizedModel(small_network()), []
    tracemalloc.start()
    for number in range(4 * CACHED_PLANS):
        model(image((1, 3, 256, 256 + number)))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    full, later = held[CACHED_PLANS], held[-1]
    assert later < 1.5 * full


def test_macs_are_counted_with_their_types():
    found = {entry.node: entry for entry in QuantizedModel(small_network(), backend="reference").macs()}
    assert found["stem"].count == 16 * 3 * 9 * 8 * 12 and found["stem"].dtypes == ("uint8", "int8")
    assert found["pointwise"].dtypes == ("int16", "int8")


def test_loading_and_running_needs_no_torch(tmp_path):
    model = QuantizedModel(small_network(), backend="reference")
    model.add_golden(image())
    path = tmp_path / "m.kvant"
    model.save(path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kvant\n"
        f"model = kvant.load({str(path)!r}, backend='reference')\n"
        "assert model.verify() == 1\n"
        "assert not any(name.split('.')[0] == 'torch' for name in sys.modules if sys.modules[name] is not None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_the_default_is_the_reference_with_a_warning(tmp_path):
    code = (
        "import warnings, kvant\n"
        "from kvant.errors import BackendError\n"
        "from kvant.graph import Graph\n"
        "graph = Graph(); graph.add_input('x', (2,)); graph.outputs = ('x',)\n"
        "with warnings.catch_warnings(record=True) as found:\n"
        "    warnings.simplefilter('always')\n"
        "    assert kvant.QuantizedModel(graph).backend == 'reference'\n"
        "assert len(found) == 1 and 'not built' in str(found[0].message), found\n"
        "try:\n"
        "    kvant.QuantizedModel(graph, backend='native')\n"
        "    raise SystemExit('no error')\n"
        "except BackendError as error:\n"
        "    assert 'KVANT_LIBRARY' in str(error)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={"KVANT_LIBRARY": str(tmp_path / "none.so"), "PYTHONPATH": ":".join(sys.path)},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forked_child_finds_locks_open(backend):
    """Another thread that was in the middle of a call when its process forked does not exist in the child."""
    model = kvant.QuantizedModel(small_network(), backend=backend)
    x = image((2, 3, 16, 24))
    expected = model(x)["heat"]
    held = [each._lock for each in (model._frames, model._planner, model._backend) if hasattr(each, "_lock")]
    for lock in held:
        lock.acquire()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(model(x)["heat"], expected) else 1)
    for lock in held:
        lock.release()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("again", [lambda model: pickle.loads(pickle.dumps(model)), copy.copy, copy.deepcopy])
def test_models_can_be_copied_and_sent_to_other_processes(backend, again):
    model = kvant.QuantizedModel(small_network(), backend=backend, metadata={"a": "b"}, memory_budget="speed")
    x = image((2, 3, 16, 24))
    model.add_golden(x)
    other = again(model)
    assert (other.backend, other.metadata, other.verify()) == (backend, {"a": "b"}, 1)
    np.testing.assert_array_equal(other(x)["heat"], model(x)["heat"])
    other.metadata["a"] = "c"
    assert model.metadata == {"a": "b"}
    with pytest.raises(kvant.InputError, match="limit"):
        again(kvant.QuantizedModel(small_network(), backend=backend, memory_limit=1000))(image((2, 3, 64, 64)))


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_limit": None},
        {"memory_limit": "1"},
        {"memory_limit": -1},
        {"memory_limit": 1.5},
        {"memory_budget": 1.5},
    ],
)
def test_limits_that_are_none(limits):
    with pytest.raises(kvant.BackendError, match="expected a number of bytes"):
        kvant.QuantizedModel(small_network(), **limits)
    assert kvant.QuantizedModel(small_network(), memory_budget=np.int64(5), memory_limit=np.int64(2**30)).graph


@pytest.mark.parametrize("count", [-1, 1025, 2**40, 1.5, "2", None])
def test_numbers_of_threads_that_are_none(count):
    with pytest.raises(kvant.BackendError, match=f"cannot use {count!r} threads; give 1 to 1024"):
        kvant.set_num_threads(count)


def test_run_all_takes_inputs_by_name():
    with pytest.raises(InputError, match="a dict of inputs by name, got a ndarray"):
        kvant.QuantizedModel(small_network()).run_all(image())
