# SPDX-License-Identifier: Apache-2.0
"""A small Mask R-CNN for digit scenes without a backbone (widths 32, 64, 128, 256)."""

_base_ = ['../models/maskrcnn.py', 'two_stage.py']

channels = _base_.head_channels
model = dict(
    neck=_base_.fpn,
    rpn_head=_base_.rpn_head,
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        # class-agnostic boxes and masks, which learn from every digit
        bbox_head=dict(
            in_channels=channels, fc_out_channels=256, num_classes=10, reg_class_agnostic=True
        ),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=10,
            class_agnostic=True,
            loss_mask=dict(loss_weight=2.0),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=_base_.training_proposals,
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=_base_.testing_proposals),
)
