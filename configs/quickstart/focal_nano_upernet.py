# SPDX-License-Identifier: Apache-2.0
"""Needs a pre-trained backbone; the paper's is pre-trained on ImageNet.

With a random backbone, the model stays at chance for 1,300 iterations. The backbone of
``focal_nano_maskrcnn`` suffices: ``--cfg-options model.backbone.init_cfg.type=FocalPretrained
model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/datasets/digit_scenes_seg.py',
    '../_base_/schedules/nano.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=10),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=10),
)
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.25)))
)
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20)
