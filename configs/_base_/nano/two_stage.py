# SPDX-License-Identifier: Apache-2.0
"""Parts that small detectors with proposals share, for use as ``_base_.fpn`` and so on."""

_base_ = 'detection.py'

channels = _base_.head_channels
fpn = dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4)
rpn_head = dict(
    in_channels=channels,
    feat_channels=channels,
    # 16, 32, 64 and 128 pixels: digits have 20 to 56
    anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
)
training_proposals = dict(nms_pre=500, max_per_img=200)
testing_proposals = dict(nms_pre=500, max_per_img=100)
