# SPDX-License-Identifier: Apache-2.0
"""Hybrid Task Cascade with its semantic branch and soft-NMS, without a backbone."""

_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

mask_head = dict(
    type='HTCMaskHead',
    num_convs=4,
    in_channels=256,
    conv_out_channels=256,
    num_classes=80,
    loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
)
model = dict(
    type='HybridTaskCascade',
    data_preprocessor=dict(pad_seg=True),
    backbone=dict(_delete_=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(
        # averages the masks of all stages, as mmdet 2 did; mmdet 3's HybridTaskCascadeRoIHead
        # uses those of the last stage
        type='AveragedHTCRoIHead',
        interleaved=True,
        mask_info_flow=True,
        mask_head=[dict(mask_head, with_conv_res=False), mask_head, mask_head],
        semantic_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[8],
        ),
        semantic_head=dict(
            type='FusedSemanticHead',
            num_ins=5,
            fusion_level=1,
            seg_scale_factor=1 / 8,
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=183,
            loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.2),
        ),
    ),
    train_cfg=dict(
        # mmdet's HTC matches low-quality proposals too, its Cascade R-CNN does not
        rcnn=[
            dict(stage, assigner=dict(stage.assigner, match_low_quality=True))
            for stage in _base_.model.train_cfg.rcnn
        ]
    ),
    # choice: soft-NMS as in CBNetV2's HTC++, since the paper names the method only; with a higher
    # threshold: score_thr=0.05
    test_cfg=dict(
        rcnn=dict(
            _delete_=True,
            score_thr=0.001,
            nms=dict(type='soft_nms', iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        )
    ),
)
