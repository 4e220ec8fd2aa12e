# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on Focal-T; FPN's extra levels come from its input."""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../backbones/focal_tiny.py']

# drop path: the paper's 0.2 for all detectors (FocalNet's 1x configs have 0.1: drop_path_rate=0.1)
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, out_indices=(1, 2, 3), **_base_.backbone),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
