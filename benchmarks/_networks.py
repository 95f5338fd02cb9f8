"""The networks whose speed is compared, with random weights: speed does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvant.pose.layout import Float32Array

Size = tuple[int, int]
_VGG, _THIN = "openpose-vgg", "openpose-mobilenet-thin"
# The sides of one picture of 368 x 656 at the scales 0.5, 1, 1.5 and 2, in multiples of 8.
FOUR_SCALES: tuple[Size, ...] = ((184, 328), (368, 656), (552, 984), (736, 1312))


@dataclass(frozen=True)
class Case:
    """A network at one or several input sizes; `sizes` are run one after the other and count as one pass."""

    network: str
    sizes: tuple[Size, ...]
    batches: tuple[int, ...] = (1,)

    @property
    def title(self) -> str:
        """The network and its sizes."""
        sizes = "four scales" if len(self.sizes) > 1 else "{} x {}".format(*self.sizes[0])
        return f"{self.network}, {sizes}"


CASES = (
    Case(_VGG, ((368, 368),)),
    Case(_VGG, ((368, 656),)),
    Case(_VGG, FOUR_SCALES),
    Case(_THIN, ((368, 432),)),
    *(
        Case(name, ((224, 224),), (1, 8))
        for name in ("resnet18", "resnet50", "mobilenetv2_w1", "efficientnet_b0", "vgg16")
    ),
)


def build(name: str) -> Any:
    """The float network, in evaluation mode."""
    import torch

    from kvant.pose import OpenPoseVGG, network_spec

    torch.manual_seed(0)
    if name == _THIN:
        return network_spec(name).build()
    if name == _VGG:
        return _with_signal(OpenPoseVGG().eval())
    from pytorchcv.model_provider import get_model

    return get_model(name).eval()


def _with_signal(net: Any) -> Any:
    """Weights that keep the power of activations from layer to layer; torch's own would let it fade."""
    import torch

    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return net


def inputs(case: Case, batch: int) -> list[Float32Array]:
    """One array for each of the case's sizes."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((batch, 3, *size)).astype(np.float32) for size in case.sizes]


def export_onnx(net: Any, path: Path, flexible: bool) -> None:
    """Write the float network as ONNX, the batch free, and height and width too where the network allows it."""
    import torch

    dim = torch.export.Dim
    shapes: dict[int, Any] = {0: dim("batch", min=1, max=64)}
    if flexible:
        shapes |= {2: 8 * dim("rows", min=4, max=400), 3: 8 * dim("columns", min=4, max=400)}
    size = (368, 432) if flexible else (224, 224)
    torch.onnx.export(
        net, (torch.zeros(2, 3, *size),), path, dynamo=True, input_names=["image"], dynamic_shapes=(shapes,),
        external_data=False, verbose=False,
    )  # fmt: skip
