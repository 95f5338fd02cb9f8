"""What weights and activations become: the choices, and which of them go together.

A scheme says what is wanted. What it means in integers is decided in ``grids`` and ``weights`` for weights, in
``ranges`` and ``types`` for activations. Combinations that have no integers to run on are refused here, with the
nearest that has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from kvant.errors import RecipeError

WeightBits = Literal[16, 8, 4, 3, 2, 1]
WeightForm = Literal["symmetric", "asymmetric", "power_of_two", "log2", "apot", "codebook"]
WeightGranularity = Literal["network", "tensor", "channel", "group"]
Rounding = Literal["half_even", "half_away", "floor", "ceil", "stochastic", "learned"]
RangeMethod = Literal["mse", "minmax", "percentile", "kl", "aciq", "cosine"]
ActivationBits = Literal[16, 8, 4, 2, 1]
ActivationForm = Literal["asymmetric", "symmetric", "power_of_two", "log2", "codebook"]
ActivationGranularity = Literal["network", "tensor"]
Arithmetic = Literal["integer", "dynamic", "weight_only", "float", "float16"]

# Forms whose integers are not evenly spaced.
UNEVEN = ("log2", "apot", "codebook")


@dataclass(frozen=True)
class WeightScheme:
    """The integers of a layer's weights: ``real = scale * integer``, the scale a float32.

    Attributes:
        bits: of a weight in the file. Up to 8 bits run as int8, 16 (and 8 asymmetric ones) as int16.
        form: "symmetric" around 0; "asymmetric", with a zero point for each channel; "power_of_two", symmetric with
            scales that are powers of two (Gysel et al. 2018, Ristretto); "log2", 0 and powers of two (Miyashita et al.
            2016); "apot", sums of two powers of two (Li et al. 2020); "codebook", k-means centres on the int8 grid (Han
            et al. 2016). With 1 bit weights are -1 and 1 (Rastegari et al. 2016).
        granularity: what has a scale of its own: the "network", a "tensor", an output "channel", or a "group" of input
            channels of one output channel: an integer times the channel's scale (Dai et al. 2021, VS-Quant).
        group: input channels of a group; only with ``granularity="group"``.
        rounding: "half_even", "half_away" (from zero), "floor", "ceil", "stochastic" by ``seed``, or "learned"
            (Nagel et al. 2020).
        seed: of stochastic rounding.
        range: how much of a row's range is kept: least squared error ("mse", weighted with the input's power), all of
            it ("minmax"), a "percentile" of magnitudes, least "kl" divergence of histograms, the clip that is optimal
            for a Laplace or normal distribution ("aciq", Banner et al. 2019), or the largest "cosine" similarity.
        percentile: the share of magnitudes, in percent, that ``range="percentile"`` keeps.

    Raises:
        RecipeError: the choices do not go together; the message names the nearest that do.

    Example:
        >>> WeightScheme(bits=4, granularity="group", group=32).group
        32
    """

    bits: WeightBits = 8
    form: WeightForm = "symmetric"
    granularity: WeightGranularity = "channel"
    group: int | None = None
    rounding: Rounding = "half_even"
    seed: int = 0
    range: RangeMethod = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        check_choices(self)
        _check_percentile(self, self.percentile)
        if not 0 <= self.seed < 2**32:
            raise RecipeError(f"{_shown(self, 'seed')}: expected an integer from 0 to 2**32 - 1")
        self._check_form()
        self._check_group()

    @property
    def plain(self) -> bool:
        """Whether these are the int8 weights with a scale for each channel that are the default."""
        return (self.bits, self.form, self.granularity) == (8, "symmetric", "channel")

    def _check_form(self) -> None:
        bits, form = self.bits, self.form
        if form in UNEVEN and bits not in (2, 3, 4):
            widest = "integers far beyond int16" if bits > 4 else "at least three values"
            nearest = "bits=4" if bits > 4 else "bits=2, or form='symmetric'"
            raise RecipeError(
                f"{_shown(self, 'bits', 'form')}: {form} weights of {bits} bits need {widest}; use {nearest}"
            )
        if form == "codebook" and self.range != "mse":
            raise RecipeError(f"{_shown(self, 'form', 'range')}: k-means decides by squared error; use range='mse'")
        if form == "asymmetric" and self.range == "kl":
            raise RecipeError(
                f"{_shown(self, 'form', 'range')}: the divergence is one of magnitudes around 0; use range='mse', or "
                "form='symmetric'"
            )
        if form == "asymmetric" and bits in (16, 1):
            why = "a zero point would make them 17 bits wide" if bits == 16 else "they would be 0 and one value"
            nearest = "form='symmetric', or bits=8" if bits == 16 else "form='symmetric', or bits=2"
            raise RecipeError(f"{_shown(self, 'bits', 'form')}: {why}; use {nearest}")

    def _check_group(self) -> None:
        if (self.granularity == "group") != (self.group is not None):
            raise RecipeError(
                f"{_shown(self, 'granularity', 'group')}: give the number of input channels with granularity='group', "
                "and with that only, such as WeightScheme(granularity='group', group=32)"
            )
        if self.group is None:
            return
        if self.group < 1:
            raise RecipeError(f"{_shown(self, 'group')}: expected at least 1")
        if self.form not in ("symmetric", "power_of_two"):
            raise RecipeError(
                f"{_shown(self, 'form', 'granularity')}: factors of groups multiply integers around 0; use "
                "form='symmetric', or granularity='channel'"
            )
        if self.bits == 16:
            raise RecipeError(
                f"{_shown(self, 'bits', 'granularity')}: a factor times 16 bits does not fit int16; use bits=8, or "
                "granularity='channel'"
            )


@dataclass(frozen=True)
class ActivationScheme:
    """The integers of activations.

    Attributes:
        bits: 16 (int16, zero point 0), 8 (uint8), or 4, 2, 1 (uint8 that ends at 15, 3, 1).
        form: "asymmetric", with a zero point; "symmetric", with the zero point in the middle, or at 0 where nothing is
            negative; "power_of_two", symmetric with a scale that is a power of two. Symmetric single bits are the signs
            of what a weighted layer reads (XNOR, Rastegari et al. 2016). "log2" and "codebook" (k-means centres) round
            what weighted layers read to ``2 ** bits`` of the 256 integers of 8 bits, by a table.
        granularity: what has a scale of its own: each "tensor", or the "network" as a whole.
        range: as for weights; for whole tensors. From other observers than the histogram it is "minmax".
        percentile: the share of values, in percent, that ``range="percentile"`` keeps.

    With fewer than 8 bits, inputs and outputs of the network keep 8 unless a rule names them.

    Raises:
        RecipeError: the choices do not go together; the message names the nearest that do.

    Example:
        >>> ActivationScheme(bits=4, form="symmetric").bits
        4
    """

    bits: ActivationBits = 8
    form: ActivationForm = "asymmetric"
    granularity: ActivationGranularity = "tensor"
    range: RangeMethod = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        check_choices(self)
        _check_percentile(self, self.percentile)
        if self.form in UNEVEN and self.bits not in (2, 4):
            nearest = "bits=4" if self.bits > 4 else "bits=2, or form='symmetric'"
            raise RecipeError(
                f"{_shown(self, 'bits', 'form')}: {self.form} activations are 2 or 4 bits of a table's 8; use {nearest}"
            )

    @property
    def signs(self) -> bool:
        """Whether weighted layers read signs."""
        return self.bits == 1 and self.form != "asymmetric"

    @property
    def tabled(self) -> bool:
        """Whether weighted layers read the 8-bit integers through a table."""
        return self.signs or self.form in UNEVEN


def check_choices(record: Any) -> None:
    """Check the fields of a dataclass that have a list of values, or are a truth value, a number or None.

    NumPy's numbers become Python's, which files of recipes know.

    Raises:
        RecipeError: naming the field, what was given, and what may be given.
    """
    hints = get_type_hints(type(record))
    for field in fields(record):
        hint, value = hints[field.name], getattr(record, field.name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(record, field.name, value)
        choices = [choice for choice in get_args(hint) if isinstance(choice, str | int)]
        if choices:
            # True == 1, but is no number of bits.
            if not any(value == choice and type(value) is type(choice) for choice in choices):
                shown = ", ".join(repr(choice) for choice in choices)
                raise RecipeError(f"{_shown(record, field.name)}: expected one of {shown}")
        elif hint in _EXPECTED and not _fits(value, hint):
            raise RecipeError(f"{_shown(record, field.name)}: expected {_EXPECTED[hint]}")


_EXPECTED: dict[Any, str] = {
    bool: "True or False", int: "an integer", float: "a number", int | None: "an integer or None",
    float | None: "a number or None",
}  # fmt: skip


def _fits(value: object, hint: Any) -> bool:
    if hint is bool:
        return isinstance(value, bool)
    if value is None:
        return hint in (int | None, float | None)
    whole = hint in (int, int | None)
    return not isinstance(value, bool) and isinstance(value, int if whole else int | float) and math.isfinite(value)


def _check_percentile(record: object, value: float) -> None:
    if not 50 < value <= 100:
        raise RecipeError(f"{_shown(record, 'percentile')}: expected more than 50 and at most 100")


def _shown(record: object, *names: str) -> str:
    inside = ", ".join(f"{name}={getattr(record, name)!r}" for name in names)
    return f"{type(record).__name__}({inside})"


# The schemes that nobody has to name.
INT8_WEIGHTS = WeightScheme()
UINT8_ACTIVATIONS = ActivationScheme()
