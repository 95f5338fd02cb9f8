"""KVANT_TUNE: who decides how layers are computed."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.errors import BackendError
from kvant.runtime import QuantizedModel
from kvant.runtime.native import methods, trial

from .graphs import random_integers, typed
from .test_methods import conv_graph, needs_vectors

SIZE = (1, 12, 12)


def make(monkeypatch, budget="speed"):
    monkeypatch.setenv("KVANT_TUNE", "measure")
    graph = conv_graph(np.random.default_rng(0), 3, 64, 64, SIZE, 1, 7, typed("uint8"))
    return graph, QuantizedModel(graph, backend="native", memory_budget=budget)


@needs_vectors
@pytest.mark.parametrize("faster", [methods.DIRECT, methods.WINOGRAD, methods.WINOGRAD_LATE])
def test_a_trial_decides(faster, monkeypatch):
    """By its times alone, whatever the cost model says; the bits are the reference's either way."""
    monkeypatch.setattr(trial, "_measure", lambda work, name: 1.0 if name == faster else 2.0)
    monkeypatch.setattr(methods, "seconds", lambda *arguments: pytest.fail("the cost model was asked"))
    graph, model = make(monkeypatch)
    assert [entry.algorithm for entry in model.algorithms()] == [faster]
    x = random_integers(np.random.default_rng(1), (1, 64, *SIZE[1:]), "uint8")
    np.testing.assert_array_equal(model(x), QuantizedModel(graph, backend="reference")(x))


@needs_vectors
def test_a_trial_keeps_the_budget(monkeypatch):
    """A late algorithm's room counts, too."""
    monkeypatch.setattr(trial, "_measure", lambda work, name: 2.0 if name == methods.DIRECT else 1.0)
    assert [entry.algorithm for entry in make(monkeypatch, 8 * 64 * 64 * 9 - 1)[1].algorithms()] == [methods.DIRECT]


def test_a_real_trial(monkeypatch):
    """Its times are positive, it measures a shape once, and an algorithm that is not exact never wins."""
    measured = []
    real = trial._measure
    monkeypatch.setattr(
        trial, "_measure", lambda work, name: measured.append((name, real(work, name))) or measured[-1][1]
    )
    graph, model = make(monkeypatch)
    x = random_integers(np.random.default_rng(1), (1, 64, *SIZE[1:]), "uint8")
    np.testing.assert_array_equal(model(x), QuantizedModel(graph, backend="reference")(x))
    assert len({name for name, _ in measured}) == len(measured)
    assert all(seconds > 0 for _, seconds in measured)
    values = np.full((32, 256, 3, 3), 127, np.int8)  # 255 * 127 * 2304 is beyond Winograd's bound
    beyond = conv_graph(np.random.default_rng(0), 3, 256, 32, SIZE, 1, 7, typed("uint8"), values)
    model = QuantizedModel(beyond, backend="native", memory_budget="speed")
    assert [entry.algorithm for entry in model.algorithms()] == [methods.DIRECT]


def test_unknown_values_are_refused(monkeypatch):
    monkeypatch.setenv("KVANT_TUNE", "often")
    graph = conv_graph(np.random.default_rng(0), 3, 64, 64, SIZE, 1, 7, typed("uint8"))
    with pytest.raises(BackendError, match="KVANT_TUNE='often'"):
        QuantizedModel(graph, backend="native")
