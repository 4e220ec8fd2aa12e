# SPDX-License-Identifier: Apache-2.0
"""Classifier of single digits. A detector or segmentor can start from its backbone:

``--cfg-options model.backbone.init_cfg.type=FocalPretrained
model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = [
    '../_base_/backbones/focal_nano.py',
    '../_base_/datasets/digit_scenes_cls.py',
    '../_base_/schedules/nano.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(out_indices=(3,), **_base_.backbone),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256, topk=(1,)),
)
max_iters = 240
warmup = 30
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup),
    dict(_base_.param_scheduler[1], begin=warmup, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=60)
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20, by_epoch=False)
auto_scale_lr = dict(base_batch_size=_base_.train_dataloader.batch_size)
