"""The C library by itself: arguments it refuses, threads, fork, instruction sets."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from ctypes import byref, c_float, c_int32, c_int64, c_void_p

import numpy as np
import pytest

from kvant.errors import BackendError
from kvant.runtime import QuantizedModel, native
from kvant.runtime.native import calls, library, methods

from .builds import ONLY_DIRECT
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
    assert lib.kvant_quantize(*[c_int64(1)] * 3, None, c_float(1), c_int32(0), TARGET, POINTER) == NULL
    assert lib.kvant_rescale(c_int64(1), source(data=0), c_float(1), TARGET, POINTER) == NULL
    assert lib.kvant_conv(None, None, None, None, None, None) == NULL
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


PAIR = c_int64 * 2


def conv_shape(**changes: object) -> object:
    fields: dict[str, object] = {
        "batch": 1, "size": PAIR(4, 4), "output_size": PAIR(4, 4), "pads": PAIR(0, 0), "x_stride": 2, "y_stride": 3,
    }  # fmt: skip
    return byref(library.ConvShape(*(fields | changes).values()))


def pack(lib: ctypes.CDLL, method: int = 0, **changes: object) -> tuple[int, c_void_p]:
    """A 1 x 1 layer of two channels and three outputs; a change may make it invalid."""
    values, bias, factors = np.ones((3, 2), np.int16), np.zeros(3, np.int64), np.ones(3, np.float32)
    one = PAIR(1, 1)
    fields: dict[str, object] = {
        "outputs": 3, "channels": 2, "groups": 1, "kernel": one, "strides": one, "dilations": one, "transposed": 0,
        "dtype": 0, "zero_point": 0, "values": values.ctypes.data, "bias": bias.ctypes.data,
        "multipliers": factors.ctypes.data, "sums": library.Sums(1000, 0),
    }  # fmt: skip
    packed, layer = c_void_p(), library.ConvLayer(*(fields | changes).values())
    return lib.kvant_pack_conv(byref(layer), c_int32(method), byref(packed)), packed


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"outputs": 0}, BAD), ({"channels": -2}, BAD), ({"groups": 2}, BAD), ({"kernel": PAIR(0, 1)}, BAD),
     ({"strides": PAIR(1, 0)}, BAD), ({"dilations": PAIR(2**40, 1)}, BAD), ({"transposed": 2}, BAD),
     ({"dtype": 1}, BAD), ({"dtype": 3}, BAD), ({"zero_point": 256}, BAD), ({"dtype": 2, "zero_point": 1}, BAD),
     ({"sums": library.Sums(1, 1)}, BAD), ({"outputs": 2**61, "channels": 2**20}, OVERFLOW), ({"values": None}, NULL),
     ({"method": 6}, BAD), ({"method": -1}, BAD)],
)  # fmt: skip
def test_layers_are_checked(lib, changes, status):
    assert pack(lib, **changes)[0] == status


def test_weights_without_a_negative_are_refused(lib):
    values = np.full((3, 2), -(2**15), np.int16)
    assert pack(lib, values=values.ctypes.data)[0] == BAD
    factors = np.array([1, np.inf, 1], np.float32)
    assert pack(lib, multipliers=factors.ctypes.data)[0] == BAD


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"batch": -1}, BAD), ({"size": PAIR(0, 4)}, BAD), ({"output_size": PAIR(4, 0)}, BAD),
     ({"pads": PAIR(-1, 0)}, BAD), ({"x_stride": 1}, BAD), ({"y_stride": 2}, BAD), ({"size": PAIR(2**31, 1)}, BAD),
     ({"batch": 2**40, "size": PAIR(2**31 - 1, 4)}, OVERFLOW)],
)  # fmt: skip
def test_convolutions_that_do_not_fit_are_refused(lib, changes, status):
    made, packed = pack(lib)
    assert made == OK
    assert lib.kvant_conv(conv_shape(**changes), packed, POINTER, TARGET, None, POINTER) == status
    assert lib.kvant_conv(conv_shape(batch=0), packed, POINTER, TARGET, None, POINTER) == OK
    lib.kvant_free_weights(packed)


def test_a_method_that_does_not_fit_a_layer_gives_way_to_the_direct_one(lib):
    for method in (1, 2, 3, 4, 5):
        made, packed = pack(lib, method)
        assert made == OK
        assert lib.kvant_algorithm(packed) == b"direct"
        lib.kvant_free_weights(packed)


def test_weights_beyond_int8_give_way_to_the_direct_method(lib):
    """Winograd's bound of sums would let one such weight pass."""
    values, wide = np.zeros((3, 32, 3, 3), np.int16), np.zeros((3, 32, 3, 3), np.int16)
    values[1, 2, 1, 1], wide[1, 2, 1, 1] = 127, 129
    for method, name in ((1, b"winograd"), (4, b"winograd-late")):
        for array, expected in ((values, b"direct" if ONLY_DIRECT else name), (wide, b"direct")):
            made, packed = pack(lib, method, channels=32, kernel=PAIR(3, 3), values=array.ctypes.data)
            assert made == OK
            assert lib.kvant_algorithm(packed) == expected
            lib.kvant_free_weights(packed)


def test_room_is_for_late_weights(lib):
    layer, room = library.ConvLayer(), c_int64(-1)
    assert lib.kvant_conv_room(None, c_int32(4), byref(room)) == NULL
    assert lib.kvant_conv_room(byref(layer), c_int32(4), None) == NULL
    assert lib.kvant_conv_room(byref(layer), c_int32(4), byref(room)) == BAD  # no outputs
    for kernel, late in ((3, 4), (7, 5)):
        one, size = PAIR(1, 1), PAIR(kernel, kernel)
        layer = library.ConvLayer(64, 64, 1, size, one, one, 0, 0, 0, None, None, None, library.Sums(1000, 0))
        assert lib.kvant_conv_room(byref(layer), c_int32(6), byref(room)) == BAD
        for method in range(6):
            assert lib.kvant_conv_room(byref(layer), c_int32(method), byref(room)) == OK
            assert (room.value > 0) == (method == late and not ONLY_DIRECT)


def test_plans_are_checked(lib):
    failed = c_int64()
    call = (ctypes.c_uint64 * (1 + library.MOST_ARGUMENTS))(len(library.NUMBER))
    assert lib.kvant_run(byref(call), c_int64(1), byref(failed)) == BAD
    assert lib.kvant_run(None, c_int64(1), byref(failed)) == NULL
    assert lib.kvant_run(None, c_int64(0), byref(failed)) == OK
    source, target, y = library.Source(64, 0, 0), library.Target(0, 0, 0, 255), np.zeros(1)
    both = calls.encode([("rescale", [count, source, 1.0, target, y]) for count in (0, -1)])
    assert lib.kvant_run(c_void_p(both.buffer_info()[0]), c_int64(2), byref(failed)) == BAD
    assert failed.value == 1


def test_windows_and_tables_must_stay_inside(lib):
    inside, outside = np.zeros(1, np.int64), np.full(1, 9, np.int64)

    def windows(start: np.ndarray, stop: np.ndarray) -> object:
        return byref(library.Windows(1, start.ctypes.data, stop.ctypes.data, 1))

    good, bad = windows(inside, np.ones(1, np.int64)), windows(inside, outside)
    empty = windows(inside, inside)
    for rows in (bad, empty):
        assert lib.kvant_max_pool(*[c_int64(1)] * 4, rows, good, source(), POINTER) == BAD
    shape, tables = (c_int64 * 1)(4), (c_void_p * 1)(outside.ctypes.data)
    assert lib.kvant_index(c_int64(1), shape, (c_int64 * 1)(1), tables, c_int64(1), POINTER, POINTER, POINTER) == BAD


def test_gather_names_the_position_of_a_bad_index(lib):
    x, y, bad = np.zeros(4, np.uint8), np.zeros(2, np.uint8), c_int64()
    indices = np.array([-4, 4])
    sizes = [c_int64(1), c_int64(4), c_int64(1), c_int64(1)]
    pointers = [c_void_p(indices.ctypes.data), c_void_p(y.ctypes.data)]
    assert lib.kvant_gather(*sizes, c_void_p(x.ctypes.data), c_int64(2), *pointers, byref(bad)) == BAD_INDEX
    assert bad.value == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"batch": -1}, BAD), ({"size": PAIR(0, 4)}, BAD), ({"points": 0}, BAD), ({"channels": 0}, BAD),
     ({"scale": 0.0}, BAD), ({"padding": 3}, BAD), ({"first": 1}, BAD), ({"taps": 5}, BAD), ({"phases": 4096}, BAD),
     ({"weights": None}, NULL), ({"batch": 2**40, "size": PAIR(2**31 - 1, 4)}, OVERFLOW),
     ({"weights": np.full((4, 2), 2**20, np.int32)}, BAD)],
)  # fmt: skip
def test_sampling_is_checked(lib, changes, status):
    kernel = np.ones((4, 2), np.int32)
    fields: dict[str, object] = {
        "batch": 0, "size": PAIR(4, 4), "channels": 2, "points": 1, "scale": 1.0, "align_corners": 0, "padding": 0,
        "first": 0, "taps": 2, "phases": 4, "weights": kernel,
    }  # fmt: skip

    def sample(changes: dict[str, object]) -> int:
        given = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in (fields | changes).values()]
        return lib.kvant_grid_sample(
            byref(library.Sampling(*given)), source(), source(), c_float(1), TARGET, POINTER
        )  # fmt: skip

    assert sample({}) == OK
    assert sample(changes) == status


def test_what_chooses_and_counts_is_checked(lib):
    one, huge = c_int64(1), c_int64(2**62)
    for wanted in (0, 5):
        sizes = one, c_int64(4), one, c_int64(wanted)
        assert lib.kvant_top_k(*sizes, c_int32(1), source(), POINTER) == BAD
    assert lib.kvant_cum_sum(huge, one, huge, source(), c_float(1), TARGET, POINTER) == OVERFLOW
    assert lib.kvant_int_cum_sum(one, c_int64(0), one, POINTER, POINTER) == BAD
    assert lib.kvant_int_cum_sum(one, one, one, None, POINTER) == NULL
    shape = (c_int64 * 1)(4)
    assert lib.kvant_int_binary(c_int32(7), one, shape, POINTER, shape, POINTER, shape, POINTER) == BAD
    assert lib.kvant_real(c_int64(-1), POINTER, POINTER) == BAD
    x, y, bad = np.zeros(4, np.uint8), np.zeros(2, np.uint8), c_int64()
    indices, pair, steps = np.array([-4, 4]), (c_int64 * 1)(2), (c_int64 * 1)(1)
    sizes = [one, pair, (c_int64 * 1)(0), steps, c_int64(4), one, one]
    pointers = [c_void_p(array.ctypes.data) for array in (x, indices, y)]
    found = lib.kvant_pick(*sizes, pointers[0], c_int64(2), *pointers[1:], byref(bad))
    assert (found, bad.value) == (BAD_INDEX, 1)


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


def test_a_thread_that_stays_alone_leaves_the_others_theirs():
    native.set_num_threads(2)
    model = QuantizedModel(small_network(), backend="native")
    x = image((2, 3, 64, 80))
    found = []

    def alone():
        native.stay_on_thread()
        found.append((native.num_threads(), model(x)["heat"]))
        native.stay_on_thread(False)
        found.append((native.num_threads(), model(x)["heat"]))

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert [count for count, _ in found] == [1, 2]
    assert native.num_threads() == 2
    for _, heat in found:
        np.testing.assert_array_equal(heat, model(x)["heat"])
    native.set_num_threads(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
def test_woken_workers_may_run_wherever_they_might_before():
    """A worker that wakes is kept off its caller's processor, for that moment only, and not where there is no other."""
    everywhere = os.sched_getaffinity(0)
    model = QuantizedModel(small_network(), backend="native")
    x = image((2, 3, 64, 80))
    expected = model(x)["heat"]
    for allowed in (everywhere, {min(everywhere)}):
        os.sched_setaffinity(0, allowed)
        try:
            others = set(os.listdir("/proc/self/task"))
            native.set_num_threads(3)
            model(x)
            workers = set(os.listdir("/proc/self/task")) - others
            assert len(workers) >= 2
            for _ in range(20):
                time.sleep(0.002)  # longer than a worker spins
                np.testing.assert_array_equal(model(x)["heat"], expected)
            deadline = time.monotonic() + 30  # a worker that was woken may not have come yet
            while any(os.sched_getaffinity(int(worker)) != allowed for worker in workers):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.sched_setaffinity(0, everywhere)
            native.set_num_threads(0)


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
    assert native.isa() in methods.SPEEDS
    assert c_int32(lib.kvant_num_threads()).value >= 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"KVANT_ISA": "avx512"}, "KVANT_ISA='avx512' is none of portable"),
        ({"KVANT_NUM_THREADS": "two"}, "KVANT_NUM_THREADS='two' is no number from 0 to 1024"),
        ({"KVANT_NUM_THREADS": "-1"}, "is no number"),
        ({"KVANT_NUM_THREADS": "1025"}, "is no number"),
        ({"KVANT_NUM_THREADS": "9" * 5000}, "is no number"),
        ({"KVANT_ISA": "portable", "KVANT_NUM_THREADS": "0"}, ""),
        ({"KVANT_ISA": "", "KVANT_NUM_THREADS": ""}, ""),
    ],
)
def test_settings_without_a_meaning_are_warned_of(setting, words):
    code = "import kvant; print(kvant.num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, **setting}, capture_output=True, text=True
    )
    assert int(done.stdout) >= 1
    assert words in done.stderr and bool(words) == bool(done.stderr)
