# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/reppointsv2.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/nano/box_detection.py',
]

channels = _base_.head_channels
model = dict(
    backbone=dict(out_indices=(1, 2, 3), **_base_.backbone),
    neck=dict(in_channels=[64, 128, 256], out_channels=channels),
    bbox_head=dict(
        num_classes=10,
        in_channels=channels,
        feat_channels=channels,
        point_feat_channels=channels,
        # without a norm, units die at this learning rate, 15 times that of the full configs
        point_norm_cfg=_base_.norm_cfg,
    ),
)
