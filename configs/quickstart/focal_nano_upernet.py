# SPDX-License-Identifier: Apache-2.0
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
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11),
)
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20)
# half as long, because a batch is larger
param_scheduler = _base_.half_as_long.param_scheduler
train_cfg = _base_.half_as_long.train_cfg
