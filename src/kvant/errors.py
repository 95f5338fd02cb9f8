"""Every exception that kvant raises on purpose.

KvantError
├── CaptureError                    a model could not be turned into a graph
│   ├── UnsupportedOperatorError    it uses operators kvant does not know (all of them are listed)
│   └── ModelStateError             it is in training mode, on another device, or holds NaN or infinity
├── GraphError                      a graph breaks its own rules
│   └── ShapeError                  shapes that do not fit together, at a named node
├── QuantizationError               a graph could not be quantized
│   ├── CalibrationError            calibration data is empty, not finite, or of the wrong kind
│   ├── RecipeError                 a recipe asks for something that does not exist or does not fit
│   └── AccumulatorOverflowError    integer arithmetic could not be proven exact
├── FormatError                     bytes that are not a sound .kvant file
│   ├── ChecksumError               the file was changed or damaged after it was written
│   └── UnsupportedVersionError     the file needs a newer kvant
├── SaveError                       a file could not be written (the old one, if any, is untouched)
├── InputError                      an input of a loaded model has the wrong rank, shape, dtype or name
├── VerificationError               golden vectors gave other bits on this machine
├── BackendError                    a back end is missing or unknown
├── MissingDependencyError          an optional package is not installed
├── CheckpointError                 a weights file does not fit the network
├── ImageError                      a picture could not be read
└── VideoError                      a video or camera could not be read, or a video not be written
"""

from __future__ import annotations


class KvantError(Exception):
    """Base of every error that kvant raises on purpose."""


class CaptureError(KvantError):
    """A model could not be turned into a graph."""


class UnsupportedOperatorError(CaptureError, NotImplementedError):
    """The model uses operators that kvant does not know.

    Attributes:
        operators: one line for each: the operator, the module path and the source line.
    """

    def __init__(self, operators: list[str]) -> None:
        self.operators = list(operators)
        count = len(self.operators)
        lines = "\n".join(f"  - {line}" for line in self.operators)
        super().__init__(
            f"{count} operator{'s' if count != 1 else ''} of this model cannot be captured:\n{lines}\n"
            "Rewrite these parts with supported operators (docs/operators.md lists them), "
            "or keep them outside the model that is quantized."
        )


class ModelStateError(CaptureError, ValueError):
    """The model is in training mode, on another device than the CPU, or holds values that are not finite."""


class GraphError(KvantError, ValueError):
    """A graph breaks its own rules: an unknown tensor, a cycle, a wrong number of inputs, a wrong type."""


class ShapeError(GraphError):
    """Shapes that do not fit together; the message names the node, its module path and the shapes."""


class QuantizationError(KvantError, ValueError):
    """A graph could not be quantized."""


class CalibrationError(QuantizationError):
    """Calibration data is empty, not finite, or does not fit the model's inputs."""


class RecipeError(QuantizationError):
    """A recipe asks for something that does not exist or does not fit."""


class AccumulatorOverflowError(QuantizationError, OverflowError):
    """An integer accumulator could overflow, so exactness cannot be proven."""


class FormatError(KvantError, ValueError):
    """Bytes that are not a sound .kvant file."""


class ChecksumError(FormatError):
    """The file's SHA-256 does not match its contents."""


class UnsupportedVersionError(FormatError):
    """The file was written for a newer major version or needs a feature that this version lacks."""


class SaveError(KvantError, OSError):
    """A file could not be written. A file that was there before is untouched."""


class InputError(KvantError, ValueError):
    """An input of a loaded model has the wrong rank, shape, dtype or name."""


class VerificationError(KvantError):
    """Golden vectors gave other bits on this machine than on the one that wrote them."""


class BackendError(KvantError, RuntimeError):
    """A back end is unknown or not built."""


class MissingDependencyError(KvantError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


class CheckpointError(KvantError, ValueError):
    """A weights file is unreadable or does not fit the network; the message lists every key that differs."""


class ImageError(KvantError, ValueError):
    """A picture could not be read; the message names the file."""


class VideoError(KvantError, ValueError):
    """A video or a camera could not be read, or a video could not be written; the message names it."""
