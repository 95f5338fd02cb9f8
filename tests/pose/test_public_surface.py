from __future__ import annotations

import subprocess
import sys

import pytest

import kvant.pose
from kvant.errors import MissingDependencyError

EXPECTED = {
    "COCO_KEYPOINTS", "COMPARISON_COLUMNS", "FOUR_SCALES", "LIMBS", "NETWORKS", "ONE_SCALE", "PARTS",
    "Agreement", "CocoTruth", "Comparison", "DecoderSettings", "Difference", "Geometry", "InputSpec", "Limb", "Maps",
    "NetworkSpec", "OpenPoseMobileNetThin", "OpenPoseVGG", "PageLimits", "PageModels", "Person", "PoseEstimator",
    "PoseOutput", "Video", "VideoReport",
    "as_picture", "calibration_inputs", "compare_estimators", "compare_people", "decode_image", "decode_people",
    "draw_people", "evaluate_coco", "find_pictures", "keypoint_agreement", "load_checkpoint", "network_spec", "prepare",
    "process_video", "read_image", "serve_page", "side_by_side",
}  # fmt: skip


def test_exported_names() -> None:
    assert set(kvant.pose.__all__) == EXPECTED
    for name in kvant.pose.__all__:
        assert getattr(kvant.pose, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kvant.pose.nothing


@pytest.mark.parametrize(
    ("use", "absent"),
    [
        ("import kvant.pose; kvant.pose.network_spec('openpose-vgg'); kvant.pose.Person", {"torch", "cv2"}),
        (
            "from kvant.pose import PoseEstimator, read_image, decode_people, draw_people, evaluate_coco",
            {"torch", "av"},
        ),
    ],
)
def test_what_is_not_imported(use: str, absent: set[str]) -> None:
    check = f"{use}; import sys; loaded = {absent!r} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("prepare", "cv2", "pose"), ("OpenPoseVGG", "torch", "torch"), ("Video", "av", "pose")],
)
def test_missing_packages_are_named_with_their_extra(name: str, package: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
import kvant.pose
try:
    kvant.pose.{name}
except kvant.errors.{MissingDependencyError.__name__} as error:
    assert "{package}" in str(error) and "kvant[{extra}]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
