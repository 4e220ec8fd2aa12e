# SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/htcpp.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/nano/two_stage.py',
]

channels = _base_.head_channels
heads, stages = _base_.model.roi_head, _base_.model.train_cfg.rcnn
mask_width = dict(num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=10)
samples = dict(num=32, pos_fraction=0.5)  # half of Mask R-CNN's, in each of three stages
model = dict(
    backbone=_base_.backbone,
    neck=_base_.fpn,
    rpn_head=_base_.rpn_head,
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=[
            dict(head, in_channels=channels, fc_out_channels=256, num_classes=10)
            for head in heads.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=channels),
        # class-agnostic masks, which learn from every digit
        mask_head=[dict(head, class_agnostic=True, **mask_width) for head in heads.mask_head],
        semantic_roi_extractor=dict(out_channels=channels),
        semantic_head=dict(
            num_ins=4,
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=11,  # digits and ground
        ),
    ),
    train_cfg=dict(
        rpn_proposal=_base_.training_proposals,
        rcnn=[dict(stage, sampler=dict(stage.sampler, **samples)) for stage in stages],
    ),
    test_cfg=dict(
        rpn=_base_.testing_proposals,
        rcnn=dict(max_per_img=30),  # a scene has 4 to 8 digits
    ),
)
load, annotations, *rest = _base_.train_pipeline
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(seg='stuffthingmaps/train/'),
        pipeline=[load, dict(annotations, with_seg=True), *rest],
    )
)
param_scheduler = _base_.half_as_long.param_scheduler
train_cfg = _base_.half_as_long.train_cfg
