# SPDX-License-Identifier: Apache-2.0
_base_ = ['focal_t_upernet_160k.py', '../_base_/backbones/focal_base.py']

model = dict(
    backbone=dict(_base_.focal_b, drop_path_rate=_base_.model.backbone.drop_path_rate),
    decode_head=dict(in_channels=_base_.focal_b_channels),
    auxiliary_head=dict(in_channels=_base_.focal_b_channels[2]),
)
