"""kvant turns a trained PyTorch model into one int8 file and runs that file without PyTorch.

    quantized = kvant.quantize(model, example_inputs, calibration=batches)
    quantized.save("model.kvant")

    model = kvant.load("model.kvant")
    outputs = model(inputs)

Everything public is here. Names are imported on first use: importing kvant costs little and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvant.errors import (
    AccumulatorOverflowError,
    BackendError,
    CalibrationError,
    CaptureError,
    CheckpointError,
    ChecksumError,
    FormatError,
    GraphError,
    ImageError,
    InputError,
    KvantError,
    MissingDependencyError,
    ModelStateError,
    QuantizationError,
    RecipeError,
    SaveError,
    ShapeError,
    UnsupportedOperatorError,
    UnsupportedVersionError,
    VerificationError,
    VideoError,
)

if TYPE_CHECKING:
    from kvant.quantization import ActivationScheme as ActivationScheme
    from kvant.quantization import Recipe as Recipe
    from kvant.quantization import Rule as Rule
    from kvant.quantization import WeightScheme as WeightScheme
    from kvant.quantization import quantize as quantize
    from kvant.runtime import QuantizedModel as QuantizedModel
    from kvant.runtime import load as load
    from kvant.runtime.native import num_threads as num_threads
    from kvant.runtime.native import set_num_threads as set_num_threads

__version__ = "0.1.0"

# Where each lazily imported name lives. The room of `quantize` is called quantization, so that `kvant.quantize` can be
# the function.
_LAZY = {
    "quantize": "kvant.quantization",
    "Recipe": "kvant.quantization",
    "Rule": "kvant.quantization",
    "WeightScheme": "kvant.quantization",
    "ActivationScheme": "kvant.quantization",
    "QuantizedModel": "kvant.runtime",
    "load": "kvant.runtime",
    "num_threads": "kvant.runtime.native",
    "set_num_threads": "kvant.runtime.native",
}

__all__ = [
    "quantize",
    "load",
    "Recipe",
    "Rule",
    "WeightScheme",
    "ActivationScheme",
    "QuantizedModel",
    "num_threads",
    "set_num_threads",
    "KvantError",
    "CaptureError",
    "UnsupportedOperatorError",
    "ModelStateError",
    "GraphError",
    "ShapeError",
    "QuantizationError",
    "CalibrationError",
    "RecipeError",
    "AccumulatorOverflowError",
    "FormatError",
    "ChecksumError",
    "UnsupportedVersionError",
    "SaveError",
    "InputError",
    "VerificationError",
    "BackendError",
    "MissingDependencyError",
    "CheckpointError",
    "ImageError",
    "VideoError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(f"kvant.{name} needs torch: pip install 'kvant[torch]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
