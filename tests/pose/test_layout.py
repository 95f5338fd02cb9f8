from __future__ import annotations

import numpy as np
import pytest

from kvant.pose import COCO_KEYPOINTS, LIMBS, NETWORKS, PARTS, InputSpec, NetworkSpec, PoseOutput, network_spec
from kvant.pose.layout import COCO_FROM_PARTS, PART_COLOURS


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
    with pytest.raises(ValueError, match="once each"):
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
