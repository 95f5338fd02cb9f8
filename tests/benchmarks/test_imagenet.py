"""Benchmarks of classifiers and of sentences: networks against independent ones, photos, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KVANT_SHARED", REPOSITORY.parent / "shared"))
OURS = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
needs_photos = pytest.mark.skipif(
    not (SHARED / "data" / "imagenet").is_dir(), reason=f"no ImageNet photos at {SHARED} (set KVANT_SHARED)"
)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    yield import_module
    for name in (set(sys.modules) - before) & OURS:
        del sys.modules[name]


def test_mobilenet_is_the_known_one(load: Any) -> None:
    """As many parameters and layers as the paper's network, which pytorchcv has in a form of its own."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    net, peer = load("_classifiers").MobileNetV2().eval(), get_model("mobilenetv2b_w1").eval()
    # Both list modules from input to output: the same numbers in both must give the same answers.
    values = list(net.state_dict().values())
    names = list(peer.state_dict())
    assert len(values) - 1 == len(names)
    shapes = [peer.state_dict()[name].shape for name in names]
    peer.load_state_dict(
        {name: value.reshape(shape) for name, value, shape in zip(names, values, shapes, strict=False)}
    )
    bias = values[-1]
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), peer(x) + bias, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite_grows(load: Any) -> None:
    """Parameters as published: 4.7, 5.4 and 6.1 million; and TensorFlow's output sizes, ceil(size / 32)."""
    module = load("_classifiers")
    for number, (millions, size) in enumerate([(4.65, 224), (5.42, 240), (6.09, 260)]):
        net = module.EfficientNetLite(number).eval()
        assert sum(value.numel() for value in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
        found: list[torch.Size] = []
        net._conv_head.register_forward_hook(lambda _module, _inputs, output, found=found: found.append(output.shape))
        with torch.inference_mode():
            net(torch.zeros(1, 3, size, size))
        assert found[0][2:] == (-(-size // 32), -(-size // 32))


def test_same_padding_is_tensorflows(load: Any) -> None:
    """Against sums of windows by hand: zeros are shared, the end gets the odd one."""
    module = load("_classifiers")
    for size, kernel, stride in [(4, 3, 2), (5, 3, 2), (6, 5, 2), (5, 5, 1)]:
        conv = module.same_conv(1, 1, kernel, stride, size)
        torch.nn.init.ones_(conv.weight)
        x = torch.arange(float(size * size)).reshape(1, 1, size, size)
        count = -(-size // stride)
        first = -(max((count - 1) * stride + kernel - size, 0) // 2)
        starts = [first + stride * index for index in range(count)]
        windows = [
            [x[0, 0, max(r, 0) : r + kernel, max(c, 0) : c + kernel].sum().item() for c in starts] for r in starts
        ]
        np.testing.assert_allclose(conv(x)[0, 0].detach().numpy(), windows)


def test_scores(load: Any) -> None:
    found = load("imagenet").scores(
        {
            "float": {"answers": [1, 2, 3, 4], "labels": [1, 2, 3, 5], "bytes": 10},
            "kvant": {"answers": [1, 2, 0, 5], "labels": [1, 2, 3, 5], "bytes": 3},
        }
    )
    assert found["float"] == {"bytes": 10, "photos": 4, "top1": 75.0, "agreement": 100.0}
    assert found["kvant"] == {"bytes": 3, "photos": 4, "top1": 75.0, "agreement": 50.0}


def test_tables(load: Any, tmp_path: Path) -> None:
    plain = {"photos": 436, "bytes": 14_000_000, "top1": 84.0, "agreement": 100.0}
    kvant = {
        **plain,
        "bytes": 3_700_000,
        "top1": 83.5,
        "agreement": 97.25,
        "quantize_seconds": 14,
        "quantize_extra_mb": 9,
    }
    base = {"cpu": "A CPU", "threads": 2, "versions": {}}
    report = {**base, "photos": 436, "calibration_photos": 64}
    waited = {**kvant, "quantize_seconds": None}
    report |= {"results": {"mobilenet-v2": {"float": plain, "kvant": kvant, "kvant, no data": waited}}}
    sentence = {"bytes": 23_000_000, "share": 0.26, "smallest": 0.996, "mean": 0.998, "eight": 0.8, "seconds": 9.1}
    text = {
        **base,
        "sentences": 50,
        "calibration_sentences": 40,
        "float_bytes": 90_000_000,
        "results": {"static": sentence},
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "imagenet.json").write_text(json.dumps(report))
    (tmp_path / "benchmarks" / "sentences.json").write_text(json.dumps(text))
    page = "<!-- table: imagenet -->\n<!-- end -->\n<!-- table: sentences -->\n<!-- end -->\n"
    page = load("tables").rewrite(page, tmp_path)
    assert "| MobileNetV2 | kvant | 83.5 % | -0.5 | 97.2 % | 3.70 MB | 14 s | 9 MB |" in page
    assert "| MobileNetV2 | kvant, no data | 83.5 % | -0.5 | 97.2 % | 3.70 MB |  | 9 MB |" in page
    assert "436 photos, calibrated on 64 others. A CPU, 2 threads" in page
    assert "| kvant, static | 0.9960 | 0.9980 | 80% | 23.0 MB | 0.260 x | 9 s |" in page


@needs_photos
def test_photos_are_parted(load: Any) -> None:
    calibration, scored, labels = load("imagenet").photos(64, 436)
    assert (len(calibration), len(scored), len(labels)) == (64, 436, 436)
    assert not set(calibration) & set(scored)
    assert labels[0] == 2 and scored[0].name.startswith("n01484850")


def test_missing_photos_are_explained(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "imagenet.py")]
    environment = os.environ | {"KVANT_SHARED": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "set KVANT_SHARED to the folder that holds data/imagenet" in result.stderr


@pytest.mark.slow
@needs_photos
def test_imagenet(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "openvino", "nncf", "onnxruntime", "torchao"):
        pytest.importorskip(package)
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "imagenet.py"), "--output", str(tmp_path)]
    command += ["--networks", "mobilenet-v2", "--calibration", "4", "--photos", "8"]
    subprocess.run(command, check=True)
    found = json.loads((tmp_path / "imagenet.json").read_text())["results"]["mobilenet-v2"]
    assert found["float"]["top1"] >= 75
    assert {"kvant", "NNCF (OpenVINO)", "ONNX Runtime (QDQ)", "torchao (PT2E)"} < set(found)
    assert found["kvant"]["bytes"] < 0.3 * found["float"]["bytes"]


@pytest.mark.slow
@needs_photos
@pytest.mark.parametrize("network", ["mobilenet-v2", "efficientnet-lite0"])
def test_default_recipe_answers_as_float(load: Any, tmp_path: Path, network: str) -> None:
    imagenet = load("imagenet")
    job = {"network": network, "calibration": 64, "photos": 436, "folder": str(tmp_path), "threads": 1}
    found = imagenet.scores({engine: imagenet.measure({**job, "engine": engine}) for engine in ("float", "kvant")})
    assert found["float"]["top1"] > 82  # pictures are prepared as the network was trained
    assert found["kvant"]["top1"] >= found["float"]["top1"] - 0.5
    assert found["kvant"]["agreement"] >= 96
