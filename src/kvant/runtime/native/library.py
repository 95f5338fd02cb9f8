"""Finding and loading the C library, and the structures of its header, kernels/include/kvant.h."""

from __future__ import annotations

import ctypes
import os
import warnings
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np

from kvant.errors import BackendError
from kvant.runtime.native.methods import SPEEDS
from kvant.runtime.native.processors import available_processors

ABI_VERSION = 9
DTYPES = {"uint8": 0, "int8": 1, "int16": 2}
FILE_NAME = "libkvant.so"
_MOST_THREADS = 1024
_HOW = "Install kvant with a C++17 compiler at hand, or set KVANT_LIBRARY to a built libkvant.so (docs/kernels.md)."


class Target(ctypes.Structure):
    """kvant_target."""

    _fields_ = [("dtype", c_int32), ("zero_point", c_int32), ("low", c_int32), ("high", c_int32)]


class Source(ctypes.Structure):
    """kvant_source."""

    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("zero_point", c_int32)]


class Windows(ctypes.Structure):
    """kvant_windows."""

    _fields_ = [("count", c_int64), ("start", c_void_p), ("stop", c_void_p), ("step", c_int64)]


class Taps(ctypes.Structure):
    """kvant_taps."""

    _fields_ = [
        ("count", c_int64), ("lower", c_void_p), ("upper", c_void_p), ("weight", c_void_p), ("one", c_int64),
    ]  # fmt: skip


class Norm(ctypes.Structure):
    """kvant_norm."""

    _fields_ = [
        ("rows", c_int64), ("groups", c_int64), ("size", c_int64), ("inner", c_int64), ("scale", c_double),
        ("eps", c_double), ("output_scale", c_float),
    ]  # fmt: skip


class Sums(ctypes.Structure):
    """kvant_sums."""

    _fields_ = [("terms", c_int64), ("wide", c_int32)]


class ConvLayer(ctypes.Structure):
    """kvant_conv_layer."""

    _fields_ = [
        ("outputs", c_int64), ("channels", c_int64), ("groups", c_int64), ("kernel", c_int64 * 2),
        ("strides", c_int64 * 2), ("dilations", c_int64 * 2), ("transposed", c_int32), ("dtype", c_int32),
        ("zero_point", c_int32), ("values", c_void_p), ("bias", c_void_p), ("multipliers", c_void_p), ("sums", Sums),
    ]  # fmt: skip


class FloatLayer(ctypes.Structure):
    """kvant_float_layer."""

    _fields_ = [
        ("outputs", c_int64), ("channels", c_int64), ("groups", c_int64), ("kernel", c_int64 * 2),
        ("strides", c_int64 * 2), ("dilations", c_int64 * 2), ("values", c_void_p), ("bias", c_void_p),
        ("low", c_float), ("high", c_float),
    ]  # fmt: skip


class DynamicLayer(ctypes.Structure):
    """kvant_dynamic_layer."""

    _fields_ = [
        ("outputs", c_int64), ("depth", c_int64), ("terms", c_int64), ("values", c_void_p), ("scales", c_void_p),
        ("bias", c_void_p), ("low", c_float), ("high", c_float),
    ]  # fmt: skip


class ConvShape(ctypes.Structure):
    """kvant_conv_shape."""

    _fields_ = [
        ("batch", c_int64), ("size", c_int64 * 2), ("output_size", c_int64 * 2), ("pads", c_int64 * 2),
        ("x_stride", c_int64), ("y_stride", c_int64),
    ]  # fmt: skip


class Addend(ctypes.Structure):
    """kvant_addend."""

    _fields_ = [
        ("data", c_void_p), ("zero_point", c_int32), ("multiplier", c_float), ("added_multiplier", c_float),
        ("target", Target),
    ]  # fmt: skip


class Sampling(ctypes.Structure):
    """kvant_sampling."""

    _fields_ = [
        ("batch", c_int64), ("size", c_int64 * 2), ("channels", c_int64), ("points", c_int64), ("scale", c_double),
        ("align_corners", c_int32), ("padding", c_int32), ("first", c_int64), ("taps", c_int64), ("phases", c_int64),
        ("weights", c_void_p),
    ]  # fmt: skip


# Functions that a plan calls, in the order of kvant_step.
_STEPS = (
    "quantize", "dequantize", "rescale", "table", "binary", "copy", "concat", "index", "gather", "max_pool",
    "mean_pool", "resize", "sum", "extreme", "arg_max", "softmax", "normalize", "conv", "conv_pair", "matmul",
    "float_conv", "dynamic_linear", "pick", "top_k", "cum_sum", "int_cum_sum", "int_binary", "real",
    "grid_sample", "int_arg_max",
)  # fmt: skip
NUMBER = {name: number for number, name in enumerate(_STEPS)}
MOST_ARGUMENTS = 15
_FUNCTIONS = (
    *_STEPS, "run", "peaks", "lines", "people", "resample", "pack_conv", "conv_bytes", "conv_room",
    "num_threads", "set_num_threads", "stay_on_thread", "abi_version",
)  # fmt: skip


def _candidates() -> list[Path]:
    """Where the library may lie: where the environment says, else beside this package."""
    named = os.environ.get("KVANT_LIBRARY")
    if named:
        return [Path(named)]
    import kvant.runtime

    return [Path(folder) / FILE_NAME for folder in kvant.runtime.__path__]


def _check_environment() -> None:
    """Say which settings mean nothing: the library goes by its defaults then."""
    asked, threads = os.environ.get("KVANT_ISA"), os.environ.get("KVANT_NUM_THREADS")
    if asked and asked not in SPEEDS:
        names = ", ".join(SPEEDS)
        warnings.warn(f"KVANT_ISA={asked!r} is none of {names}: it is ignored", RuntimeWarning, stacklevel=3)
    if threads and not _is_count(threads):
        warnings.warn(
            f"KVANT_NUM_THREADS={threads!r} is no number from 0 to {_MOST_THREADS}, such as 4",
            RuntimeWarning,
            stacklevel=3,
        )


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The C library, loaded once.

    Raises:
        BackendError: it is not built, cannot be loaded, or belongs to another version of kvant.

    Warns:
        RuntimeWarning: KVANT_ISA or KVANT_NUM_THREADS mean nothing.
    """
    _check_environment()
    candidates = _candidates()
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise BackendError(f"The native library is not built (looked for {', '.join(map(str, candidates))}). {_HOW}")
    try:
        library = ctypes.CDLL(str(path))
        for name in _FUNCTIONS:
            getattr(library, f"kvant_{name}").restype = c_int32
        library.kvant_weights_bytes.restype = c_int64
        library.kvant_free_weights.restype = None
        library.kvant_free_weights.argtypes = [c_void_p]
        library.kvant_isa.restype = library.kvant_algorithm.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise BackendError(f"The native library {path} cannot be loaded: {error}. {_HOW}") from error
    found = library.kvant_abi_version()
    if found != ABI_VERSION:
        raise BackendError(f"The native library {path} has version {found}, expected {ABI_VERSION}. {_HOW}")
    library.kvant_set_num_threads(c_int32(_default_threads()))
    return library


def _default_threads() -> int:
    """As many as the environment says, or else as there are processors."""
    asked = os.environ.get("KVANT_NUM_THREADS", "")
    return (int(asked) if _is_count(asked) else 0) or min(available_processors(), _MOST_THREADS)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) <= _MOST_THREADS  # Python reads no endless numbers


def refusal(what: str, status: int) -> BackendError:
    """The error of a function that returned a status other than 0."""
    return BackendError(f"the native library refused {what}: {STATUS.get(status, status)}")


@lru_cache(maxsize=1)
def is_built() -> bool:
    """Whether there is a library that can be loaded."""
    try:
        load_library()
    except BackendError:
        return False
    return True


def isa() -> str:
    """The instruction set that the library uses, one of ``SPEEDS``."""
    return str(load_library().kvant_isa().decode())


def num_threads() -> int:
    """How many threads the native back end uses for a call of this thread, the calling one included."""
    return int(load_library().kvant_num_threads())


def set_num_threads(count: int) -> None:
    """Use this many threads, the calling one included, for all models of the process; 0 is the default.

    That is KVANT_NUM_THREADS of the environment, else as many as the process has processors, of which a container may
    have fewer than it sees.

    >>> set_num_threads(2)
    >>> num_threads()
    2

    Raises:
        BackendError: the count is not within 0 to 1024, or the native library is missing.
    """
    known = isinstance(count, int | np.integer) and -1 < count <= _MOST_THREADS
    wanted = -1 if not known else _default_threads() if count == 0 else int(count)
    if load_library().kvant_set_num_threads(c_int32(wanted)) != 0:
        raise BackendError(f"cannot use {count!r} threads; give 1 to {_MOST_THREADS}, or 0 for the default")


def stay_on_thread(alone: bool = True) -> None:
    """Let calls of the calling thread use no other one: several of them then do more together than by turns.

    >>> stay_on_thread()
    >>> num_threads()
    1
    >>> stay_on_thread(False)

    Raises:
        BackendError: the native library is missing.
    """
    load_library().kvant_stay_on_thread(c_int32(alone))


STATUS = {
    1: "a null pointer",
    2: "an argument is out of range",
    3: "sizes whose product overflows",
    4: "there is not enough memory",
}
