"""The public surface is what ``__all__`` says, everything in it is there, and nothing joins it by accident."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import kvant
import kvant.errors

PUBLIC = [
    "AccumulatorOverflowError", "ActivationScheme", "BackendError", "CalibrationError", "CaptureError",
    "CheckpointError", "ChecksumError", "FormatError", "GraphError", "ImageError", "InputError", "KvantError",
    "MissingDependencyError", "ModelStateError", "QuantizationError", "QuantizedModel", "Recipe", "RecipeError", "Rule",
    "SaveError", "ShapeError",
    "UnsupportedOperatorError", "UnsupportedVersionError", "VerificationError", "VideoError", "WeightScheme",
    "__version__", "load",
    "num_threads", "quantize", "set_num_threads",
]  # fmt: skip
ROOMS = ("graph", "format", "runtime", "capture", "quantization", "pose", "cli")


def test_the_public_surface() -> None:
    assert sorted(kvant.__all__) == PUBLIC
    assert dir(kvant) == PUBLIC


def test_every_public_name_is_there() -> None:
    for name in PUBLIC:
        assert getattr(kvant, name) is not None
    assert callable(kvant.quantize)
    assert not isinstance(kvant.quantize, ModuleType)


def test_every_error_is_public() -> None:
    errors = {name for name, value in vars(kvant.errors).items() if inspect.isclass(value)}
    assert errors <= set(kvant.__all__)
    for name in errors:
        assert issubclass(getattr(kvant, name), kvant.KvantError)
        assert name in (kvant.errors.__doc__ or "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        kvant.quantise  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_exports_what_it_says(room: str) -> None:
    module = importlib.import_module(f"kvant.{room}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert not name.startswith("_")
        assert getattr(module, name) is not None


def test_the_version_is_the_installed_one() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["scikit-build"]["metadata"]["version"]["input"] == "src/kvant/__init__.py"
    assert kvant.__version__.count(".") == 2
