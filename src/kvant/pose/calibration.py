"""What a pose network is calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

from kvant.pose.estimator import FOUR_SCALES, check_sizes
from kvant.pose.layout import Float32Array
from kvant.pose.pictures import Picture
from kvant.pose.preprocess import prepare
from kvant.pose.spec import NetworkSpec


def calibration_inputs(
    pictures: Iterable[Picture], spec: NetworkSpec, height: int = 368, scales: Sequence[float] = FOUR_SCALES
) -> Iterator[Float32Array]:
    """Yield the input that a network takes (1 x 3 x H x W, float32) for each picture, for `kvant.quantize`.

    The pictures take turns at the scales, the first one at `scales[0]`: activations are then seen as they are wherever
    the file is used, in no more passes of the network than there are pictures. Raises ImageError for an array that is
    no picture, InputError for scales that have no meaning.

    >>> import numpy as np
    >>> from kvant.pose.spec import network_spec
    >>> pictures, spec = [np.zeros((480, 640, 3), np.uint8)] * 5, network_spec("openpose-mobilenet-thin")
    >>> [array.shape[2] for array in calibration_inputs(pictures, spec)]
    [184, 368, 552, 736, 184]
    """
    check_sizes(height, tuple(scales), spec.input.stride)
    for picture, scale in zip(pictures, cycle(scales)):
        yield prepare(picture, spec, round(scale * height))[0]
