from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kvant.errors import CheckpointError
from kvant.pose import OpenPoseMobileNetThin, OpenPoseVGG, PoseEstimator, load_checkpoint, network_spec, read_image


@pytest.fixture(scope="module")
def thin() -> OpenPoseMobileNetThin:
    return OpenPoseMobileNetThin.pretrained()


def published_keys() -> set[str]:
    """The parameter names of coco_pose_iter_440000.pth.tar: convolutions numbered as layers of ReLUs and pools."""
    layers = {"model0": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25)}
    for branch in (1, 2):
        layers[f"model1_{branch}"] = (0, 2, 4, 6, 8)
        layers |= {f"model{stage}_{branch}": (0, 2, 4, 6, 8, 10, 12) for stage in range(2, 7)}
    return {
        f"{block}.{layer}.{kind}"
        for block, numbers in layers.items()
        for layer in numbers
        for kind in ("weight", "bias")
    }


def test_vgg_has_the_published_layout() -> None:
    with torch.device("meta"):
        network = OpenPoseVGG()
    state = network.state_dict()
    assert set(state) == published_keys()
    assert sum(value.numel() for value in state.values()) == 52_311_446
    assert state["model2_1.0.weight"].shape == (128, 185, 7, 7)
    assert state["model6_2.12.bias"].shape == (19,)
    paf, heat = network(torch.zeros(2, 3, 64, 48, device="meta"))
    assert paf.shape == (2, 38, 8, 6)
    assert heat.shape == (2, 19, 8, 6)


def test_vgg_loads_a_checkpoint_of_the_published_form(tmp_path: Path) -> None:
    network = OpenPoseVGG()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "pose.pth.tar")
    loaded = OpenPoseVGG.from_checkpoint(tmp_path / "pose.pth.tar")
    assert not loaded.training
    image = torch.rand(1, 3, 32, 40) - 0.5
    with torch.inference_mode():
        for expected, actual in zip(network(image), loaded(image), strict=True):
            assert torch.equal(expected, actual)


def test_a_bare_state_dict_loads_and_the_spec_builds_it(thin: OpenPoseMobileNetThin, tmp_path: Path) -> None:
    torch.save(thin.state_dict(), tmp_path / "thin.pth")
    loaded = network_spec("openpose-mobilenet-thin").build(str(tmp_path / "thin.pth"))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in thin.state_dict().items())


def test_every_difference_of_a_checkpoint_is_listed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    state = {"0.weight": torch.zeros(4, 3), "1.weight": torch.zeros(5, 5), "1.bias": torch.zeros(5)}
    torch.save({"state_dict": state | {"2.bias": torch.zeros(1)}}, tmp_path / "wrong.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(network, tmp_path / "wrong.pth")
    message = str(raised.value)
    assert "missing: 0.bias (4,)" in message
    assert "surplus: 2.bias (1,)" in message
    assert "wrong shape: 1.weight is (5, 5), expected (5, 4)" in message
    assert "0.weight" not in message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Surprise:
    """A pickle that would run code; `weights_only` must keep it from doing so."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_files_that_are_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "bad.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be read"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "none.pth")


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:9000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(nn.Linear(64, 64), tmp_path / "half.pth")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Surprise()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_whole_network_in_a_checkpoint(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"not run here; where it was made, save model\.state_dict\(\) alone"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "whole.pth")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"weight": 3}}, torch.zeros(2)])
def test_checkpoints_without_a_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "other.pth")


def test_thin_exports_with_dynamic_sizes(thin: OpenPoseMobileNetThin) -> None:
    batch, rows, columns = (torch.export.Dim(name, min=2, max=512) for name in ("batch", "rows", "columns"))
    dynamic = ({0: batch, 2: 8 * rows, 3: 8 * columns},)
    program = torch.export.export(thin, (torch.zeros(2, 3, 64, 48),), dynamic_shapes=dynamic)
    image = 255 * torch.rand(3, 3, 40, 72)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(image), thin(image), rtol=1e-3, atol=1e-3)


def test_thin_finds_the_five_people(thin: OpenPoseMobileNetThin, shared_data: Path) -> None:
    people = PoseEstimator(thin).detect(read_image(shared_data / "seed" / "test.jpg"))
    assert len(people) == 5
    assert all(person.found.sum() >= 16 for person in people)
    noses = np.array([person.keypoints[0, :2] for person in people])
    assert len(np.unique(np.round(noses / 20), axis=0)) == 5
