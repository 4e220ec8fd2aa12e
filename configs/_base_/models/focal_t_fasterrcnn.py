# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN with FPN on Focal-T, as Mask R-CNN without masks."""

_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', '../backbones/focal_tiny.py']

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'])
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
