# SPDX-License-Identifier: Apache-2.0
"""Swin's HTC++ box heads, for the best accuracy: four convolutions, class-agnostic boxes, GIoU."""

_base_ = 'focal_l_htcpp_3x.py'

box_head = dict(
    type='Shared4Conv1FCBBoxHead',
    reg_decoded_bbox=True,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
model = dict(
    roi_head=dict(bbox_head=[{**head, **box_head} for head in _base_.model.roi_head.bbox_head])
)
