"""OpenPoseVGG in torch's own int8, in both ways that torch has had: each returns a function of one array.

Peers of `pose.py`; kvant itself uses neither.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from itertools import pairwise
from typing import Any

from kvant.pose.layout import Float32Array


def compiled_infer(net: Any, sample: Float32Array) -> Any:
    """torchao's PT2E quantization, compiled by Inductor for x86, sizes free."""
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    rows, columns = (8 * torch.export.Dim(name, min=4, max=400) for name in ("rows", "columns"))
    tensor = torch.from_numpy(sample)
    with torch.no_grad():
        exported = torch.export.export(net, (tensor,), dynamic_shapes=({2: rows, 3: columns},)).module()
        observed = prepare_pt2e(exported, quantizer)
        observed(tensor)
        return _as_function(torch.compile(convert_pt2e(observed), dynamic=True))


def eager_infer(net: Any, sample: Float32Array) -> tuple[Any, str]:
    """Eager quantization, as the reference project did it, and the engine, of those that torch offers, that is fastest.

    Convolutions and ReLUs are fused, one picture calibrates, modules that compute in int8 take their place.
    """
    import torch

    # Its outputs are wrong where tensors of different scales are joined; only its speed is measured.
    warnings.filterwarnings("ignore", message="All inputs of this cat operator")
    found = {}
    for engine in {"fbgemm", "onednn", "x86"} & set(torch.backends.quantized.supported_engines):
        infer = _as_function(_quantized(net, sample, engine))
        infer(sample)
        start = time.perf_counter()
        infer(sample)
        found[engine] = time.perf_counter() - start, infer
    engine = min(found, key=lambda name: found[name][0])
    torch.backends.quantized.engine = engine
    return found[engine][1], engine


def _quantized(net: Any, sample: Float32Array, engine: str) -> Any:
    import torch
    import torch.ao.quantization as quantization

    torch.backends.quantized.engine = engine
    model = quantization.QuantWrapper(_fused(copy.deepcopy(net)))
    model.dequant = _dequantized()
    model.qconfig = quantization.get_default_qconfig(engine)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # that all this is deprecated
        quantization.prepare(model, inplace=True)
        model(torch.from_numpy(sample))
        return quantization.convert(model, inplace=True)


def _fused(net: Any) -> Any:
    import torch
    import torch.ao.quantization as quantization

    for module in list(net.modules()):
        if isinstance(module, torch.nn.Sequential):
            names = [name for name, _ in module.named_children()]
            pairs = [
                [name, after]
                for name, after in pairwise(names)
                if isinstance(module.get_submodule(name), torch.nn.Conv2d)
                and isinstance(module.get_submodule(after), torch.nn.ReLU)
            ]
            if pairs:
                quantization.fuse_modules(module, pairs, inplace=True)
    return net


def _dequantized() -> Any:
    import torch

    class Dequantized(torch.nn.Module):
        """Of several outputs; torch's own takes one."""

        def forward(self, outputs: Any) -> Any:
            return tuple(output.dequantize() if output.is_quantized else output for output in outputs)

    return Dequantized()


def _as_function(model: Any) -> Any:
    import torch

    def infer(array: Float32Array) -> Any:
        with torch.no_grad():
            return [output.numpy() for output in model(torch.from_numpy(array))]

    return infer
