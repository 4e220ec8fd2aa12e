# SPDX-License-Identifier: Apache-2.0
"""RetinaNet without a backbone; FPN's extra levels come from its input."""

_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(backbone=dict(_delete_=True), neck=dict(in_channels=[192, 384, 768], start_level=0))
