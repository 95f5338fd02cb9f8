"""all-MiniLM-L6-v2 in integers stays close to float, in a file of less than a third."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("tokenizers")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    yield import_module("sentences")
    for name in (set(sys.modules) - before) & OURS:
        del sys.modules[name]


def test_fifty_sentences_that_calibration_does_not_see(sentences: Any) -> None:
    assert len(set(sentences.SENTENCES)) == 50
    assert not set(sentences.SENTENCES) & set(sentences.CALIBRATION)


@pytest.mark.slow
def test_float_network_knows_what_is_alike(sentences: Any) -> None:
    """The architecture is right: alike sentences are near, and padding does not matter."""
    net = sentences.load_minilm()
    texts = ("How do I reset my password?", "I forgot my password and need a new one.", "The cat sat on the mat.")
    found = sentences.vectors(net, sentences.encode(texts))
    alike = sentences.cosines(found[:1], found[1:2])[0]
    assert alike > 0.6 > 0.3 > sentences.cosines(found[:1], found[2:])[0]
    alone = sentences.vectors(net, sentences.encode(texts[2:]))
    np.testing.assert_allclose(alone[0], found[2], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eight"), [("static", 0.65), ("static, best effort", 0.55), ("dynamic", 0.95)])
def test_vectors_stay_close_to_float(sentences: Any, name: str, eight: float) -> None:
    found = sentences.measure(sentences.load_minilm(), sentences.RECIPES[name])
    assert found["smallest"] >= 0.995
    assert found["eight"] > eight
    assert found["share"] <= 0.3
