# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with FPN, without a backbone."""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(backbone=dict(_delete_=True), neck=dict(in_channels=[96, 192, 384, 768]))
