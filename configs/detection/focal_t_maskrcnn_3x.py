# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/maskrcnn.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/coco_instance_ms_crop.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]

model = dict(backbone=_base_.backbone)
