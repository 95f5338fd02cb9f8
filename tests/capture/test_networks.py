"""Whole architectures of pytorchcv, and the trained pose network: captured and prepared, they compute the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kvant.capture import Executor, capture, prepare
from kvant.graph import Graph
from kvant.pose.networks import OpenPoseMobileNetThin

from .compare import compare, example, realistic

# name -> height and width of the example. In the default run: one network for each kind of block.
FAST = {
    "resnet18": (224, 224),
    "mobilenetv3_large_w1": (224, 224),
    "squeezenet_v1_1": (224, 224),
    "ghostnet": (224, 224),
    "lwopenpose2d_mobilenet_cmupan_coco": (96, 128),
    "sepreresnet10": (224, 224),
}
SLOW = {
    "resnet50": (224, 224),
    "mobilenetv2_w1": (224, 224),
    "shufflenet_g1_w1": (224, 224),
    "bn_vgg11": (224, 224),
    "mobilenet_w1": (224, 224),
    "efficientnet_b0": (224, 224),
    "densenet121": (224, 224),
    "shufflenetv2_w1": (224, 224),
    "hrnet_w18_small_v1": (224, 224),
    "inceptionv3": (299, 299),
    "dpn68": (224, 224),
    "xception": (299, 299),
    "simplepose_resnet18_coco": (256, 192),
    "pspnet_resnetd50b_voc": (240, 240),
    "isqrtcovresnet18": (224, 224),
    "diapreresnet10": (224, 224),
    "alexnet": (224, 224),
    "danet_resnetd50b_cityscapes": (96, 192),
    "dicenet_w1": (224, 224),
    "octresnet10_ad2": (224, 224),
    "resnestabc14": (224, 224),
    "irevnet301": (224, 224),
}


def network(name: str, size: tuple[int, int]) -> nn.Module:
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    options: dict[str, object] = {}
    if name.startswith("simplepose"):
        # Decoding key points from heat maps depends on the data; it is no part of the network that is quantized.
        options["return_heatmap"] = True
    if name.endswith(("voc", "cityscapes")):
        options["in_size"] = size
    return realistic(get_model(name, pretrained=False, **options)).eval()


def check_network(name: str, size: tuple[int, int]) -> Graph:
    model, image = network(name, size), example((1, 3, *size))
    graph = capture(model, [image])
    compare(model, graph, [image], tolerance=1e-4)
    assert graph.inputs[0].shape[0] == ("batch",)
    assert "batchnorm" not in {node.op.kind for node in prepare(graph).nodes}
    return graph


@pytest.mark.parametrize("name", FAST)
def test_architectures(name: str) -> None:
    check_network(name, FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_architectures(name: str) -> None:
    check_network(name, SLOW[name])


@pytest.fixture(scope="module")
def pose() -> tuple[nn.Module, Graph]:
    model = OpenPoseMobileNetThin.pretrained()
    return model, capture(model, [torch.zeros(1, 3, 64, 64)])


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255


def test_the_pose_network_at_several_sizes(pose: tuple[nn.Module, Graph]) -> None:
    model, graph = pose
    assert graph.inputs[0].shape == (("batch",), 3, ("height",), ("width",))
    for shape in ((1, 3, 64, 64), (2, 3, 48, 96)):
        compare(model, graph, [picture(*shape)])


def test_the_pose_network_is_convolutions_alone(pose: tuple[nn.Module, Graph]) -> None:
    graph = prepare(pose[1])
    assert {node.op.kind for node in graph.nodes} == {"conv", "maxpool", "concat"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_executor_costs_no_more_than_the_module(pose: tuple[nn.Module, Graph], one_thread: None) -> None:
    model, graph = pose
    executor, image = Executor(prepare(graph)), picture(1, 3, 184, 216)

    def seconds(function: Callable[..., object], *arguments: object) -> float:
        # Of the processor, not of the clock: other processes do not count.
        start = time.process_time()
        function(*arguments)
        return time.process_time() - start

    with torch.no_grad():
        pairs = [(seconds(model, image), seconds(executor.run, [image])) for _ in range(25)]
    assert min(own for _, own in pairs) < 1.05 * min(module for module, _ in pairs)
