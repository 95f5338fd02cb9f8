"""The reference back end: one readable NumPy function for each kind of work. It defines what is right.

docs/numerics.md derives this arithmetic. Every other back end must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.runtime import places, steps
from kvant.runtime.native.methods import Choice
from kvant.runtime.reference import elementwise, movement, reals, rows, weighted, windows

__all__ = ["FUNCTIONS", "ReferenceBackend"]

Array = npt.NDArray[Any]

FUNCTIONS: dict[type, Callable[..., Array]] = {
    steps.Quantize: elementwise.quantize,
    steps.Dequantize: elementwise.dequantize,
    steps.Rescale: elementwise.rescale,
    steps.Table: elementwise.table,
    steps.Binary: elementwise.binary,
    steps.Conv: weighted.conv,
    steps.ConvPair: weighted.conv_pair,
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
    steps.FloatConv: reals.conv,
    steps.DynamicLinear: reals.dynamic_linear,
    places.Pick: movement.pick,
    places.TopK: rows.top_k,
    places.CumSum: rows.cum_sum,
    places.IntBinary: elementwise.int_binary,
    places.Real: elementwise.real,
    places.GridSample: windows.grid_sample,
}


class ReferenceBackend:
    """Runs steps with NumPy."""

    name = "reference"
    choices: Sequence[Choice] = ()

    def prepare(self, plan: Sequence[steps.Step], memory_budget: float) -> None:
        """There is one way only."""

    def bind(
        self, work: Sequence[tuple[steps.Work, Sequence[Array], Array]], given: Sequence[Array] = ()
    ) -> Callable[..., None]:
        """A function that does all of the work in order, each piece with its inputs and output; see ``Backend``."""

        def run(*values: Array) -> None:
            for place, value in zip(given, values, strict=True):
                np.copyto(place, value)
            for piece, inputs, output in work:
                with np.errstate(over="ignore"):  # an infinite product is clamped like any other
                    result = FUNCTIONS[type(piece)](piece, *inputs)
                np.copyto(output, result.reshape(output.shape), casting="no")

        return run
