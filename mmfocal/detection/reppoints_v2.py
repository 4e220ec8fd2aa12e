# SPDX-License-Identifier: Apache-2.0
"""RepPointsV2."""

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class RepPointsV2Detector(SingleStageDetector):
    """RepPointsV2 (https://arxiv.org/abs/2007.08508); the head implements the method."""
