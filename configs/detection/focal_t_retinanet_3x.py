# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/focal_t_retinanet.py',
    '../_base_/datasets/coco_detection_ms_crop.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]
