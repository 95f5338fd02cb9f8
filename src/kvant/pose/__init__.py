"""Pose estimation with OpenPose networks: networks, pre- and post-processing, drawing, COCO evaluation.

Importing this package imports neither torch nor OpenCV; the networks, which need torch, are loaded on first use.
"""

from __future__ import annotations
