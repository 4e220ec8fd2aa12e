# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/retinanet.py',
    '../_base_/backbones/focal_tiny.py',
    # choice: single scale as the paper says; Swin's own 1x had the crop policy:
    # '../_base_/datasets/coco_detection_ms_crop.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/default_runtime_mmdet.py',
]

model = dict(backbone=dict(out_indices=(1, 2, 3), **_base_.backbone))
