# SPDX-License-Identifier: Apache-2.0
"""RepPointsV2 with BiFPN and quality focal loss, without a backbone.

The released settings of Swin's RepPointsV2. Inferred: the published 45M parameters belong to them.
"""

_base_ = 'preprocessor.py'

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='RepPointsV2Detector',
    neck=dict(
        type='BiFPN',
        in_channels=[192, 384, 768],
        out_channels=256,
        num_outs=5,
        num_repeats=2,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='RepPointsV2Head',
        num_classes=80,
        in_channels=256,
        feat_channels=256,
        point_feat_channels=256,
        corner_channels=64,
        stacked_convs=3,
        num_points=9,
        gradient_mul=0.1,
        point_strides=[8, 16, 32, 64, 128],
        point_base_scale=4,
        norm_cfg=norm_cfg,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        # choice: GIoU of mmdet 1.x, with boxes one unit larger; the current loss, which has no
        # gradient for inverted boxes: type='GIoULoss'
        loss_bbox_init=dict(type='InclusiveGIoULoss', loss_weight=1.0),
        loss_bbox_refine=dict(type='InclusiveGIoULoss', loss_weight=2.0),
        loss_heatmap=dict(type='GaussianFocalLoss', alpha=2.0, gamma=4.0, loss_weight=0.25),
        loss_offset=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0),
        loss_foreground=dict(type='SeparateFocalLoss', gamma=2.0, alpha=0.25, loss_weight=0.1),
    ),
    train_cfg=dict(
        init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
        # crowds are background, as in the released code; to ignore them: ignore_iof_thr=0.5
        refine=dict(assigner=dict(type='ATSSAssigner', topk=9)),
        corner=dict(assigner=dict(type='CornerAssigner', min_overlap=0.7)),
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)
