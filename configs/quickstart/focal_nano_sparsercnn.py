# SPDX-License-Identifier: Apache-2.0
"""A pre-trained backbone, as in the paper, gives much higher scores after 1,300 iterations.

The backbone of ``focal_nano_maskrcnn`` suffices: ``--cfg-options
model.backbone.init_cfg.type=FocalPretrained model.backbone.init_cfg.checkpoint=FILE``.
"""

_base_ = [
    '../_base_/models/sparsercnn.py',
    '../_base_/backbones/focal_nano.py',
    '../_base_/nano/box_detection.py',
]

channels = _base_.head_channels
num_stages = 3
num_proposals = 50  # a scene has 4 to 8 digits
head = _base_.model.roi_head.bbox_head[0]
dynamic_conv = dict(
    head.dynamic_conv_cfg, in_channels=channels, feat_channels=16, out_channels=channels
)
small_head = dict(
    head,
    num_classes=10,
    in_channels=channels,
    feedforward_channels=256,
    dynamic_conv_cfg=dynamic_conv,
)
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels),
    rpn_head=dict(num_proposals=num_proposals, proposal_feature_channel=channels),
    roi_head=dict(
        num_stages=num_stages,
        stage_loss_weights=[1] * num_stages,
        proposal_feature_channel=channels,
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=[small_head] * num_stages,
    ),
    train_cfg=dict(rcnn=_base_.model.train_cfg.rcnn[:num_stages]),
    test_cfg=dict(rcnn=dict(max_per_img=num_proposals)),
)
# a smaller learning rate, because of attention and the matching loss, as in Sparse R-CNN's recipe
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=1e-4), clip_grad=dict(max_norm=1.0))
