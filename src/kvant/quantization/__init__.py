"""Quantization: from a float graph and calibration data to an integer graph."""

from kvant.quantization.api import quantize
from kvant.quantization.recipe import Recipe

__all__ = ["Recipe", "quantize"]
