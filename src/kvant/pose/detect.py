"""From a picture to people, by any function that runs the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvant.pose.decode import DecoderSettings, decode_people
from kvant.pose.layout import Float32Array, NetworkSpec
from kvant.pose.person import Person
from kvant.pose.preprocess import Picture, prepare

Infer = Callable[[Float32Array], Any]
"""Runs a network: N x 3 x H x W float32 -> what `PoseOutput.split` takes (an array, or a sequence of two)."""


def detect_people(
    infer: Infer, image: Picture, spec: NetworkSpec, height: int = 368, settings: DecoderSettings | None = None
) -> list[Person]:
    """Return the people in a picture (BGR, H x W x 3, uint8), best first, in its coordinates.

    The picture is scaled to `height` and run once; `infer` is a model loaded by `kvant.load`, or any function from
    array to arrays. Raises ValueError if the picture or the outputs have another shape than expected.

    >>> import numpy as np
    >>> from kvant.pose.layout import network_spec
    >>> blank = lambda array: np.zeros((1, 57, array.shape[2] // 8, array.shape[3] // 8), np.float32)
    >>> detect_people(blank, np.zeros((480, 640, 3), np.uint8), network_spec("openpose-mobilenet-thin"))
    []
    """
    array, geometry = prepare(image, spec, height)
    heat, paf = spec.output.split(infer(array))
    return decode_people(heat[0], paf[0], geometry, settings)
