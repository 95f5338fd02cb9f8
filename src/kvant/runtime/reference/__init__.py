"""The reference back end: one readable NumPy function for each kind of work. It defines what is right.

docs/numerics.md derives this arithmetic. Every other back end must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import steps
from kvant.runtime.reference import elementwise, movement, rows, weighted, windows

__all__ = ["FUNCTIONS", "ReferenceBackend"]

Array = npt.NDArray[Any]

FUNCTIONS: dict[type, Callable[..., Array]] = {
    steps.Quantize: elementwise.quantize,
    steps.Dequantize: elementwise.dequantize,
    steps.Rescale: elementwise.rescale,
    steps.Table: elementwise.table,
    steps.Binary: elementwise.binary,
    steps.Conv: weighted.conv,
    steps.Linear: weighted.linear,
    steps.MatMul: weighted.matmul,
    steps.Copy: movement.copy,
    steps.Concat: movement.concat,
    steps.Index: movement.index,
    steps.Gather: movement.gather,
    steps.MaxPool: windows.max_pool,
    steps.MeanPool: windows.mean_pool,
    steps.Resize: windows.resize,
    steps.Sum: rows.total,
    steps.Extreme: rows.extreme,
    steps.Softmax: rows.softmax,
    steps.Normalize: rows.normalize,
    steps.ArgMax: rows.arg_max,
}


class ReferenceBackend:
    """Runs steps with NumPy."""

    name = "reference"

    def bind(self, work: steps.Work, inputs: Sequence[Array], output: Array) -> Callable[[], None]:
        """A function that computes ``output`` from ``inputs``."""
        function = FUNCTIONS[type(work)]

        def call() -> None:
            with np.errstate(over="ignore"):  # an infinite product is clamped like any other
                result = function(work, *inputs)
            np.copyto(output, result.reshape(output.shape), casting="no")

        return call
