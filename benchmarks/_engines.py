"""The tools that are compared: each runs the same network in float and quantizes it on the same tensors.

An engine is made from the exported ONNX file (peers) or the PyTorch network (torch, kvant). Peers run with the
defaults that their documentation shows. Each engine imports its own packages only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from _common import SPEC

from kvant.pose.layout import Float32Array

Infer = Callable[[Float32Array], Float32Array]


class Engine(Protocol):
    """Float inference, and quantization on a list of inputs to int8 inference."""

    def float_infer(self) -> Infer: ...

    def quantize(self, tensors: Sequence[Float32Array]) -> tuple[Infer, dict[str, Any]]: ...


def export_onnx(path: Path) -> None:
    """Write the float network as ONNX, height and width free."""
    import torch

    size = torch.export.Dim
    rows, columns = 8 * size("rows", min=4, max=400), 8 * size("columns", min=4, max=400)
    torch.onnx.export(
        SPEC.build(),
        (torch.zeros(1, 3, 368, 432),),
        path,
        dynamo=True,
        input_names=["image"],
        output_names=["maps"],
        dynamic_shapes=({2: rows, 3: columns},),
        external_data=False,
        verbose=False,
    )


def torch_infer(net: Any) -> Infer:
    """The float network in torch, eager."""
    import torch

    def infer(array: Float32Array) -> Float32Array:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(array)).numpy())

    return infer


class Kvant:
    """kvant with a recipe; in float, torch."""

    def __init__(self, onnx: Path, threads: int, **recipe: Any) -> None:
        import torch

        self.recipe = recipe

        torch.set_num_threads(threads)
        self.torch, self.threads = torch, threads
        self.net = SPEC.build()
        self.folder = onnx.parent

    def float_infer(self) -> Infer:
        return torch_infer(self.net)

    def quantize(self, tensors: Sequence[Float32Array]) -> tuple[Infer, dict[str, Any]]:
        import kvant
        from kvant.pose.demo.run import multiplication_shares
        from kvant.pose.demo.without_torch import use_threads

        inputs = [self.torch.from_numpy(tensor) for tensor in tensors]
        quantized = kvant.quantize(self.net, inputs[0], calibration=inputs, recipe=kvant.Recipe(**self.recipe))
        path = self.folder / "kvant.kvant"
        quantized.save(path)
        model = kvant.load(path)
        backend = use_threads(model, self.threads)
        return model, {**multiplication_shares(model), "backend": backend, "bytes": path.stat().st_size}


class OpenVino:
    """NNCF's post-training quantization, run by OpenVINO."""

    def __init__(self, onnx: Path, threads: int) -> None:
        import openvino

        self.openvino = openvino
        self.model = openvino.convert_model(str(onnx))
        self.threads = threads
        self.folder = onnx.parent

    def _infer(self, model: Any) -> Infer:
        options = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = self.openvino.compile_model(model, "CPU", options)
        return lambda array: np.asarray(compiled(array)[0])

    def float_infer(self) -> Infer:
        return self._infer(self.model)

    def quantize(self, tensors: Sequence[Float32Array]) -> tuple[Infer, dict[str, Any]]:
        import nncf

        quantized = nncf.quantize(self.model, nncf.Dataset(tensors))
        path = self.folder / "nncf.xml"
        self.openvino.save_model(quantized, path)
        size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        return self._infer(quantized), {"bytes": size}


class OnnxRuntime:
    """ONNX Runtime's static quantization, QDQ, weights per channel."""

    def __init__(self, onnx: Path, threads: int) -> None:
        self.onnx = onnx
        self.threads = threads

    def _infer(self, path: Path) -> Infer:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda array: np.asarray(session.run(None, {"image": array})[0])

    def float_infer(self) -> Infer:
        return self._infer(self.onnx)

    def preprocessed(self) -> Path:
        """The file after the preparation that ONNX Runtime asks for before quantization."""
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = self.onnx.parent / "preprocessed.onnx"
        quant_pre_process(self.onnx, path)
        return path

    def quantize(self, tensors: Sequence[Float32Array]) -> tuple[Infer, dict[str, Any]]:
        from onnxruntime.quantization import quantize_static

        path = self.onnx.parent / "onnxruntime.onnx"
        quantize_static(self.preprocessed(), path, Reader(tensors), per_channel=True)
        return self._infer(path), {"bytes": path.stat().st_size}


class Reader:
    """Calibration data as ONNX Runtime reads it."""

    def __init__(self, tensors: Sequence[Float32Array]) -> None:
        self.inputs: Iterator[Float32Array] = iter(tensors)

    def get_next(self) -> dict[str, Float32Array] | None:
        array = next(self.inputs, None)
        return None if array is None else {"image": array}


class TorchAo:
    """torchao's PT2E quantization for x86, compiled by Inductor."""

    def __init__(self, onnx: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.net = SPEC.build()

    def float_infer(self) -> Infer:
        return torch_infer(self.net)

    def quantize(self, tensors: Sequence[Float32Array]) -> tuple[Infer, dict[str, Any]]:
        os.environ["TORCHINDUCTOR_FREEZING"] = "1"
        import torch
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        rows, columns = (8 * torch.export.Dim(name, min=4, max=400) for name in ("rows", "columns"))
        inputs = [torch.from_numpy(tensor) for tensor in tensors]
        with torch.no_grad():
            exported = torch.export.export(self.net, (inputs[0],), dynamic_shapes=({2: rows, 3: columns},)).module()
            observed = prepare_pt2e(exported, quantizer)
            for tensor in inputs:
                observed(tensor)
            compiled = torch.compile(convert_pt2e(observed), dynamic=True)
            compiled(inputs[0])

        def infer(array: Float32Array) -> Float32Array:
            with torch.no_grad():
                return np.asarray(compiled(torch.from_numpy(array)).numpy())

        # It has no file of weights: what is kept is the float program and what was observed.
        return infer, {"bytes": None}


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    "kvant": Kvant,
    "kvant-fast": partial(Kvant, effort="fast"),
    "kvant-best": partial(Kvant, effort="best"),
    "kvant-8-bits": partial(Kvant, effort="best", target_sqnr=None),
    "nncf": OpenVino,
    "onnxruntime": OnnxRuntime,
    "torchao": TorchAo,
}
TITLES = {
    "float": "float32 (torch)",
    "kvant": "kvant",
    "kvant-fast": 'kvant, effort "fast"',
    "kvant-best": 'kvant, effort "best"',
    "kvant-8-bits": "kvant, all activations in 8 bits",
    "nncf": "NNCF (OpenVINO)",
    "onnxruntime": "ONNX Runtime (QDQ)",
    "torchao": "torchao (PT2E)",
    "torch.ao": "torch.ao (FX)",
}
