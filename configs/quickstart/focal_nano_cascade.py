# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/cascade.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/nano/two_stage.py',
]

channels = _base_.head_channels
heads, stages = _base_.model.roi_head, _base_.model.train_cfg.rcnn
width = dict(in_channels=channels, conv_out_channels=channels, num_classes=10)
samples = dict(num=32, pos_fraction=0.5)  # half of Mask R-CNN's, in each of three stages
model = dict(
    backbone=_base_.backbone,
    neck=_base_.fpn,
    rpn_head=_base_.rpn_head,
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        # class-agnostic boxes and masks, which learn from every digit
        bbox_head=[
            dict(head, fc_out_channels=256, reg_class_agnostic=True, **width)
            for head in heads.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(num_convs=2, class_agnostic=True, loss_mask=dict(loss_weight=2.0), **width),
    ),
    train_cfg=dict(
        rpn_proposal=_base_.training_proposals,
        rcnn=[dict(stage, sampler=dict(stage.sampler, **samples)) for stage in stages],
    ),
    test_cfg=dict(rpn=_base_.testing_proposals),
)
param_scheduler = _base_.half_as_long.param_scheduler
train_cfg = _base_.half_as_long.train_cfg
