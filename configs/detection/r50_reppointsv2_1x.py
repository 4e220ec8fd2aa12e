# SPDX-License-Identifier: Apache-2.0
"""RepPointsV2 on ResNet-50 with the settings of its authors' 1x."""

_base_ = [
    '../_base_/models/reppointsv2.py',
    '../_base_/models/reppointsv2_fpn.py',
    '../_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_mmdet.py',
]

smooth_l1 = dict(_delete_=True, type='SmoothL1Loss', beta=0.11)
model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(_base_.fpn.neck, in_channels=[512, 1024, 2048]),
    bbox_head=dict(
        loss_bbox_init=dict(smooth_l1, loss_weight=0.5),
        loss_bbox_refine=dict(smooth_l1, loss_weight=1.0),
        **_base_.fpn.bbox_head,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=35, norm_type=2))
tta_model = dict(tta_cfg=dict(nms=dict(iou_threshold=0.6)))
