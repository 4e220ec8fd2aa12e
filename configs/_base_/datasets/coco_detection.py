# SPDX-License-Identifier: Apache-2.0
"""COCO boxes at a single scale of (1333, 800)."""

_base_ = ['mmdet::_base_/datasets/coco_detection.py', '../pipelines/views_800.py']

tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
