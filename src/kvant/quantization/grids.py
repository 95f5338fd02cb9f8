"""The integers that a weight may become once it is divided by its channel's scale, and how it is rounded to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvant.quantization.schemes import Rounding, WeightScheme

# How far plain integers reach on either side: int8, the 14 bits that fine weights take of their int16, few enough that
# int32 surely holds eight products with int16 activations, and all of int16.
HIGHEST = {8: 127, 14: 8191, 16: 32767}


@dataclass(frozen=True, eq=False)
class Grid:
    """All integers from ``low`` to ``high``, or some levels; moved for each row, or multiplied for each group.

    Attributes:
        low, high: the extremes, before ``shift`` and ``factors``.
        levels: float64, ascending: only these integers. None is all of them.
        shift: float64 (rows, 1): added to each row's integers (minus the zero point of asymmetric weights).
        factors: float64 (rows, weights of a row): what the integers are multiplied by (groups).
        dtype: of the weights that hold them.
    """

    low: int
    high: int
    levels: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    factors: torch.Tensor | None = None
    dtype: type[np.int8] | type[np.int16] = np.int8

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest integers, halves to even, of a whole weight ``x`` (rows, weights of a row) over its scales."""
        return self._outer(self._nearest(self._inner(x, self.shift, self.factors)), self.shift, self.factors)

    def nearest_at(self, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The same for some weights: each entry of ``x`` is that of a row and a column; all three of one shape."""
        shift = None if self.shift is None else self.shift[rows, 0]
        factors = None if self.factors is None else self.factors[rows, columns]
        return self._outer(self._nearest(self._inner(x, shift, factors)), shift, factors)

    def _nearest(self, inner: torch.Tensor) -> torch.Tensor:
        if self.levels is None:
            return inner.round().clamp_(self.low, self.high)
        return self.levels.to(inner.dtype)[torch.bucketize(inner, self._middles(inner.dtype))]

    def round(self, x: torch.Tensor, rounding: Rounding, generator: torch.Generator | None = None) -> torch.Tensor:
        """The integers of a whole weight ``x`` (rows, weights of a row), rounded as wished.

        Levels that are equally near are told apart by their place: an even one wins by "half_even", the one away from
        zero by "half_away".
        """
        if rounding in ("half_even", "learned"):
            return self.nearest(x)
        inner = self._inner(x, self.shift, self.factors)
        lower, upper = self._around(inner)
        share = torch.where(upper > lower, (inner - lower) / (upper - lower).clamp_min(1), torch.zeros_like(inner))
        if rounding == "stochastic":
            up = torch.rand(inner.shape, generator=generator, dtype=inner.dtype) < share
        elif rounding == "half_away":
            up = (share > 0.5) | ((share == 0.5) & (inner > 0))
        else:
            up = (share > 0) if rounding == "ceil" else torch.zeros_like(inner, dtype=torch.bool)
        return self._outer(torch.where(up, upper, lower), self.shift, self.factors)

    def clamp(self, x: torch.Tensor, beyond: float) -> torch.Tensor:
        """A whole weight ``x`` (rows, weights of a row) kept within the grid and ``beyond`` on either side."""
        inner = self._inner(x, self.shift, self.factors).clamp(self.low - beyond, self.high + beyond)
        return self._outer(inner, self.shift, self.factors)

    def neighbours(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers below and above a whole weight ``x`` (rows, weights of a row); equal outside and on the grid."""
        lower, upper = self._around(self._inner(x, self.shift, self.factors))
        return self._outer(lower, self.shift, self.factors), self._outer(upper, self.shift, self.factors)

    def _around(self, inner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The neighbours below and above, before ``shift`` and ``factors``; equal outside and on the grid."""
        if self.levels is None:
            return inner.floor().clamp_(self.low, self.high), inner.ceil().clamp_(self.low, self.high)
        levels = self.levels.to(inner.dtype)
        above = torch.bucketize(inner, levels).clamp_max(len(levels) - 1)
        upper = levels[above]
        lower = torch.where(upper <= inner, upper, levels[(above - 1).clamp_min(0)])
        return lower, torch.maximum(upper, lower)

    def _middles(self, dtype: torch.dtype) -> torch.Tensor:
        """Between neighbouring levels; one whose lower neighbour has an odd place belongs to the upper one."""
        levels = self.levels
        if levels is None:
            raise ValueError("evenly spaced integers have no levels")
        middles = ((levels[1:] + levels[:-1]) / 2).to(dtype)
        odd = torch.arange(len(middles)) % 2 == 1
        return torch.where(odd, torch.nextafter(middles, torch.full_like(middles, -torch.inf)), middles)

    @staticmethod
    def _inner(x: torch.Tensor, shift: torch.Tensor | None, factors: torch.Tensor | None) -> torch.Tensor:
        x = x if factors is None else x / factors.to(x.dtype)
        return x if shift is None else x - shift.to(x.dtype)

    @staticmethod
    def _outer(values: torch.Tensor, shift: torch.Tensor | None, factors: torch.Tensor | None) -> torch.Tensor:
        values = values if shift is None else values + shift.to(values.dtype)
        return values if factors is None else values * factors.to(values.dtype)


INT8 = Grid(-HIGHEST[8], HIGHEST[8])
FINE = Grid(-HIGHEST[14], HIGHEST[14], dtype=np.int16)


def symmetric_grid(bits: int) -> Grid:
    """Integers around 0; -1 and 1 for single bits."""
    if bits == 1:
        return of_levels([-1, 1])
    if bits == 16:
        return Grid(-HIGHEST[16], HIGHEST[16], dtype=np.int16)
    high = 2 ** (bits - 1) - 1
    return Grid(-high, high)


def of_levels(levels: list[int]) -> Grid:
    """These integers only."""
    ordered = sorted(set(levels))
    return Grid(ordered[0], ordered[-1], torch.tensor(ordered, dtype=torch.float64))


def grid_of(scheme: WeightScheme) -> Grid:
    """The grid of a scheme, as far as it does not depend on the weights.

    >>> grid_of(WeightScheme(bits=3, form="log2")).levels.tolist()
    [-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0]
    >>> grid_of(WeightScheme(bits=4, form="apot")).levels.tolist()[7:]
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
    """
    if scheme.form == "log2":
        return _mirrored([2**exponent for exponent in range(2 ** (scheme.bits - 1) - 1)])
    if scheme.form == "apot":
        return _mirrored(_APOT[scheme.bits])
    if scheme.form == "asymmetric":
        return Grid(0, 2**scheme.bits - 1, dtype=np.int16 if scheme.bits == 8 else np.int8)
    grid = symmetric_grid(scheme.bits)
    if scheme.granularity == "group" and scheme.bits == 8:
        return Grid(grid.low, grid.high, dtype=np.int16)
    return grid


# Magnitudes of additive powers of two, for 4 bits all sums of one of {0, 8, 4, 1} and one of {0, 2}: the paper's
# fractions times 16 (Li et al. 2020, section 2.2).
_APOT = {4: [8 + 2, 8, 4 + 2, 4, 1 + 2, 2, 1], 3: [4, 2, 1], 2: [1]}


def _mirrored(magnitudes: list[int]) -> Grid:
    return of_levels([*(-value for value in magnitudes), 0, *magnitudes])
