"""What a pose network takes and returns, and how a file says so: enough to run it on pictures.

Nothing here imports torch or OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvant.errors import FormatError, InputError
from kvant.pose.layout import HEAT_CHANNELS, LIMBS, PAF_CHANNELS, PARTS, Float32Array

if TYPE_CHECKING:
    import torch

Order = tuple[Literal["heat", "paf"], Literal["heat", "paf"]]
PerChannel = float | tuple[float, float, float]

BACKGROUND = "background"
HEAT_MAPS = (*PARTS, BACKGROUND)
"""Names of the 19 heat maps, in OpenPose's order."""
FIELDS = tuple((PARTS[limb.start], PARTS[limb.end]) for limb in sorted(LIMBS, key=lambda limb: limb.paf_x))
"""The limb, from which part to which, of each of the 19 pairs of part-affinity fields, in OpenPose's order."""

_SIZES = {"heat": HEAT_CHANNELS, "paf": PAF_CHANNELS}

# Under these keys a file's metadata says which network it holds, and what that takes and returns.
NETWORK_KEY, POSE_KEY = "network", "pose"


@dataclass(frozen=True)
class PoseOutput:
    """How a network returns its heat maps (19 channels) and part-affinity fields (38 channels).

    `order` names the blocks in the order in which the network returns them. They may come as one array with the blocks
    along the channel axis, or as a sequence of arrays, one a block. A network whose channels stand in another order
    than OpenPose's names them: `heat_maps` are 19 names, those of `PARTS` and "background", and `fields` 19 limbs
    (part, part), one for each pair of channels (x, y). Raises ValueError if anything is missing or named twice.

    >>> heat, paf = PoseOutput(("heat", "paf")).split(np.zeros((1, 57, 46, 54), np.float32))
    >>> heat.shape, paf.shape
    ((1, 19, 46, 54), (1, 38, 46, 54))
    >>> mine = PoseOutput(("heat", "paf"), heat_maps=("background", *PARTS))
    >>> mine.split(np.arange(57, dtype=np.float32).reshape(1, 57, 1, 1))[0].ravel()[[0, 17, 18]]
    array([ 1., 18.,  0.], dtype=float32)
    """

    order: Order
    heat_maps: tuple[str, ...] = HEAT_MAPS
    fields: tuple[tuple[str, str], ...] = FIELDS

    def __post_init__(self) -> None:
        _check_names("order", self.order, ("heat", "paf"))
        _check_names("heat_maps", self.heat_maps, HEAT_MAPS)
        _check_names("fields", self.fields, FIELDS)

    def split(self, outputs: Any) -> tuple[Float32Array, Float32Array]:
        """Return (heat, paf), N x 19 x h x w and N x 38 x h x w, float32, in OpenPose's order of channels.

        `outputs` is what the network returned: one N x 57 x h x w array, or a sequence of two arrays. Raises ValueError
        if the shapes do not fit.
        """
        arrays = [np.asarray(array) for array in outputs] if isinstance(outputs, Sequence) else [np.asarray(outputs)]
        wanted = [_SIZES[name] for name in self.order]
        if len(arrays) == 1 and arrays[0].ndim == 4 and arrays[0].shape[1] == sum(wanted):
            arrays = [arrays[0][:, : wanted[0]], arrays[0][:, wanted[0] :]]
        if [array.shape[1] if array.ndim == 4 else -1 for array in arrays] != wanted:
            shapes = ", ".join(str(array.shape) if array.shape else type(outputs).__name__ for array in arrays)
            raise ValueError(
                f"expected {' and '.join(self.order)} with {wanted[0]} and {wanted[1]} channels (N x C x h x w), "
                f"as two arrays or one of {sum(wanted)} channels; got {shapes}"
            )
        heat, paf = arrays if self.order[0] == "heat" else arrays[::-1]
        return _reordered(heat, self._channels[0]), _reordered(paf, self._channels[1])

    @cached_property
    def _channels(self) -> tuple[list[int] | None, list[int] | None]:
        """The network's channel for each of OpenPose's heat maps, and for each of its fields; None for its order."""
        pairs = [self.fields.index(limb) for limb in FIELDS]
        heat = [self.heat_maps.index(name) for name in HEAT_MAPS]
        paf = [2 * pair + axis for pair in pairs for axis in (0, 1)]
        return None if heat == sorted(heat) else heat, None if paf == sorted(paf) else paf


def _check_names(field: str, given: Sequence[object], known: Sequence[object]) -> None:
    if len(given) != len(known) or set(given) != set(known):
        names = ", ".join(map(repr, known))
        raise ValueError(f"{field} must name each of {names} once, got {given!r}")


def _reordered(array: NDArray[Any], channels: list[int] | None) -> Float32Array:
    values: Float32Array = array.astype(np.float32, copy=False)
    return values if channels is None else values[:, channels]


@dataclass(frozen=True)
class InputSpec:
    """What a network expects: `value = pixel * scale + offset`, pixels 0..255 in `channel_order`, N x 3 x H x W.

    `scale` and `offset` are numbers, or three of them, one a channel in the network's order. H and W are multiples of
    `stride`, the size of a heat-map cell in input pixels. Borders are filled with `padding` (a pixel value, before
    scaling): mid grey, which is next to the mean colour of photographs. Raises ValueError for values without a meaning.

    >>> InputSpec.normalized(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).channel_order
    'RGB'
    """

    channel_order: Literal["BGR", "RGB"] = "BGR"
    scale: PerChannel = 1.0
    offset: PerChannel = 0.0
    stride: int = 8
    padding: int = 128

    def __post_init__(self) -> None:
        if self.channel_order not in ("BGR", "RGB"):
            raise ValueError(f"channel_order must be 'BGR' or 'RGB', got {self.channel_order!r}")
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            numbers = value if isinstance(value, tuple) else (value,)
            if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} must be one finite number or three, got {value!r}")
        if not 1 <= self.stride <= 256 or not 0 <= self.padding <= 255:
            raise ValueError(f"stride must be 1..256 and padding 0..255, got {self.stride} and {self.padding}")

    @classmethod
    def normalized(
        cls,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        channel_order: Literal["BGR", "RGB"] = "RGB",
    ) -> Self:
        """What networks expect whose pixels, 0..1, were normalized by `mean` and `std`, one a channel."""
        scale = (1 / (255 * std[0]), 1 / (255 * std[1]), 1 / (255 * std[2]))
        return cls(channel_order, scale, (-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]))


@dataclass(frozen=True)
class NetworkSpec:
    """A pose network: its name, its input, its output, and, if it comes with this package, its PyTorch class.

    A network of your own with the same parts and fields needs the first three only; `metadata` writes them into the
    file that `kvant.quantize` makes of it, and the file is then enough to run it.

    >>> mine = NetworkSpec("mine", InputSpec(channel_order="RGB", scale=1 / 255), PoseOutput(("paf", "heat")))
    >>> NetworkSpec.from_metadata(mine.metadata()) == mine
    True
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

    def metadata(self) -> dict[str, str]:
        """Return what a file must carry to be run on pictures: give it to `kvant.quantize(..., metadata=...)`."""
        record = _Record(**asdict(self.input), **asdict(self.output))
        return {NETWORK_KEY: self.name, POSE_KEY: msgspec.json.encode(record).decode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> NetworkSpec:
        """Return the network that a file's metadata describes; raises FormatError if they describe none, or badly.

        Files that only name one of this package's networks are understood too.
        """
        name = metadata.get(NETWORK_KEY)
        if name is None:
            raise FormatError(
                f"the file's metadata have no {NETWORK_KEY!r}, so it does not say which pose network it holds: "
                f"name one of {', '.join(NETWORKS)}, or give a NetworkSpec"
            )
        known = NETWORKS.get(name)
        if POSE_KEY not in metadata:
            if known is None:
                raise FormatError(f"the file holds {name!r} and does not say what that takes: give a NetworkSpec")
            return known
        try:
            record = msgspec.json.decode(metadata[POSE_KEY], type=_Record)
            taken = InputSpec(record.channel_order, record.scale, record.offset, record.stride, record.padding)
            returned = PoseOutput(record.order, record.heat_maps, record.fields)
        except ValueError as error:  # msgspec's errors are such, too
            raise FormatError(f"the file's metadata {POSE_KEY!r} are not understood: {error}") from error
        if known is None:
            return cls(name, taken, returned)
        return cls(name, taken, returned, known.class_name, known.has_weights)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The JSON under `POSE_KEY`: an InputSpec and a PoseOutput."""

    order: Order
    channel_order: Literal["BGR", "RGB"]
    scale: PerChannel
    offset: PerChannel
    stride: int
    padding: int
    heat_maps: tuple[str, ...] = HEAT_MAPS
    fields: tuple[tuple[str, str], ...] = FIELDS


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
    """Return the network called `name`; raises InputError listing the known names.

    >>> network_spec("openpose-vgg").input.offset
    -0.5
    """
    try:
        return NETWORKS[name]
    except KeyError:
        raise InputError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}") from None
