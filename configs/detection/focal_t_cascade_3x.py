# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/cascade.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/coco_instance_ms_crop.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'])
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
