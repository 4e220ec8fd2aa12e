# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/retinanet.py',
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
        # 16, 20, 25, 32 pixels and more: digits have 20 to 56
        anchor_generator=dict(octave_base_scale=2),
        # as in ATSS; without norm and with a quarter of the channels, activations vanish
        norm_cfg=dict(type='GN', num_groups=32),
    ),
)
