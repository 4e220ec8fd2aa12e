# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/reppointsv2.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/coco_detection_ms_480_960.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]

model = dict(backbone=dict(out_indices=(1, 2, 3), **_base_.backbone))
tta_model = dict(tta_cfg=dict(nms=dict(iou_threshold=0.6)))
