"""Real accuracy and real sizes: small networks trained here, in every kind of integers, from the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.runtime import DECISIONS

pytestmark = pytest.mark.usefixtures("one_thread")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits(one_thread: None) -> Iterator[Any]:
    """benchmarks/digits.py, which makes the table of docs/benchmarks.md."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("digits")
    sys.path.remove(str(BENCHMARKS))
    for name in {"digits", "_common"} & set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plain(digits: Any) -> Any:
    return digits.prepare()


def run_from_file(digits: Any, trained: Any, recipe: kvant.Recipe, folder: Path) -> tuple[float, kvant.QuantizedModel]:
    """The accuracy that the file has on both back ends, which give the same bits, and the model."""
    path = folder / "digits.kvant"
    digits.quantize(trained, recipe).save(path)
    native, reference = (kvant.load(path, backend=name) for name in ("native", "reference"))
    pictures = trained.pictures.numpy()
    scores = native(pictures)
    np.testing.assert_array_equal(reference(pictures[:100]), scores[:100])
    return float((scores.argmax(1) == trained.labels.numpy()).mean()), native


# What each may lose against the float network, in points of accuracy. Nothing is trained in few bits here.
LOSSES = {
    "W8A8": 0.4, "W8A16": 0.4, "W4A8": 1.0, "W4A8, groups of 16 channels": 1.0, "W4A4": 1.5, "W3A8": 1.0, "W2A8": 2.0,
    "W2A8, asymmetric": 2.0, "W1A8": 6.0, "powers of two, W8A8": 0.5, "log2 weights, W4A8": 1.0,
    "additive powers of two, W4A8": 1.0, "codebook, W4A8": 1.0, "codebook, W2A8": 3.0, "log2 activations, W8A4": 1.5,
    "codebook activations, W8A4": 1.0,
}  # fmt: skip


def test_every_recipe_has_a_bound(digits: Any) -> None:
    assert set(digits.RECIPES) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_accuracy(digits: Any, plain: Any, name: str, tmp_path: Path) -> None:
    wanted = plain.accuracy(plain.wanted)
    assert wanted > 0.97
    accuracy, _ = run_from_file(digits, plain, digits.RECIPES[name], tmp_path)
    assert accuracy > wanted - LOSSES[name] / 100


@pytest.mark.parametrize("name", ["W1A8", "W2A8", "codebook, W2A8"])
def test_batch_norms_are_estimated_again(digits: Any, plain: Any, name: str) -> None:
    """Few bits change the spread of channels: it is what costs single bits most of what they lose."""
    decisions = digits.quantize(plain, digits.RECIPES[name]).decisions
    first = next(step for step in decisions if step.step == "batch-norm re-estimation")
    assert first.taken and first.after > first.before + 4


def test_signs_are_multiplied_by_bit_operations(digits: Any, tmp_path: Path) -> None:
    trained = digits.prepare(signs=True)
    wanted = trained.accuracy(trained.wanted)
    assert wanted > 0.97
    accuracy, model = run_from_file(digits, trained, digits.XNOR, tmp_path)
    assert accuracy > wanted - 0.005
    assert [entry.algorithm for entry in model.algorithms()].count("xnor") == 2


def test_files_are_as_large_as_their_bits(digits: Any, plain: Any) -> None:
    count = sum(value.numel() for name, value in plain.model.state_dict().items() if value.dim() > 1)
    for bits in (16, 8, 4, 3, 2, 1):
        recipe = kvant.Recipe(kvant.WeightScheme(bits, range="minmax"), compensate=False, **digits.EXACTLY)
        quantized = digits.quantize(plain, recipe)
        del quantized.metadata[DECISIONS]  # as long as what was tried
        weights, file = digits.sizes(quantized)
        # 288 weights of the first layer gain too little to be packed.
        assert weights == pytest.approx(count * bits / 8, rel=0.01, abs=300)
        assert file - weights < 6500
