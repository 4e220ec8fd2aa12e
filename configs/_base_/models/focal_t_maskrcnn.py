# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with FPN on Focal-T."""

_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../backbones/focal_tiny.py']

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'])
# drop path: the paper's 0.2 for all detectors (Swin's 1x configs have 0.1: drop_path_rate=0.1)
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
