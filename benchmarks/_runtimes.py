"""The runtimes whose speed is compared: each takes a network's file, made once, and runs it on given threads.

A function `prepare_*` writes a runtime's file, a function `load_*` makes it ready and returns a function of one input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kvant.pose.layout import Float32Array

Infer = Callable[[Float32Array], object]


def prepare_kvant(net: Any, samples: Sequence[Float32Array], folder: Path, effort: Any = "default") -> None:
    """All activations in 8 bits, all weights in 8 bits: what the peers do."""
    import torch

    import kvant

    tensors = [torch.from_numpy(sample) for sample in samples]
    recipe = kvant.Recipe(effort=effort, target_sqnr=None, compensate=False, fine_weights=False)
    kvant.quantize(net, tensors[0], calibration=tensors, recipe=recipe).save(folder / "model.kvant")


def prepare_accurate(net: Any, folder: Path) -> None:
    """The file of the default recipe, calibrated on photos where they are at hand."""
    import torch
    from _common import COCO, calibration_tensors

    import kvant

    if not COCO.is_dir():
        return
    tensors = [torch.from_numpy(array) for array in calibration_tensors(134, 368)]
    kvant.quantize(net, tensors[0], calibration=tensors).save(folder / "accurate.kvant")


def load_kvant(folder: Path, threads: int) -> Infer:
    import kvant

    kvant.set_num_threads(threads)
    return kvant.load(folder / "model.kvant")


def load_kvant_speed(folder: Path, threads: int) -> Infer:
    """The same file, weights laid out without a bound of memory."""
    import kvant

    kvant.set_num_threads(threads)
    return kvant.load(folder / "model.kvant", memory_budget="speed")


def load_kvant_accurate(folder: Path, threads: int) -> Infer:
    """The file of the default recipe, in which some activations keep 16 bits."""
    import kvant

    kvant.set_num_threads(threads)
    return kvant.load(folder / "accurate.kvant")


def prepare_openvino(onnx: Path, samples: Sequence[Float32Array], folder: Path) -> None:
    import nncf
    import openvino

    quantized = nncf.quantize(openvino.convert_model(str(onnx)), nncf.Dataset(list(samples)))
    openvino.save_model(quantized, folder / "openvino.xml")


def load_openvino(folder: Path, threads: int) -> Infer:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(str(folder / "openvino.xml"), "CPU", options)
    run: Infer = compiled.__call__
    return run


class _Reader:
    def __init__(self, samples: Sequence[Float32Array]) -> None:
        self.left: Iterator[Float32Array] = iter(samples)

    def get_next(self) -> dict[str, Float32Array] | None:
        sample = next(self.left, None)
        return None if sample is None else {"image": sample}


def prepare_onnxruntime(onnx: Path, samples: Sequence[Float32Array], folder: Path) -> None:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(onnx, prepared)
    quantize_static(prepared, folder / "onnxruntime.onnx", _Reader(samples), per_channel=True)
    prepared.unlink()


def load_onnxruntime(folder: Path, threads: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "onnxruntime.onnx", options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"image": array})


def load_torch(net: Any, threads: int) -> Infer:
    """Float32, as PyTorch runs it at once."""
    import torch

    torch.set_num_threads(threads)

    def infer(array: Float32Array) -> object:
        with torch.inference_mode():
            return net(torch.from_numpy(array))

    return infer


TITLES = {
    "speed": 'kvant int8, budget "speed"',
    "kvant": "kvant int8",
    "accurate": "kvant, default recipe",
    "openvino": "OpenVINO int8",
    "onnxruntime": "ONNX Runtime int8",
    "torch": "torch float32",
}
LOADERS: dict[str, Callable[[Path, int], Infer]] = {
    "speed": load_kvant_speed,
    "kvant": load_kvant,
    "accurate": load_kvant_accurate,
    "openvino": load_openvino,
    "onnxruntime": load_onnxruntime,
}


def quiet_pools() -> None:
    """Let idle thread pools of OpenMP sleep: they would take the processor from whoever is measured next."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
