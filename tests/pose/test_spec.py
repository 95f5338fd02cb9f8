from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError
from kvant.pose import COCO_KEYPOINTS, LIMBS, NETWORKS, PARTS, InputSpec, NetworkSpec, PoseOutput, network_spec
from kvant.pose.layout import COCO_FROM_PARTS, PART_COLOURS
from kvant.pose.spec import FIELDS


def test_every_field_channel_belongs_to_one_limb() -> None:
    channels = [channel for limb in LIMBS for channel in (limb.paf_x, limb.paf_y)]
    assert sorted(channels) == list(range(38))
    assert all(limb.paf_y == limb.paf_x + 1 for limb in LIMBS)


def test_coco_has_every_part_but_the_neck() -> None:
    assert len(COCO_KEYPOINTS) == 17
    assert set(PARTS) - set(COCO_KEYPOINTS) == {"neck"}
    assert [PARTS[index] for index in COCO_FROM_PARTS] == list(COCO_KEYPOINTS)


def test_part_colours_differ() -> None:
    assert len(set(PART_COLOURS)) == len(PARTS)


@pytest.mark.parametrize("name", ["openpose-vgg", "openpose-mobilenet-thin"])
def test_outputs_are_split_as_each_network_returns_them(name: str) -> None:
    heat, paf = np.ones((2, 19, 3, 4), np.float32), np.zeros((2, 38, 3, 4), np.float32)
    outputs = (paf, heat) if name == "openpose-vgg" else np.concatenate([heat, paf], axis=1)
    split = network_spec(name).output.split(outputs)
    np.testing.assert_array_equal(split[0], heat)
    np.testing.assert_array_equal(split[1], paf)


@pytest.mark.parametrize(
    "outputs",
    [
        np.zeros((1, 56, 3, 4), np.float32),
        np.zeros((57, 3, 4), np.float32),
        (np.zeros((1, 38, 3, 4), np.float32), np.zeros((1, 19, 3, 4), np.float32)),
        (np.zeros((1, 57, 3, 4), np.float32), np.zeros((1, 57, 3, 4), np.float32)),
        (),
    ],
)
def test_outputs_of_other_shapes_are_refused(outputs: object) -> None:
    with pytest.raises(ValueError, match="19 and 38 channels"):
        PoseOutput(("heat", "paf")).split(outputs)


def test_an_output_order_names_both_blocks() -> None:
    with pytest.raises(ValueError, match=r"each of .* once"):
        PoseOutput(("heat", "heat"))


def test_unknown_networks_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'openpose'.*openpose-vgg, openpose-mobilenet-thin"):
        network_spec("openpose")


def test_a_network_without_weights_asks_for_a_checkpoint() -> None:
    with pytest.raises(ValueError, match="give a checkpoint"):
        NETWORKS["openpose-vgg"].build()


def test_a_network_of_ones_own_cannot_be_built_here() -> None:
    with pytest.raises(ValueError, match="mine is not one of"):
        NetworkSpec("mine", InputSpec(), PoseOutput(("heat", "paf"))).build()


MINE = NetworkSpec(
    "mine",
    InputSpec(channel_order="RGB", scale=(0.5, 0.25, 2.0), offset=-1.5, stride=4, padding=7),
    PoseOutput(("paf", "heat"), heat_maps=("background", *PARTS[::-1]), fields=FIELDS[::-1]),
)


@pytest.mark.parametrize("spec", [*NETWORKS.values(), MINE])
def test_metadata_say_what_the_network_takes_and_returns(spec: NetworkSpec) -> None:
    assert NetworkSpec.from_metadata(spec.metadata()) == spec
    assert NetworkSpec.from_metadata({"author": "me", **spec.metadata()}) == spec


def test_files_that_name_a_known_network_are_understood() -> None:
    assert NetworkSpec.from_metadata({"network": "openpose-vgg"}) == network_spec("openpose-vgg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": None}, "does not say which pose network"),
        ({"pose": None}, "give a NetworkSpec"),
        ({"pose": "{"}, "'pose' are not understood"),
        ({"pose": '{"order":["paf","heat"]}'}, "missing required field"),
        ({"pose": MINE.metadata()["pose"].replace('"stride":4', '"stride":0')}, "stride must be"),
        ({"pose": MINE.metadata()["pose"].replace('"stride":4', '"stride":"4"')}, "stride"),
        ({"pose": MINE.metadata()["pose"].replace('"stride":4', '"stride":4,"x":1')}, "unknown field `x`"),
        ({"pose": MINE.metadata()["pose"].replace('"background"', '"nose"')}, "heat_maps must name each"),
        ({"pose": MINE.metadata()["pose"].replace("RGB", "GBR")}, "channel_order"),
    ],
)
def test_metadata_that_say_too_little_or_nonsense(change: dict[str, str | None], message: str) -> None:
    metadata = {key: value for key, value in {**MINE.metadata(), **change}.items() if value is not None}
    with pytest.raises(FormatError, match=message):
        NetworkSpec.from_metadata(metadata)


@pytest.mark.parametrize(
    "values",
    [
        {"channel_order": "GBR"}, {"scale": float("nan")}, {"offset": (1.0, 2.0)}, {"stride": 0}, {"padding": 256},
    ],
)  # fmt: skip
def test_inputs_without_a_meaning_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        InputSpec(**values)


def test_channels_in_another_order_are_put_right() -> None:
    heat, paf = (np.arange(count, dtype=np.float32).reshape(1, count, 1, 1) for count in (19, 38))
    mine = PoseOutput(("heat", "paf"), heat_maps=("background", *PARTS[::-1]), fields=FIELDS[::-1])
    found_heat, found_paf = mine.split([heat, paf])
    assert found_heat.ravel().tolist() == [*range(18, 0, -1), 0]
    assert found_paf.ravel()[:4].tolist() == [36, 37, 34, 35]
    assert np.shares_memory(PoseOutput(("heat", "paf")).split([heat, paf])[0], heat)
