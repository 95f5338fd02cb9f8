"""Weights laid out for the machine's instructions, owned by the C library and freed with the Python object."""

from __future__ import annotations

import weakref
from ctypes import byref, c_int32, c_int64, c_void_p

import numpy as np

from kvant.errors import BackendError
from kvant.runtime.arithmetic import INT32_MAX
from kvant.runtime.native.library import DTYPES, STATUS, ConvLayer, Sums, load_library
from kvant.runtime.native.methods import DIRECT, TRANSFORM, TRANSFORM_LATE, WINOGRAD, WINOGRAD_LATE, XNOR
from kvant.runtime.steps import Conv

_NUMBERS = {DIRECT: 0, WINOGRAD: 1, TRANSFORM: 2, XNOR: 3, WINOGRAD_LATE: 4, TRANSFORM_LATE: 5}


class Packed:
    """A kvant_weights of the C library: by the wanted algorithm, or directly where that is not exact for the weights.

    Attributes:
        algorithm: what was made.
        bytes: memory that it takes.

    Raises:
        BackendError: there is not enough memory.
    """

    def __init__(self, work: Conv, algorithm: str) -> None:
        library = load_library()
        layer, keep = _layer(work)
        pointer = c_void_p()
        status = library.kvant_pack_conv(byref(layer), c_int32(_NUMBERS[algorithm]), byref(pointer))
        del keep  # the library has copied it
        if status != 0 or pointer.value is None:
            shape = work.weights.values.shape
            raise BackendError(f"the native library cannot prepare weights of shape {shape}: {STATUS[status]}")
        self.address = pointer.value
        self.algorithm: str = library.kvant_algorithm(pointer).decode()
        self.bytes: int = library.kvant_weights_bytes(pointer)
        weakref.finalize(self, library.kvant_free_weights, pointer)


def packed_bytes(work: Conv, algorithm: str) -> int | None:
    """Bytes of the weights laid out for an algorithm; None if it cannot compute the layer."""
    if algorithm == DIRECT:
        return work.weights.values.nbytes
    if work.weights.values.dtype != np.int8:
        return None
    layer, _ = _layer(work, values=False)
    found = c_int64(-1)
    load_library().kvant_conv_bytes(byref(layer), c_int32(_NUMBERS[algorithm]), byref(found))
    return found.value if found.value > 0 else None


def packed_room(work: Conv, algorithm: str) -> int:
    """Bytes that runs by an algorithm that fits the layer need for weights, and layers share; 0 unless it is late."""
    layer, _ = _layer(work, values=False)
    found = c_int64(0)
    load_library().kvant_conv_room(byref(layer), c_int32(_NUMBERS[algorithm]), byref(found))
    return found.value


def _layer(work: Conv, values: bool = True) -> tuple[ConvLayer, object]:
    """kvant_conv_layer, and the arrays that it points to."""
    weights, pair = work.weights, c_int64 * 2
    arrays = [
        np.require(array, dtype, ["C", "A"])
        for array, dtype in ((weights.values, np.int16), (weights.bias, np.int64), (weights.multipliers, np.float32))
    ] if values else []  # fmt: skip
    layer = ConvLayer(
        work.output_channels, work.channels, weights.groups, pair(*work.kernel), pair(*work.strides),
        pair(*work.dilations), int(work.transposed), DTYPES[weights.dtype], weights.zero_point,
        *([array.ctypes.data for array in arrays] or (None, None, None)),
        Sums(weights.terms, int(weights.bound > INT32_MAX)),
    )  # fmt: skip
    return layer, arrays
