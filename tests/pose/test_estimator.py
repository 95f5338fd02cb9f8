"""The whole way from pictures to people, with networks that show what the test wants."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kvant
from kvant.errors import BackendError, FormatError, ImageError, InputError
from kvant.pose import (
    FOUR_SCALES,
    Person,
    PoseEstimator,
    draw_people,
    network_spec,
    prepare,
)
from kvant.pose.layout import Float32Array

from .scenes import render, standing
from .user import LENIENT, UserFile, noise

SPEC = network_spec("openpose-mobilenet-thin")
PEOPLE = [standing(20, 30, 110, 300), standing(270, 60, 120, 240)]
HEIGHT, WIDTH = 368, 496
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def scene(array: Float32Array) -> Float32Array:
    """A network that sees two people, wherever it looks, as large as its input."""
    scale = array.shape[2] / HEIGHT
    people = [np.concatenate([(person[:, :2] + 0.5) * scale - 0.5, person[:, 2:]], axis=1) for person in PEOPLE]
    return np.concatenate(render(people, *array.shape[2:]), axis=0)[np.newaxis]


def same(found: list[Person], pixels: float) -> None:
    assert len(found) == len(PEOPLE)
    for person in found:
        nearest = min(PEOPLE, key=lambda each: np.abs(each[:, :2] - person.keypoints[:, :2]).max())
        assert np.abs(nearest[:, :2] - person.keypoints[:, :2]).max() < pixels
    assert np.abs(found[0].keypoints - found[1].keypoints).max() > 100


@pytest.mark.parametrize("scales", [(1.0,), (2.0,), FOUR_SCALES])
def test_people_are_found_at_every_scale(scales: tuple[float, ...]) -> None:
    same(PoseEstimator(scene, network=SPEC, scales=scales).detect(PICTURE), pixels=4)


def test_each_scale_is_a_run_of_the_network() -> None:
    shapes = []

    def infer(array: Float32Array) -> Float32Array:
        shapes.append(array.shape)
        return np.zeros((1, 57, array.shape[2] // 8, array.shape[3] // 8), np.float32)

    PoseEstimator(infer, network=SPEC, scales=FOUR_SCALES).detect(PICTURE)
    assert shapes == [(1, 3, 184, 248), (1, 3, 368, 496), (1, 3, 552, 744), (1, 3, 736, 992)]


def test_maps_of_scales_are_averaged() -> None:
    def half_blind(array: Float32Array) -> Float32Array:
        return scene(array) * (array.shape[2] == HEIGHT)

    seeing, average = (PoseEstimator(infer, network=SPEC, scales=(1.0, 2.0)) for infer in (scene, half_blind))
    people, faint = seeing.detect(PICTURE), average.detect(PICTURE)
    assert len(people) == len(faint) == 2
    assert faint[0].score < 0.7 * people[0].score


def test_a_batch_is_each_picture_alone() -> None:
    estimator = PoseEstimator(scene, network=SPEC)
    pictures = [PICTURE, np.zeros((200, 300, 3), np.uint8), PICTURE[:100]]
    for found, picture in zip(estimator.detect_batch(pictures), pictures, strict=True):
        assert [person.to_dict() for person in found] == [person.to_dict() for person in estimator.detect(picture)]
    assert estimator.detect_batch([]) == []


def test_drawing() -> None:
    estimator = PoseEstimator(scene, network=SPEC)
    people = estimator.detect(PICTURE)
    np.testing.assert_array_equal(estimator.draw(PICTURE, people), draw_people(PICTURE, people))
    assert estimator.draw(PICTURE[:, :, 0], people).shape == PICTURE.shape


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2), (7, 9), (4000, 6000)])
def test_sizes_from_tiny_to_huge(size: tuple[int, int]) -> None:
    for person in PoseEstimator(scene, network=SPEC).detect(np.zeros((*size, 3), np.uint8)):
        assert (person.keypoints[:, :2] >= 0).all()
        assert (person.keypoints[:, :2] <= (size[1] - 1, size[0] - 1)).all()


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_picture(array: Any) -> None:
    with pytest.raises(ImageError, match="expected a picture"):
        PoseEstimator(scene, network=SPEC).detect(array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "1 to 16 scales"),
        ({"scales": (0.5,) * 17}, "1 to 16 scales"),
        ({"scales": (float("nan"),)}, "at least 8 pixels"),
        ({"scales": (0.01,)}, "at least 8 pixels"),
        ({"scales": (-1.0,)}, "at least 8 pixels"),
        ({"height": 0}, "at least 8 pixels"),
        ({"network": None}, "nothing says which network function is"),
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PoseEstimator(scene, **{"network": SPEC, **options})


def test_outputs_of_another_network() -> None:
    estimator = PoseEstimator(lambda array: array, network="openpose-vgg")
    with pytest.raises(InputError, match="outputs are not those of openpose-vgg: expected paf and heat"):
        estimator.detect(PICTURE)


def test_maps_of_another_stride() -> None:
    """Their people would lie in other places of the picture."""
    estimator = PoseEstimator(lambda array: scene(array)[:, :, ::2, ::2], network=SPEC)
    with pytest.raises(InputError, match=r"maps of \(23, 31\) .* expected \(46, 62\), because .* has stride 8"):
        estimator.detect(PICTURE)


class UserNetwork(nn.Module):
    """RGB in, (paf, heat) out; torch modules of this class are unknown to the package."""

    def __init__(self, outputs: Callable[[int, int], Float32Array]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.from_numpy(self.outputs(*image.shape[2:]))
        return maps[:, 19:], maps[:, :19]


def test_a_torch_network_must_be_known_or_described() -> None:
    network = UserNetwork(lambda height, width: scene(np.zeros((1, 3, height, width), np.float32)))
    with pytest.raises(InputError, match="nothing says which network UserNetwork is"):
        PoseEstimator(network)
    same(PoseEstimator(network, network="openpose-vgg").detect(PICTURE), pixels=4)


def test_a_network_of_ones_own_travels_whole_in_its_file(user_file: Path) -> None:
    estimator = PoseEstimator(user_file, height=96)
    assert estimator.network == UserFile.SPEC
    picture = noise(9, 100, 120)
    (maps,) = estimator.maps(picture)
    with torch.inference_mode():
        values = torch.from_numpy(prepare(picture, UserFile.SPEC, 96)[0])
        paf, heat = (output.numpy()[0] for output in UserFile().eval()(values))
    for found, expected in ((maps.heat[18], heat[0]), (maps.heat[0], heat[18]), (maps.paf[:2], paf[36:])):
        assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean() + 0.02
    # The neighbours, by contrast, differ by much more.
    assert np.abs(maps.heat[0] - heat[0]).mean() > 0.3 * np.abs(heat[0]).mean()


def test_a_file_and_its_float_network_see_the_same(user_file: Path) -> None:
    picture = noise(9, 100, 120)
    (one,), (other,) = (
        PoseEstimator(model, network=UserFile.SPEC, height=96).maps(picture) for model in (user_file, UserFile().eval())
    )
    assert np.abs(one.heat - other.heat).max() < 0.1 * np.abs(other.heat).max()
    assert one.geometry == other.geometry


def test_threads_that_share_a_file_get_what_one_gets(user_file: Path) -> None:
    estimator = PoseEstimator(user_file, height=96, scales=(0.5, 1.0), settings=LENIENT)
    pictures = [noise(seed, 40 + 7 * seed, 60 + 11 * (seed % 5)) for seed in range(24)]
    expected = [[person.to_dict() for person in estimator.detect(picture)] for picture in pictures]
    assert sum(map(len, expected)) > 24
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            found = list(pool.map(estimator.detect, pictures))
            assert [[person.to_dict() for person in people] for people in found] == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_several_pictures_at_once_are_what_each_is_alone(user_file: Path, count: int) -> None:
    estimator = PoseEstimator(user_file, height=96, settings=LENIENT)
    pictures = [noise(seed, 90 + seed, 120) for seed in range(count)]
    expected = [[person.to_dict() for person in estimator.detect(picture)] for picture in pictures]
    before = kvant.num_threads()
    kvant.set_num_threads(3)
    threads = list(estimator.each(lambda picture: (estimator.detect(picture), kvant.num_threads())[1], pictures))
    found = estimator.detect_batch(iter(pictures))
    kvant.set_num_threads(before)
    assert [[person.to_dict() for person in people] for people in found] == expected
    # Where there are too few pictures for all threads, each gets all of them.
    assert threads == [3 if count < 3 else 1] * count


def test_a_memory_budget_changes_no_result(user_file: Path) -> None:
    picture = noise(9, 100, 120)
    plain, *others = (
        PoseEstimator(user_file, height=96, settings=LENIENT, memory_budget=budget) for budget in (None, 0, "speed")
    )
    expected = [person.to_dict() for person in plain.detect(picture)]
    assert expected
    for other in others:
        assert [person.to_dict() for person in other.detect(picture)] == expected
    with pytest.raises(BackendError, match="memory_budget='most'"):
        PoseEstimator(user_file, memory_budget="most")


def test_a_file_that_does_not_say_what_it_holds(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 57, 3, stride=8, padding=1)).eval()
    image = torch.rand(1, 3, 64, 64)
    kvant.quantize(net, image, calibration=[image]).save(tmp_path / "plain.kvant")
    with pytest.raises(FormatError, match="does not say which pose network"):
        PoseEstimator(tmp_path / "plain.kvant")
    [maps] = PoseEstimator(tmp_path / "plain.kvant", network=SPEC).maps(PICTURE)
    assert len(maps.heat) == 19 and len(maps.paf) == 38


def test_a_name_must_be_that_of_what_the_file_describes(user_file: Path) -> None:
    """By another network's rules, noise would be found where people are."""
    with pytest.raises(InputError, match="that it holds 'user', not 'openpose-vgg'"):
        PoseEstimator(user_file, network="openpose-vgg")
    with pytest.raises(InputError, match="unknown network 'user'"):
        PoseEstimator(user_file, network="user")
    assert PoseEstimator(user_file, network=SPEC).network == SPEC
    model = kvant.load(user_file)
    model.metadata = network_spec("openpose-vgg").metadata()
    assert PoseEstimator(model, network="openpose-vgg").network == network_spec("openpose-vgg")
    model.metadata["network"] = "openpose-mobilenet-thin"
    with pytest.raises(InputError, match="'openpose-mobilenet-thin' takes or returns something else"):
        PoseEstimator(model, network="openpose-mobilenet-thin")
    model.metadata = {"network": "mine"}  # and nothing about it
    assert PoseEstimator(model, network="openpose-vgg").network == network_spec("openpose-vgg")
