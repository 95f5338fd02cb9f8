"""Weights laid out for the machine's instructions, owned by the C library and freed with the Python object."""

from __future__ import annotations

import weakref
from ctypes import byref, c_int64, c_void_p

import numpy as np

from kvant.errors import BackendError
from kvant.runtime.arithmetic import INT32_MAX
from kvant.runtime.native.library import STATUS, Sums, load_library
from kvant.runtime.steps import Weights


class Packed:
    """A kvant_weights of the C library.

    Raises:
        BackendError: there is not enough memory.
    """

    def __init__(self, weights: Weights, linear: bool) -> None:
        library = load_library()
        outputs = weights.values.shape[0]
        depth = weights.values.size // outputs
        values, bias, multipliers = (
            np.require(array, dtype, ["C", "A"])
            for array, dtype in (
                (weights.values, np.int16),
                (weights.bias, np.int64),
                (weights.multipliers, np.float32),
            )
        )
        sums = Sums(weights.terms, int(weights.bound > INT32_MAX))
        self.pointer = c_void_p()
        sizes = [outputs, depth] if linear else [outputs, depth, weights.groups]
        pack = library.kvant_pack_linear if linear else library.kvant_pack_conv
        arrays = [c_void_p(array.ctypes.data) for array in (values, bias, multipliers)]
        status = pack(*map(c_int64, sizes), *arrays, byref(sums), byref(self.pointer))
        if status != 0:
            raise BackendError(f"the native library cannot prepare weights of shape {values.shape}: {STATUS[status]}")
        weakref.finalize(self, library.kvant_free_weights, c_void_p(self.pointer.value))
