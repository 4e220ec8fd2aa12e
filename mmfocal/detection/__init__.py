# SPDX-License-Identifier: Apache-2.0
"""Modules that mmdet lacks, registered on import; configs use ``custom_imports``.

``docs/nano_results.md`` lists results of small detectors with these modules on digit scenes.
"""

from mmfocal.environment import require

require('mmcv.ops', 'mmdet.models')

from .bifpn import BiFPN
from .box_tta import SizeFilteredDetTTAModel
from .htc_roi_head import AveragedHTCRoIHead
from .instaboost import RepairedInstaBoost
from .mask_tta import MaskTTAModel
from .reppoints_v2 import RepPointsV2Detector
from .reppoints_v2_head import RepPointsV2Head
from .reppoints_v2_losses import InclusiveGIoULoss, SeparateFocalLoss
from .reppoints_v2_targets import CornerAssigner

__all__ = [
    'AveragedHTCRoIHead',
    'BiFPN',
    'CornerAssigner',
    'InclusiveGIoULoss',
    'MaskTTAModel',
    'RepPointsV2Detector',
    'RepPointsV2Head',
    'RepairedInstaBoost',
    'SeparateFocalLoss',
    'SizeFilteredDetTTAModel',
]
