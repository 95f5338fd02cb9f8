"""The converted MobileNet-thin equals the frozen TensorFlow graph that it comes from.

The graph is walked node by node, as it is written, by an interpreter that shares no code with the converter or the
module: TensorFlow's SAME padding is computed from the sizes at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kvant.pose.networks import OpenPoseMobileNetThin

graph_pb2 = pytest.importorskip("tensorboard.compat.proto.graph_pb2", reason="needs tensorboard's GraphDef protos")


def _same_padding(tensor: Tensor, kernel: tuple[int, int], strides: list[int], value: float) -> Tensor:
    pads: list[int] = []
    for size, length, stride in reversed(list(zip(tensor.shape[2:], kernel, strides[1:3], strict=True))):
        total = max((-(-size // stride) - 1) * stride + length - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(tensor, pads, value=value)


def _convolution(node: Any, tensor: Tensor, kernel: Tensor) -> Tensor:
    strides = list(node.attr["strides"].list.i)
    tensor = _same_padding(tensor, (kernel.shape[0], kernel.shape[1]), strides, 0.0)
    if node.op == "DepthwiseConv2dNative":
        return F.conv2d(tensor, kernel.permute(2, 3, 0, 1), stride=strides[1:3], groups=kernel.shape[2])
    return F.conv2d(tensor, kernel.permute(3, 2, 0, 1), stride=strides[1:3])


def _max_pool(node: Any, tensor: Tensor) -> Tensor:
    size, strides = list(node.attr["ksize"].list.i), list(node.attr["strides"].list.i)
    return F.max_pool2d(_same_padding(tensor, (size[1], size[2]), strides, -torch.inf), size[1:3], strides[1:3])


def _evaluate(node: Any, inputs: list[Tensor]) -> Tensor:
    if node.op in ("Conv2D", "DepthwiseConv2dNative"):
        return _convolution(node, *inputs)
    if node.op == "BiasAdd":
        return inputs[0] + inputs[1][:, None, None]
    if node.op == "Relu":
        return inputs[0].relu()
    if node.op == "MaxPool":
        return _max_pool(node, inputs[0])
    if node.op == "ConcatV2":
        assert int(inputs[-1]) in (3, -1), "the graph's tensors are N x H x W x C"
        return torch.cat(inputs[:-1], dim=1)
    raise AssertionError(f"unexpected op {node.op}")


def _constant(node: Any) -> Tensor:
    proto = node.attr["value"].tensor
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype == 3:
        return torch.tensor(list(proto.int_val)).reshape(shape)
    assert proto.dtype == 1 and proto.tensor_content, f"{node.name} is not packed float32"
    return torch.from_numpy(np.frombuffer(proto.tensor_content, "<f4").copy()).reshape(shape)


def _run_graph(graph: Any, image: Tensor) -> Tensor:
    values: dict[str, Tensor] = {}
    nodes = {node.name: node for node in graph.node}

    def value(name: str) -> Tensor:
        if name not in values:
            node = nodes[name]
            if node.op == "Placeholder":
                values[name] = image
            elif node.op == "Const":
                values[name] = _constant(node)
            else:
                values[name] = _evaluate(node, [value(each) for each in node.input])
        return values[name]

    return value("Openpose/concat_stage7")


@pytest.mark.parametrize(("height", "width"), [(96, 128), (200, 152)])
def test_module_equals_graph(shared_data: Path, height: int, width: int) -> None:
    graph = graph_pb2.GraphDef.FromString((shared_data / "weights" / "mobilenet_thin_graph_opt.pb").read_bytes())
    image = 255 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    with torch.inference_mode():
        expected = _run_graph(graph, image)
        actual = OpenPoseMobileNetThin.pretrained()(image)
    assert actual.shape == (2, 57, height // 8, width // 8)
    assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()
