# SPDX-License-Identifier: Apache-2.0
"""Section 4.2: Swin-B with Focal's hyper-parameters."""

_base_ = ['swin_t_retinanet_1x.py', '../../_base_/backbones/swin_base.py']

model = dict(backbone=_base_.swin_b, neck=dict(in_channels=_base_.swin_b_channels[1:]))
