# SPDX-License-Identifier: Apache-2.0
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
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20, by_epoch=False)
auto_scale_lr = dict(base_batch_size=_base_.train_dataloader.batch_size)
