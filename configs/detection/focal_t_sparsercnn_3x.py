# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/sparsercnn.py',
    '../_base_/backbones/focal_tiny.py',
    '../_base_/datasets/coco_detection_ms_crop.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/default_runtime_mmdet.py',
]

model = dict(backbone=_base_.backbone)
# choice: Sparse R-CNN's own optimizer in fp32, as in FocalNet's config, by the same first author;
# the paper's text has one recipe for all detectors; that recipe, with gradient clipping:
# optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
tta_model = dict(tta_cfg=dict(max_per_img=300))
