"""The C library by itself: arguments it refuses, threads, fork, instruction sets."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from ctypes import byref, c_float, c_int32, c_int64, c_void_p

import numpy as np
import pytest

from kvant.errors import BackendError
from kvant.runtime import QuantizedModel, native
from kvant.runtime.native import library

from .networks import image, small_network

OK, NULL, BAD, OVERFLOW, BAD_INDEX = 0, 1, 2, 3, 5


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return library.load_library()


def source(dtype: int = 0, zero: int = 0, data: int = 64) -> object:
    return byref(library.Source(data, dtype, zero))


TARGET = byref(library.Target(0, 0, 0, 255))
POINTER = c_void_p(64)  # never read: the arguments are refused before


def test_null_pointers_are_refused(lib):
    assert lib.kvant_quantize(c_int64(1), None, c_float(1), TARGET, POINTER) == NULL
    assert lib.kvant_rescale(c_int64(1), source(data=0), c_float(1), TARGET, POINTER) == NULL
    assert lib.kvant_conv(None, None, None, None, None) == NULL
    assert lib.kvant_matmul(*[c_int64(1)] * 4, None, None, None, None, c_float(1), None, None, None) == NULL
    assert lib.kvant_normalize(None, None, None, None, None, None) == NULL
    lib.kvant_free_weights(None)


@pytest.mark.parametrize(("dtype", "zero"), [(3, 0), (-1, 0), (0, 256), (0, -1), (2, 1)])
def test_unknown_types_and_zero_points_are_refused(lib, dtype, zero):
    assert lib.kvant_rescale(c_int64(1), source(dtype, zero), c_float(1), TARGET, POINTER) == BAD


@pytest.mark.parametrize("target", [(1, 0, 0, 127), (0, 0, -1, 255), (0, 0, 9, 8), (0, 0, 0, 256), (2, 5, 0, 9)])
def test_bad_targets_are_refused(lib, target):
    assert lib.kvant_rescale(c_int64(1), source(), c_float(1), byref(library.Target(*target)), POINTER) == BAD


def test_sizes_are_checked(lib):
    assert lib.kvant_rescale(c_int64(-1), source(), c_float(1), TARGET, POINTER) == BAD
    huge = c_int64(2**62)
    assert lib.kvant_sum(huge, c_int64(4), huge, source(), c_float(1), TARGET, POINTER) == OVERFLOW
    assert lib.kvant_sum(c_int64(1), c_int64(0), c_int64(1), source(), c_float(1), TARGET, POINTER) == BAD
    assert lib.kvant_table(huge, huge, huge, source(), POINTER, c_int64(1), POINTER) == OVERFLOW
    assert lib.kvant_table(c_int64(1), c_int64(1), c_int64(1), source(), POINTER, c_int64(3), POINTER) == BAD


def conv_shape(**changes: object) -> library.ConvShape:
    pair = c_int64 * 2
    fields: dict[str, object] = {
        "batch": 1, "channels": 2, "size": pair(4, 4), "output_size": pair(4, 4), "kernel": pair(1, 1),
        "strides": pair(1, 1), "pads": pair(0, 0), "dilations": pair(1, 1), "transposed": 0,
    }  # fmt: skip
    return library.ConvShape(*(fields | changes).values())


def pack(
    lib: ctypes.CDLL, linear: bool = False, terms: int = 1000, outputs: int = 3, depth: int = 2
) -> tuple[int, c_void_p]:
    values, bias = np.ones((3, 2), np.int16), np.zeros(3, np.int64)
    factors = np.ones(3, np.float32)
    pointers = [c_void_p(array.ctypes.data) for array in (values, bias, factors)]
    packed, sums = c_void_p(), byref(library.Sums(terms, 0))
    if linear:
        return lib.kvant_pack_linear(c_int64(outputs), c_int64(depth), *pointers, sums, byref(packed)), packed
    return lib.kvant_pack_conv(c_int64(outputs), c_int64(depth), c_int64(1), *pointers, sums, byref(packed)), packed


def test_weights_are_checked(lib):
    assert pack(lib, terms=1)[0] == BAD
    assert pack(lib, outputs=0)[0] == BAD
    assert pack(lib, depth=-2)[0] == BAD
    assert pack(lib, outputs=2**61, depth=2**20)[0] == OVERFLOW


@pytest.mark.parametrize(
    "changes",
    [{"batch": -1}, {"channels": 3}, {"size": (c_int64 * 2)(0, 4)}, {"strides": (c_int64 * 2)(0, 1)},
     {"pads": (c_int64 * 2)(-1, 0)}, {"kernel": (c_int64 * 2)(3, 1)}, {"dilations": (c_int64 * 2)(2**40, 1)}],
)  # fmt: skip
def test_convolutions_that_do_not_fit_their_weights_are_refused(lib, changes):
    status, packed = pack(lib)
    assert status == OK
    assert lib.kvant_conv(byref(conv_shape(**changes)), packed, source(), TARGET, POINTER) == BAD
    lib.kvant_free_weights(packed)


def test_linear_weights_are_not_for_convolutions(lib):
    _, linear = pack(lib, linear=True)
    _, conv = pack(lib)
    assert lib.kvant_conv(byref(conv_shape()), linear, source(), TARGET, POINTER) == BAD
    assert lib.kvant_linear(c_int64(1), conv, source(), TARGET, POINTER) == BAD
    assert lib.kvant_linear(c_int64(2**62), linear, source(), TARGET, POINTER) == OVERFLOW
    lib.kvant_free_weights(linear)
    lib.kvant_free_weights(conv)


def test_windows_and_tables_must_stay_inside(lib):
    inside, outside = np.zeros(1, np.int64), np.full(1, 9, np.int64)

    def windows(start: np.ndarray, stop: np.ndarray) -> object:
        return byref(library.Windows(1, start.ctypes.data, stop.ctypes.data, 1))

    good, bad = windows(inside, np.ones(1, np.int64)), windows(inside, outside)
    empty = windows(inside, inside)
    for rows in (bad, empty):
        assert lib.kvant_max_pool(*[c_int64(1)] * 3, rows, good, source(), POINTER) == BAD
    shape, tables = (c_int64 * 1)(4), (c_void_p * 1)(outside.ctypes.data)
    assert lib.kvant_index(c_int64(1), shape, (c_int64 * 1)(1), tables, c_int64(1), POINTER, POINTER, POINTER) == BAD


def test_gather_names_the_position_of_a_bad_index(lib):
    x, y, bad = np.zeros(4, np.uint8), np.zeros(2, np.uint8), c_int64()
    indices = np.array([-4, 4])
    sizes = [c_int64(1), c_int64(4), c_int64(1), c_int64(1)]
    pointers = [c_void_p(indices.ctypes.data), c_void_p(y.ctypes.data)]
    assert lib.kvant_gather(*sizes, c_void_p(x.ctypes.data), c_int64(2), *pointers, byref(bad)) == BAD_INDEX
    assert bad.value == 1


def test_thread_counts():
    before = native.num_threads()
    model = QuantizedModel(small_network(), backend="native")
    x = image((2, 3, 64, 80))
    results = []
    for count in (1, 2, 3, 7):
        native.set_num_threads(count)
        assert native.num_threads() == count
        results.append(model(x)["heat"])
    native.set_num_threads(0)
    assert native.num_threads() >= 1
    native.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    for wrong in (-1, 1025, 2**40):
        with pytest.raises(BackendError, match="threads"):
            native.set_num_threads(wrong)


def test_a_forked_child_starts_its_own_threads():
    native.set_num_threads(2)
    model = QuantizedModel(small_network(), backend="native")
    x = image((2, 3, 64, 80))
    expected = model(x)["heat"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"same" if np.array_equal(model(x)["heat"], expected) else b"else")
        os._exit(0)
    assert os.read(reader, 4) == b"same"
    os.waitpid(child, 0)
    np.testing.assert_array_equal(model(x)["heat"], expected)
    native.set_num_threads(0)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512vnni"])
def test_every_instruction_set_gives_the_same_bits(isa, tmp_path):
    model = QuantizedModel(small_network("int16"), backend="reference")
    for shape in [(1, 3, 16, 24), (2, 3, 37, 53)]:
        model.add_golden(image(shape))
    model.save(tmp_path / "m.kvant")
    code = f"import kvant; assert kvant.load({str(tmp_path / 'm.kvant')!r}, backend='native').verify() == 2"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "KVANT_ISA": isa, "KVANT_NUM_THREADS": "3"}
    )


def test_the_binding_mirrors_the_header(lib):
    assert lib.kvant_abi_version() == library.ABI_VERSION
    assert native.isa() in ("portable", "avx2", "avx512vnni")
    assert c_int32(lib.kvant_num_threads()).value >= 1
