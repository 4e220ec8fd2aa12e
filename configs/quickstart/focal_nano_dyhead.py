# SPDX-License-Identifier: Apache-2.0
"""Needs a trained backbone, as in the paper.

The backbone of ``focal_nano_maskrcnn`` suffices: ``--cfg-options
model.backbone.init_cfg.type=FocalPretrained model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = [
    '../_base_/models/dyhead.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/nano/box_detection.py',
]

channels = _base_.head_channels
fpn, dyhead = _base_.model.neck
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(out_indices=(1, 2, 3), **_base_.backbone),
    neck=[
        dict(fpn, in_channels=[64, 128, 256], out_channels=channels),
        dict(dyhead, in_channels=channels, out_channels=channels, num_blocks=2),
    ],
    bbox_head=dict(
        num_classes=10,
        in_channels=channels,
        feat_channels=channels,
        # 32 pixels and more: digits have 20 to 56
        anchor_generator=dict(octave_base_scale=4),
    ),
)
# The learning rate of the other heads (1.5e-3) is too high for this one.
max_iters = 2600
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
