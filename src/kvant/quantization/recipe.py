"""What the user may choose about a quantization."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from kvant.errors import RecipeError

Observer = Literal["histogram", "minmax", "moving_average"]
RangeMethod = Literal["mse", "minmax", "percentile"]
ActivationBits = Literal[8, 16]


@dataclass(frozen=True)
class Recipe:
    """How a network is quantized: static, uint8 activations, int8 weights, int32 biases, unless said otherwise.

    Attributes:
        activation_bits: 8 (uint8, asymmetric) or 16 (int16, zero point 0) for every activation.
        wide: patterns (``fnmatch``) of tensor names or module paths whose output is to have 16 bits.
        target_sqnr: decibels of signal to quantization noise wanted at every output (for the mean of its channels, 2 dB
            less will do). Activations are widened to 16 bits, the most harmful ones first, until it is reached or until
            they are no longer what limits it. None never widens.
        observer: what is remembered of activations: a histogram, the extremes, or a moving average of the extremes.
        range_method: how a range is chosen from a histogram: least squared error, extremes, or a percentile.
        percentile: the share of values, in percent, that ``range_method="percentile"`` keeps.
        weight_range: per-channel weight ranges by squared error weighted with the input's second moment, or extremes.
        equalize: move scale between layers where that changes nothing in real arithmetic (Nagel et al. 2019).
        correct_bias: take the mean error that quantization causes out of the biases, layer by layer.
        compensate: where int8 weights limit accuracy, round them so that the errors within a layer make up for each
            other on the kept samples (together with ``correct_bias``).
        fine_weights: where int8 weights limit accuracy, give 14 bits (kept as int16) to the weights of layers that
            cause most of it: within 1 % of all weights, and beyond that only where ``target_sqnr`` is missed otherwise.
        samples: how many calibration samples are kept for equalization, correction and measurement.

    Example:
        >>> Recipe(activation_bits=16).activation_bits
        16
    """

    activation_bits: ActivationBits = 8
    wide: tuple[str, ...] = ()
    target_sqnr: float | None = 26.0
    observer: Observer = "histogram"
    range_method: RangeMethod = "mse"
    percentile: float = 99.99
    weight_range: Literal["mse", "minmax"] = "mse"
    equalize: bool = True
    correct_bias: bool = True
    compensate: bool = True
    fine_weights: bool = True
    samples: int = 16

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            choices = get_args(hints[field.name])
            value = getattr(self, field.name)
            if choices and all(isinstance(choice, str | int) for choice in choices) and value not in choices:
                shown = ", ".join(repr(choice) for choice in choices)
                raise RecipeError(f"Recipe({field.name}={value!r}): expected one of {shown}")
        if not isinstance(self.wide, tuple) or not all(isinstance(pattern, str) for pattern in self.wide):
            raise RecipeError(f"Recipe(wide={self.wide!r}): expected a tuple of name patterns")
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"Recipe(percentile={self.percentile}): expected more than 50 and at most 100")
        if self.samples < 1:
            raise RecipeError(f"Recipe(samples={self.samples}): expected at least 1")
        if self.observer != "histogram" and self.range_method != "minmax":
            object.__setattr__(self, "range_method", "minmax")
