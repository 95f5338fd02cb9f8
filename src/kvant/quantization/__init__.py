"""Quantization: from a float graph and calibration data to an integer graph."""

from kvant.quantization.api import quantize
from kvant.quantization.recipe import Recipe, Rule
from kvant.quantization.schemes import ActivationScheme, WeightScheme

__all__ = ["ActivationScheme", "Recipe", "Rule", "WeightScheme", "quantize"]
