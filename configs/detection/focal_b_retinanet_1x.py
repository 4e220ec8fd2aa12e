# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_retinanet_1x.py', '../_base_/backbones/focal_base.py']

model = dict(
    backbone=_base_.focal_b,
    neck=dict(in_channels=_base_.focal_b_channels[1:]),
)
