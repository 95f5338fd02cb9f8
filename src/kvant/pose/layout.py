"""What the pose networks mean: body parts, limbs, the order of their outputs, what they expect as input.

The tables are those of the COCO model of OpenPose (Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part
Affinity Fields", CVPR 2017; "OpenPose", TPAMI 2019). Nothing here imports torch or OpenCV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Float32Array = NDArray[np.float32]

PARTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""The 18 parts, in the order of the heat maps; a 19th heat map is the background."""

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""The 17 key points of COCO's annotations, in COCO's order. COCO has no neck."""

COCO_FROM_PARTS = tuple(PARTS.index(name) for name in COCO_KEYPOINTS)
"""Index into `PARTS` of each of COCO's 17 key points."""

HEAT_CHANNELS = len(PARTS) + 1


class Limb(NamedTuple):
    """A connection of two parts and the two channels of the part-affinity field that points from `start` to `end`."""

    start: int
    end: int
    paf_x: int
    paf_y: int


# The order matters: people are assembled limb by limb, trunk first, face next; the last two (ear to shoulder) only
# ever join what is there.
LIMBS = (
    Limb(1, 2, 12, 13), Limb(1, 5, 20, 21), Limb(2, 3, 14, 15), Limb(3, 4, 16, 17), Limb(5, 6, 22, 23),
    Limb(6, 7, 24, 25), Limb(1, 8, 0, 1), Limb(8, 9, 2, 3), Limb(9, 10, 4, 5), Limb(1, 11, 6, 7),
    Limb(11, 12, 8, 9), Limb(12, 13, 10, 11), Limb(1, 0, 28, 29), Limb(0, 14, 30, 31), Limb(14, 16, 34, 35),
    Limb(0, 15, 32, 33), Limb(15, 17, 36, 37), Limb(2, 16, 18, 19), Limb(5, 17, 26, 27),
)  # fmt: skip
PAF_CHANNELS = 2 * len(LIMBS)
JOINING_LIMBS = frozenset({17, 18})
"""Indices of limbs that may join parts of people but never start a new person, and that are not drawn."""


def _rainbow(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` saturated BGR colours around the colour wheel, from red over green to blue and magenta."""
    colours = []
    for index in range(count):
        sector, rest = divmod(6.0 * index / count, 1.0)
        rising, falling = round(255 * rest), round(255 * (1 - rest))
        red, green, blue = (
            (255, rising, 0), (falling, 255, 0), (0, 255, rising),
            (0, falling, 255), (rising, 0, 255), (255, 0, falling),
        )[int(sector)]  # fmt: skip
        colours.append((blue, green, red))
    return tuple(colours)


PART_COLOURS = _rainbow(len(PARTS))
"""One BGR colour a part."""


@dataclass(frozen=True)
class PoseOutput:
    """How a network returns its heat maps (19 channels) and part-affinity fields (38 channels).

    `order` names the blocks in the order in which the network returns them. They may come as one array with the blocks
    along the channel axis, or as a sequence of arrays, one a block.

    >>> heat, paf = PoseOutput(("heat", "paf")).split(np.zeros((1, 57, 46, 54), np.float32))
    >>> heat.shape, paf.shape
    ((1, 19, 46, 54), (1, 38, 46, 54))
    """

    order: tuple[Literal["heat", "paf"], Literal["heat", "paf"]]

    def __post_init__(self) -> None:
        if sorted(self.order) != ["heat", "paf"]:
            raise ValueError(f"order must name 'heat' and 'paf' once each, got {self.order!r}")

    def split(self, outputs: Any) -> tuple[Float32Array, Float32Array]:
        """Return (heat, paf), N x 19 x h x w and N x 38 x h x w, float32, of what a network returned.

        `outputs` is one N x 57 x h x w array, or a sequence of two arrays. Raises ValueError if the shapes do not fit.
        """
        arrays = [np.asarray(array) for array in outputs] if isinstance(outputs, Sequence) else [np.asarray(outputs)]
        sizes = {"heat": HEAT_CHANNELS, "paf": PAF_CHANNELS}
        wanted = [sizes[name] for name in self.order]
        if len(arrays) == 1 and arrays[0].ndim == 4 and arrays[0].shape[1] == sum(wanted):
            arrays = np.split(arrays[0], [wanted[0]], axis=1)
        if [array.shape[1] if array.ndim == 4 else -1 for array in arrays] != wanted:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ValueError(
                f"expected {' and '.join(self.order)} with {wanted[0]} and {wanted[1]} channels (N x C x h x w), "
                f"as two arrays or one of {sum(wanted)} channels; got {shapes}"
            )
        blocks = {name: np.asarray(array, dtype=np.float32) for name, array in zip(self.order, arrays, strict=True)}
        return blocks["heat"], blocks["paf"]


@dataclass(frozen=True)
class InputSpec:
    """What a network expects: `value = pixel * scale + offset`, pixels 0..255 in `channel_order`, N x 3 x H x W.

    H and W are multiples of `stride`, the size of a heat-map cell in input pixels. Borders are filled with `padding`
    (a pixel value, before scaling): mid grey, which is next to the mean colour of photographs.
    """

    channel_order: Literal["BGR", "RGB"] = "BGR"
    scale: float = 1.0
    offset: float = 0.0
    stride: int = 8
    padding: int = 128


@dataclass(frozen=True)
class NetworkSpec:
    """A pose network: its name, its input, its output, and, if it comes with this package, its PyTorch class.

    A network of your own with the same parts and fields needs the first three only.
    """

    name: str
    input: InputSpec
    output: PoseOutput
    class_name: str | None = None
    has_weights: bool = False

    def build(self, weights: str | PathLike[str] | None = None) -> torch.nn.Module:
        """Return the network in evaluation mode; imports torch.

        `weights` names a checkpoint file; None takes the weights that come with the package. Raises ValueError if
        there are none or the class is not known, `kvant.errors.CheckpointError` if the file does not fit.
        """
        if self.class_name is None:
            raise ValueError(f"{self.name} is not one of this package's networks: {', '.join(NETWORKS)}")
        network = getattr(import_module("kvant.pose.networks"), self.class_name)
        if weights is not None:
            return network.from_checkpoint(weights)  # type: ignore[no-any-return]
        if not self.has_weights:
            raise ValueError(f"{self.name} has no weights in the package: give a checkpoint file")
        return network.pretrained()  # type: ignore[no-any-return]


NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            NetworkSpec(
                name="openpose-vgg",
                input=InputSpec(scale=1 / 256, offset=-0.5),
                output=PoseOutput(("paf", "heat")),
                class_name="OpenPoseVGG",
            ),
            NetworkSpec(
                name="openpose-mobilenet-thin",
                input=InputSpec(),
                output=PoseOutput(("heat", "paf")),
                class_name="OpenPoseMobileNetThin",
                has_weights=True,
            ),
        )
    }
)
"""The networks this package knows, by name."""


def network_spec(name: str) -> NetworkSpec:
    """Return the network called `name`; raises ValueError listing the known names.

    >>> network_spec("openpose-vgg").input.offset
    -0.5
    """
    try:
        return NETWORKS[name]
    except KeyError:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}") from None
