"""Pose estimation with OpenPose networks: networks, pre- and post-processing, drawing, COCO evaluation.

Importing this package imports neither torch nor OpenCV: what needs them is loaded on first use.

    >>> estimator = PoseEstimator("pose.kvant")  # doctest: +SKIP
    >>> people = estimator.detect(read_image("photo.jpg"))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvant.errors import MissingDependencyError
from kvant.pose.layout import COCO_KEYPOINTS, LIMBS, PARTS, Limb
from kvant.pose.person import Person
from kvant.pose.spec import NETWORKS, InputSpec, NetworkSpec, PoseOutput, network_spec

if TYPE_CHECKING:
    from kvant.pose.calibration import calibration_inputs
    from kvant.pose.compare import COMPARISON_COLUMNS, Comparison, Difference, compare_estimators, compare_people
    from kvant.pose.decode import decode_people
    from kvant.pose.draw import draw_people, side_by_side
    from kvant.pose.estimator import FOUR_SCALES, ONE_SCALE, PoseEstimator
    from kvant.pose.evaluate import Agreement, CocoTruth, evaluate_coco, keypoint_agreement
    from kvant.pose.maps import DecoderSettings, Maps
    from kvant.pose.networks import OpenPoseMobileNetThin, OpenPoseVGG, load_checkpoint
    from kvant.pose.pictures import as_picture, decode_image, find_pictures, read_image
    from kvant.pose.preprocess import Geometry, prepare
    from kvant.pose.server import PageLimits, PageModels, serve_page
    from kvant.pose.video import Video, VideoReport, process_video

__all__ = [
    "COCO_KEYPOINTS",
    "COMPARISON_COLUMNS",
    "FOUR_SCALES",
    "LIMBS",
    "NETWORKS",
    "ONE_SCALE",
    "PARTS",
    "Agreement",
    "CocoTruth",
    "Comparison",
    "DecoderSettings",
    "Difference",
    "Geometry",
    "InputSpec",
    "Limb",
    "Maps",
    "NetworkSpec",
    "OpenPoseMobileNetThin",
    "OpenPoseVGG",
    "PageLimits",
    "PageModels",
    "Person",
    "PoseEstimator",
    "PoseOutput",
    "Video",
    "VideoReport",
    "as_picture",
    "calibration_inputs",
    "compare_estimators",
    "compare_people",
    "decode_image",
    "decode_people",
    "draw_people",
    "evaluate_coco",
    "find_pictures",
    "keypoint_agreement",
    "load_checkpoint",
    "network_spec",
    "prepare",
    "process_video",
    "read_image",
    "serve_page",
    "side_by_side",
]

_LAZY = {
    "calibration": ("calibration_inputs",),
    "compare": ("COMPARISON_COLUMNS", "Comparison", "Difference", "compare_estimators", "compare_people"),
    "decode": ("decode_people",),
    "draw": ("draw_people", "side_by_side"),
    "estimator": ("FOUR_SCALES", "ONE_SCALE", "PoseEstimator"),
    "evaluate": ("Agreement", "CocoTruth", "evaluate_coco", "keypoint_agreement"),
    "maps": ("DecoderSettings", "Maps"),
    "networks": ("OpenPoseMobileNetThin", "OpenPoseVGG", "load_checkpoint"),
    "pictures": ("as_picture", "decode_image", "find_pictures", "read_image"),
    "preprocess": ("Geometry", "prepare"),
    "server": ("PageLimits", "PageModels", "serve_page"),
    "video": ("Video", "VideoReport", "process_video"),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}
_EXTRAS = {"torch": "torch", "cv2": "pose", "av": "pose"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise MissingDependencyError(f"{__name__}.{name} needs {error.name}: pip install 'kvant[{extra}]'") from error
    return getattr(module, name)
