# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/htcpp.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/coco_htcpp.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'])
# drop path: choice 0.2 as in Swin's text and CBNetV2's HTC++; the paper is silent
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, with_cp=True, **_base_.backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.1))
train_dataloader = dict(batch_size=1)  # 16 GPUs x 1 image
