# SPDX-License-Identifier: Apache-2.0
"""A small Mask R-CNN for digit scenes, complete but for the backbone (widths 32, 64, 128, 256)."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../datasets/digit_scenes_det.py',
    '../schedules/nano.py',
    '../default_runtime_mmdet.py',
]

channels = 64
model = dict(
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # 16, 32, 64 and 128 pixels: digits have 20 to 56
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        # one box and one mask for all classes: each digit teaches all of them
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
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)
# Many small steps learn more in a few minutes than half as many of twice the size.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = _base_.frequent_hooks
log_processor = dict(window_size=20, by_epoch=False)
