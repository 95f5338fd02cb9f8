"""A result, its file, and ``kvant info`` say what was tried, what it measured, and whether it was taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import kvant
from kvant import QuantizedModel, Recipe, WeightScheme
from kvant.cli.app import app
from kvant.errors import FormatError, QuantizationError
from kvant.runtime import Decision
from networks import sqnr_db

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1),
    )  # fmt: skip
    for x in pictures():
        net(x)
    return net.eval()


def pictures(seed: int = 1) -> list[torch.Tensor]:
    return list(torch.rand(12, 2, 3, 24, 24, generator=torch.Generator().manual_seed(seed)))


def quantize(net: nn.Module, **chosen: Any) -> QuantizedModel:
    return kvant.quantize(net, pictures()[0], calibration=pictures(), recipe=Recipe(**chosen))


def named(model: QuantizedModel, step: str) -> list[Decision]:
    return [entry for entry in model.decisions if entry.step == step]


def test_the_last_entry_is_what_the_network_has_on_other_inputs(net: nn.Module) -> None:
    model = quantize(net)
    x = torch.cat(pictures(seed=2))
    assert model.decisions[-1].step == "all" and model.decisions[-1].taken
    plain = sqnr_db(net(x), model(x))
    assert plain - 8 < (model.decisions[-1].after or 0) < plain + 2  # weak channels count as much as strong ones there


def test_a_correction_that_helps_is_taken_and_says_by_how_much(net: nn.Module) -> None:
    rough = WeightScheme(4, rounding="floor")
    model = quantize(net, weights=rough, target_sqnr=None)
    first = named(model, "bias correction")[0]
    assert first.taken and first.before is not None and first.after is not None
    assert first.after > first.before + 3
    assert model.decisions[-1].after is not None
    uncorrected = quantize(net, weights=rough, target_sqnr=None, correct_bias=False)
    assert not named(uncorrected, "bias correction")
    assert (uncorrected.decisions[-1].after or 0) < model.decisions[-1].after - 3


@pytest.mark.parametrize("chosen", [{}, {"effort": "fast"}, {"effort": "best", "target_sqnr": 60.0}], ids=str)
def test_what_was_measured_decided(net: nn.Module, chosen: dict[str, Any]) -> None:
    for entry in quantize(net, **chosen).decisions:
        if entry.step in ("bias correction", "compensated rounding", "tuning"):
            assert entry.before is not None and entry.after is not None
            assert entry.taken == (entry.after > entry.before) or abs(entry.after - entry.before) <= 0.01  # rounded


def test_more_bits_say_how_many(net: nn.Module) -> None:
    model = quantize(net, target_sqnr=60.0)
    [wider] = named(model, "activations in 16 bits")
    wide = [name for name in model.graph.activations() if model.graph.types[name].dtype == "int16"]
    assert wider.taken and wider.detail.startswith(f"{len(wide)} of ")
    assert named(model, "compensated rounding") and named(model, "weights in 14 bits")[0].detail.startswith(
        "14 bits for"
    )


def test_tuning_says_what_it_did(net: nn.Module) -> None:
    model = quantize(net, weights=WeightScheme(3), effort="best", target_sqnr=None, compensate=False)
    [tuned] = named(model, "tuning")
    assert tuned.taken and tuned.after is not None and tuned.before is not None and tuned.after > tuned.before + 0.3


def test_smoothing_says_how_many_norms() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32)).eval()
    block[0].weight.data[5] = 30.0
    block[1].weight.data[:, 5] /= 30.0
    words = list(torch.randn(8, 1, 16, 32))
    [entry] = named(kvant.quantize(block, words[0], calibration=words), "smoothing")
    assert entry.taken and entry.detail == "1 of 1 norms"
    assert entry.after is not None and entry.before is not None and entry.after > entry.before + 6


def test_the_file_and_its_description_hold_them(net: nn.Module, tmp_path: Path) -> None:
    model = quantize(net)
    model.save(tmp_path / "net.kvant")
    assert kvant.load(tmp_path / "net.kvant").decisions == model.decisions
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "net.kvant")], env={"COLUMNS": "160"})
    assert shown.exit_code == 0 and "bias correction" in shown.stdout and "metadata decisions" not in shown.stdout
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", str(tmp_path / "net.kvant")]).stdout)
    assert [entry["step"] for entry in facts["decisions"]] == [entry.step for entry in model.decisions]


def test_metadata_of_others(net: nn.Module, tmp_path: Path) -> None:
    """What is under this name in a file may be anything: it is shown as it is, and is no list of decisions."""
    assert QuantizedModel(quantize(net).graph).decisions == []
    other = QuantizedModel(quantize(net).graph, metadata={"decisions": '[{"step": 1}]'})
    with pytest.raises(FormatError, match="no list of decisions"):
        _ = other.decisions
    other.save(tmp_path / "other.kvant")
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "other.kvant")])
    assert shown.exit_code == 0 and "metadata decisions" in shown.stdout
    with pytest.raises(QuantizationError, match=r"'decisions'.*choose another name"):
        kvant.quantize(net, pictures()[0], calibration=pictures(), metadata={"decisions": ""})
